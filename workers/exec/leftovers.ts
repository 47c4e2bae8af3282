/**
 * What a command has begun and left running. execd kills a command's own bash alone, when its time is up and when its caller
 * leaves; what that has begun goes on, and holds the reply back for as long as it has the command's output. So each command
 * names itself in the environment of all that it begins, and is ended by that name.
 */
import { toFleetError } from "../../shared/errors.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";

/** Holds the command's name, for itself as well. */
const VARIABLE = "FLEET_COMMAND";
/** Bytes that the line has at most. */
export const MARK_BYTES = 64;

/** A script that begins with this line has its name in its own command line, and so have the subshells that bash makes of it. */
export const toMark = (name: string): string => `export ${VARIABLE}=${name}\n`;

/** What names a command that is one of several of its operation. */
export const nameOf = (operation: string, index: number): string => `${operation}.${String(index).padStart(4, "0")}`;

/** Kills all that a command has begun: again while there is something, since it may fork meanwhile. No command line of its own holds the mark. */
export const toKill = (name: string): string => `mark=${VARIABLE}
mark=$mark=${name}
for try in 1 2 3 4 5 6 7 8 9; do
  found=$(grep -slFf <(printf %s "$mark") /proc/[0-9]*/environ /proc/[0-9]*/cmdline)
  [ -n "$found" ] || exit 0
  for file in $found; do file=\${file#/proc/}; kill -KILL "\${file%%/*}"; done 2>/dev/null
done
exit 1`;

const PATIENCE_MS = 1_500;

/** As far as it goes: a sandbox that can't be reached keeps what it has. Throws what the call's guard throws. */
export async function endLeftovers(
  run: Run,
  command: { address: string; token: string; name: string },
  { signal, guard }: Call = run.call,
): Promise<void> {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]);
  try {
    await run.context.execd.kill({ ...command, signal: limited, guard });
  } catch (error) {
    guard?.();
    run.log.info({ code: toFleetError(error).code }, "could not end what a command left running");
  }
}
