/** A sandbox made for the doctor alone: the whole way, workers and exec daemon included. */
import { createFleet } from "../../producers/index.ts";
import type { WorkerConfig } from "../../shared/config.ts";
import { toFleetError } from "../../shared/errors.ts";
import type { NodeShell } from "../ssh/node-shell.ts";
import { type Finding, ok, problem } from "./finding.ts";

const PROVISION_MS = 120_000;
const STEP_MS = 30_000;
/** Should the doctor die, the sandbox ends by itself. */
const TTL_SECONDS = 600;

export async function examineByProbe(
  config: WorkerConfig,
  { template, shell }: { template: string; shell: NodeShell | null },
): Promise<Finding[]> {
  await using fleet = createFleet({ redis: config.REDIS_URL, prefix: config.FLEET_PREFIX, team: "fleet-doctor" });
  const findings: Finding[] = [];
  /** Null where it failed. */
  const step = async <T>(check: string, run: () => Promise<T>, tell: (result: T) => string): Promise<T | null> => {
    const at = performance.now();
    try {
      const result = await run();
      findings.push(ok(check, `${tell(result)} in ${((performance.now() - at) / 1_000).toFixed(1)} s`));
      return result;
    } catch (error) {
      findings.push(problem(check, toFleetError(error).message));
      return null;
    }
  };
  const handle = await fleet.provision({ template, ttlSeconds: TTL_SECONDS });
  const sandbox = await step(
    "probe.provision",
    () => handle.result({ timeoutMs: PROVISION_MS }),
    ({ node, vmid }) => `${template} became ${vmid} on ${node}`,
  );
  if (sandbox === null) {
    await handle.cancel(); // where it only took too long, what it made is undone
    return findings;
  }
  const { sandboxId, node, vmid } = sandbox;
  await step(
    "probe.exec",
    async () => {
      const exec = await fleet.exec({ sandboxId, command: "true" });
      return exec.result({ timeoutMs: STEP_MS });
    },
    ({ exitCode }) => `a command ended with ${exitCode}`,
  );
  if (shell !== null)
    await step(
      "probe.pct",
      () => {
        const signal = AbortSignal.timeout(STEP_MS);
        return shell.run(node, { verb: "exec", vmid, script: "true", timeoutMs: STEP_MS }, { signal });
      },
      ({ code }) => `a command by pct on ${node} ended with ${code}`,
    );
  await step(
    "probe.destroy",
    async () => (await fleet.destroy({ sandboxId })).result({ timeoutMs: STEP_MS }),
    () => "destroyed",
  );
  return findings;
}
