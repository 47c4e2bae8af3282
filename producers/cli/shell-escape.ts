const [ENTER, NEWLINE, TILDE, DOT] = [13, 10, 126, 46];

/**
 * Finds `~.` at the beginning of a line among what is typed, as ssh does: `leave` once it came. A tilde there is held back
 * until the next key says what it means.
 */
export function createEscape(): (bytes: Uint8Array) => { pass: Buffer; leave: boolean } {
  let atBegin = true;
  let held = false;
  return (bytes) => {
    const pass: number[] = [];
    for (const byte of bytes) {
      if (held && byte === DOT) return { pass: Buffer.from(pass), leave: true };
      if (!held && atBegin && byte === TILDE) {
        held = true;
        continue;
      }
      // Twice is one.
      if (held && byte !== TILDE) pass.push(TILDE);
      held = false;
      pass.push(byte);
      atBegin = byte === ENTER || byte === NEWLINE;
    }
    return { pass: Buffer.from(pass), leave: false };
  };
}
