/**
 * Connections made ahead to the exec daemons of sandboxes that were just used: to make one takes as long as all else that a
 * worker does for a short command. None has carried a byte, so that a reset of it means no more than of one made for the command,
 * and each carries one command.
 */
import { createConnection, type Socket } from "node:net";

export interface Spares extends Disposable {
  /** One that stands; it is the caller's. */
  take(guest: Guest): Socket | undefined;
  /** Opens one, unless there are enough. */
  add(guest: Guest): void;
}

/** A sandbox since it came up: its address may have had another owner before. */
export interface Guest {
  name: string;
  address: string;
  port: number;
}

/** A guest that ends closes its own; this is for one whose node lost power, which tells nobody. */
const KEPT_MS = 2_000;
const MOST = { all: 64, guest: 4 };
/** As undici has its own. */
const SETTINGS = { noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 };

export function createSpares(): Spares {
  const guests = new Map<string, Set<Socket>>();
  let count = 0;
  let closed = false;
  const keyOf = ({ name, address, port }: Guest) => `${name} ${address} ${port}`;
  /** False: it was taken. */
  const remove = (key: string, socket: Socket): boolean => {
    const spares = guests.get(key);
    if (!spares?.delete(socket)) return false;
    if (spares.size === 0) guests.delete(key);
    count--;
    return true;
  };
  return {
    take(guest) {
      const key = keyOf(guest);
      const found = [...(guests.get(key) ?? [])].find(isUnused);
      if (found) remove(key, found);
      return found?.setTimeout(0);
    },
    add(guest) {
      const key = keyOf(guest);
      const spares = guests.get(key) ?? new Set();
      if (closed || count >= MOST.all || spares.size >= MOST.guest) return;
      const { address: host, port } = guest;
      const socket = createConnection({ host, port, ...SETTINGS }).setTimeout(KEPT_MS);
      guests.set(key, spares.add(socket));
      count++;
      const drop = () => void (remove(key, socket) && socket.destroy());
      for (const sign of ["timeout", "end", "error", "close"]) socket.on(sign, drop);
    },
    [Symbol.dispose]() {
      closed = true;
      for (const spares of guests.values()) for (const socket of spares) socket.destroy();
    },
  };
}

/** It stands, and has not been spoken to. */
export const isUnused = ({ readyState, readableLength }: Socket): boolean =>
  readyState === "open" && readableLength === 0;
