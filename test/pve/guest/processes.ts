import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";

/** Every process of a guest, and whatever it started, carries this in its environment. */
export const GUEST_MARK = "STANDIN_GUEST";
/** Every process of one stand-in. */
export const OWNER_MARK = "STANDIN_PVE";

/** Processes whose environment has the mark, also those that left their group or session. */
function marked(mark: string): number[] {
  const needle = Buffer.from(mark);
  const found: number[] = [];
  for (const entry of readdirSync("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      if (readFileSync(`/proc/${pid}/environ`).includes(needle)) found.push(pid);
    } catch {
      // It ended meanwhile, or belongs to somebody else.
    }
  }
  return found;
}

export function signalMarked(mark: string, signal: NodeJS.Signals): number {
  const pids = marked(mark);
  for (const pid of pids) {
    try {
      process.kill(pid, signal);
    } catch {
      // It ended meanwhile.
    }
  }
  return pids.length;
}

/** SIGKILL until nobody is left: a process may fork between the look and the kill. (Zombies have no environment.) */
export async function killMarked(mark: string): Promise<void> {
  while (signalMarked(mark, "SIGKILL") > 0) await new Promise((resolve) => setImmediate(resolve));
}

/** Does the killing and the tidying when the stand-in itself dies without a chance to (SIGKILL): its stdin ends then. */
const GUARD = `
cat >/dev/null
while :; do
  found=
  for entry in /proc/[0-9]*; do
    grep -qzF "$1" "$entry/environ" 2>/dev/null && kill -KILL "\${entry#/proc/}" 2>/dev/null && found=1
  done
  [ -n "$found" ] || break
done
rm -rf "$2"
`;

export class Guard {
  readonly #child: ChildProcess;

  /** `folder` is removed in the end; "" for none. */
  constructor(mark: string, folder: string) {
    this.#child = spawn("/bin/sh", ["-c", GUARD, "guard", mark, folder], {
      detached: true,
      stdio: ["pipe", "ignore", "ignore"],
      env: { PATH: process.env["PATH"] ?? "/usr/bin:/bin" },
    });
  }

  async close(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const ended = once(this.#child, "exit");
    this.#child.stdin?.end();
    await ended;
  }
}
