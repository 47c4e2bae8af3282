/**
 * The administrator: backups end, and a template that has stayed locked although no task works on it is unlocked
 * (`pct unlock`). Stuck containers of the fleet are the fleet's own business.
 */
import type { Pve } from "../pve/index.ts";

const LOOK_MS = 2_000;
const STUCK_MS = 8_000;

export function startHuman(pve: Pve, log: (line: string) => void): Disposable {
  const since = new Map<string, number>();
  const look = () => {
    const busy = new Set(pve.tasks().flatMap(({ endedAt, id }) => (endedAt === undefined ? [id] : [])));
    const stuck = pve
      .containers()
      .filter(({ vmid, lock, template }) => lock === "backup" || (template && lock && !busy.has(String(vmid))));
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
    }
  };
  const timer = setInterval(look, LOOK_MS);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
