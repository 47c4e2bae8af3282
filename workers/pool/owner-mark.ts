/**
 * The mark of an owner inside a member's container. The claim is one step in Redis, which may lose its last second, and the
 * stamp in PVE follows later: so whoever claims a member writes his name into the running container first, where nobody
 * can write a second one. It lies where nothing outlasts a restart.
 */
import { OperationId, SandboxId } from "../../shared/ids.ts";
import type { WorkerContext } from "../context.ts";

export interface Owner {
  sandbox: SandboxId;
  operation: OperationId;
}

export interface Inside {
  address: string;
  token: string;
  signal: AbortSignal;
  guard?: () => void;
}

/** FLEET_GUEST_ROOT is for guests that are a folder. */
const FILE = `file="\${FLEET_GUEST_ROOT-}/run/sandbox-fleet-owner"`;
const READ = `if [ -e "$file" ]; then read -r owner <"$file"; echo "owner $owner"; else echo free; fi`;
/** A member that does not answer so soon is as good as none: a new container takes a second or two. */
const ANSWER_MS = 1_000;

/** Whose it is now: ours, if it was nobody's. Throws where its daemon does not answer. */
export async function markOwner(context: WorkerContext, { sandbox, operation }: Owner, inside: Inside) {
  const write = `{ echo "${sandbox} ${operation}" >"$file"; } 2>/dev/null`;
  return ask(context, inside, `${FILE}\n[ -d "\${file%/*}" ] || mkdir -p "\${file%/*}"\nset -C\n${write}\n${READ}`);
}

/** Throws where its daemon does not answer. */
export const readOwner = (context: WorkerContext, inside: Inside) => ask(context, inside, `${FILE}\n${READ}`);

/** Null: nobody's. */
async function ask(
  { execd }: WorkerContext,
  { address, token, signal, guard }: Inside,
  script: string,
): Promise<Owner | "unknown" | null> {
  const { stdout } = await execd.exec({
    address,
    token,
    script,
    timeoutMs: ANSWER_MS,
    keepBytes: 256,
    signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]),
    ...(guard ? { guard } : {}),
  });
  if (stdout === "free\n") return null;
  const [, sandbox, operation] = /^owner (\S+) (\S+)\n$/.exec(stdout) ?? [];
  const owner = { sandbox: SandboxId.safeParse(sandbox), operation: OperationId.safeParse(operation) };
  // A mark that was cut short is somebody's all the same.
  return owner.sandbox.success && owner.operation.success
    ? { sandbox: owner.sandbox.data, operation: owner.operation.data }
    : "unknown";
}
