const FIRST = 0x7f40_0000;
const SIZE = 1 << 22;

function toNumber(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

/** Loopback addresses from the base on and up to 127.127.255.255, one after the other, none again before all have passed. */
export class Addresses {
  #next: number;

  constructor(base: string) {
    this.#next = toNumber(base);
  }

  next(): string {
    for (;;) {
      const value = this.#next;
      this.#next = value + 1 < FIRST + SIZE ? value + 1 : FIRST;
      const last = value & 255;
      if (last === 0 || last === 255) continue;
      return `127.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${last}`;
    }
  }
}

/** Far apart for any two ports, so that stand-ins that run at once seldom meet (and step aside when they do). */
export function addressBase(port: number): string {
  const value = FIRST + ((port * 64 + 1) % SIZE);
  return `127.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`;
}
