/**
 * Thrown by a run whose time has not come: a placer that has no node to give yet, a wait for a slot whose holder waits
 * itself. Without a delay it goes back to its place in the waiting line, with one to the end of the line.
 */
export class NotYet extends Error {
  override readonly name = "NotYet";
  readonly delayMs: number;

  constructor(delayMs: number, reason: string) {
    super(reason);
    this.delayMs = delayMs;
  }
}
