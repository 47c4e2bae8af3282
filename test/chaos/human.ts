/** The administrator: unlocks what has stayed locked although no task works on it (`pct unlock`). */
import type { Pve } from "../pve/index.ts";

const LOOK_MS = 2_000;
const STUCK_MS = 8_000;

export function startHuman(pve: Pve, log: (line: string) => void): Disposable & { unlocked(): number } {
  const since = new Map<string, number>();
  let unlocked = 0;
  const look = () => {
    const busy = new Set(
      pve.tasks().flatMap(({ endedAt, id, target }) => (endedAt === undefined ? [id, String(target ?? id)] : [])),
    );
    const stuck = pve.containers().filter(({ vmid, lock }) => lock !== undefined && !busy.has(String(vmid)));
    const now = performance.now();
    const names = new Set(stuck.map(({ vmid, lock }) => `${vmid} ${lock}`));
    for (const name of since.keys()) if (!names.has(name)) since.delete(name);
    for (const { vmid, lock } of stuck) {
      const name = `${vmid} ${lock}`;
      const begun = since.get(name) ?? now;
      since.set(name, begun);
      if (now - begun < STUCK_MS) continue;
      log(`human: pct unlock ${vmid} (${lock})`);
      pve.faults.lock(vmid, null);
      unlocked += 1;
    }
  };
  const timer = setInterval(look, LOOK_MS);
  return { unlocked: () => unlocked, [Symbol.dispose]: () => clearInterval(timer) };
}
