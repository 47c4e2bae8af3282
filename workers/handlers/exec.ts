import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import { EXEC_OUTPUT_LIMIT } from "../../shared/jobs/exec.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import { execQueue } from "../../shared/queues.ts";
import { isGone } from "../../shared/state/records.ts";
import type { ExecOutcome } from "../exec/execd.ts";
import { createLiveOutput, type LiveOutput } from "../exec/live-output.ts";
import { toScript } from "../exec/shell.ts";
import type { Run } from "../run/run.ts";
import { ownContainer } from "../sandbox/look.ts";
import { readAddress } from "../sandbox/ready.ts";
import { type Handler, Reroute } from "./handler.ts";

export const exec: Handler<"exec"> = {
  async run(run) {
    stayWithNode(run);
    if (run.operation.step?.name === "sent" && !run.input.idempotent) {
      throw new FleetError(
        "exec_interrupted",
        "the worker died while the command ran; it is not run again unless idempotent is set",
        {
          facts: { sandbox: run.sandbox.id },
        },
      );
    }
    const begun = performance.now();
    const live = createLiveOutput(run.addOutput);
    try {
      const outcome = await callExecd(run, live).catch((error: unknown) => callOverSsh(run, live, error));
      const result = { ...outcome, durationMs: Math.round(performance.now() - begun) };
      const rest = await live.close();
      return { result, write: { output: needsLiveOutput(run, live, result) ? rest : undefined } };
    } catch (error) {
      const rest = await live.close();
      // It tells more than the error does; a run that lost its lock is refused, and its successor says what there is.
      if (rest.length > 0) await run.addOutput(rest).catch(() => {});
      throw error;
    }
  },
};

/** A result that holds all of one stream says all that a watcher would have seen, unless something is written already. */
function needsLiveOutput({ operation }: Run, live: LiveOutput, result: JobOutput<"exec">): boolean {
  const bothStreams = result.stdout !== "" && result.stderr !== "";
  return live.written || bothStreams || result.truncated || operation.output !== undefined;
}

const DAEMON_GRACE_MS = 10_000;

/** A sandbox that moved takes its operations along; one that is not up can't do anything. */
export function stayWithNode(run: Run): void {
  const { state, node, id } = run.sandbox;
  if (isGone(state) || state === "destroying")
    throw new FleetError("sandbox_gone", `sandbox ${id} has ended`, { facts: { sandbox: id } });
  if (state !== "running" || node === undefined) {
    const wayOut = state === "stopped" ? "; start it first" : state === "paused" ? "; resume it first" : "";
    throw new FleetError("not_running", `sandbox ${id} is ${state}${wayOut}`, {
      facts: { sandbox: id, state },
    });
  }
  if (run.operation.queue !== execQueue(node)) throw new Reroute(execQueue(node));
}

async function callExecd(run: Run<"exec">, live: LiveOutput): Promise<ExecOutcome> {
  const { secrets, execd } = run.context;
  const [owner, own] = await Promise.all([secrets.get(run.sandbox.id), secrets.get(run.id)]);
  let token = owner.execToken;
  if (token === undefined) {
    throw new FleetError("not_configured", 'this sandbox was made with waitFor: "address" and has no exec daemon', {
      facts: { sandbox: run.sandbox.id },
    });
  }
  let address = run.sandbox.address ?? (await addressNow(run));
  const { command, cwd, timeoutMs, idempotent } = run.input;
  // execd ends the command itself; this is for a daemon that does not answer any more, such as that of a frozen guest.
  const signal = AbortSignal.any([run.signal, AbortSignal.timeout(timeoutMs + DAEMON_GRACE_MS)]);
  const script = toScript(command, { env: { ...owner.env, ...own.env }, cwd });
  for (let fresh = false; ; fresh = true) {
    if (address === null)
      throw new FleetError("no_address", "the sandbox has no address", { facts: { sandbox: run.sandbox.id } });
    if (!idempotent) await run.begin("sent");
    try {
      return await execd.exec({
        address,
        token,
        script,
        timeoutMs,
        keepBytes: EXEC_OUTPUT_LIMIT,
        signal,
        onOutput: live.add,
        guard: run.check,
      });
    } catch (error) {
      const again =
        error instanceof FleetError && (error.code === "execd_unreachable" || error.code === "execd_unauthorized");
      if (!again) throw error;
      await run.begin("refused"); // it was certainly not run
      if (fresh) throw error;
      // The address or token may have changed since we read them: once more with what is true now.
      if (error.code === "execd_unreachable") address = await addressNow(run);
      else token = (await secrets.get(run.sandbox.id)).execToken ?? token;
    }
  }
}

/** Causes that lie in the way to execd, not in it: none, no address, or nothing that takes a connection there. */
const NO_WAY_TO_EXECD: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "not_configured",
  "no_address",
  "execd_unreachable",
]);
/** Without having begun; then what is wrong with execd is the better news. */
const NO_WAY_OVER_SSH: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "ssh_unreachable",
  "ssh_refused",
  "ssh_host_key_refused",
]);

/** `pct exec` on the node, where execd can't be reached and SSH is set up; else throws `cause`. */
async function callOverSsh(run: Run<"exec">, live: LiveOutput, cause: unknown): Promise<ExecOutcome> {
  const { shell, secrets } = run.context;
  if (shell === null || !(cause instanceof FleetError) || !NO_WAY_TO_EXECD.has(cause.code)) throw cause;
  const { place } = await ownContainer(run); // the number alone could be another's by now
  const [owner, own] = await Promise.all([secrets.get(run.sandbox.id), secrets.get(run.id)]);
  const { command, cwd, timeoutMs, idempotent } = run.input;
  const script = toScript(command, { env: { ...owner.env, ...own.env }, cwd });
  run.log.info({ code: cause.code, node: place.node }, "execd can't be reached; running the command over SSH");
  if (!idempotent) await run.begin("sent");
  try {
    const { code, stdout, stderr, stdoutBytes, stderrBytes, truncated } = await shell.run(
      place.node,
      { verb: "exec", vmid: place.vmid, script, timeoutMs },
      { signal: run.signal, guard: run.check, keepBytes: EXEC_OUTPUT_LIMIT, onOutput: live.add },
    );
    return { exitCode: code ?? KILLED, stdout, stderr, stdoutBytes, stderrBytes, truncated };
  } catch (error) {
    if (!(error instanceof FleetError) || !NO_WAY_OVER_SSH.has(error.code)) throw error;
    await run.begin("refused"); // it was certainly not run
    throw cause.with({ ssh: error.code });
  }
}

/** As a shell tells of a command that SIGKILL ended. */
const KILLED = 137;

/** A container that is found stopped or gone was made so behind our back: trying again would not bring it back. */
async function addressNow(run: Run<"exec">): Promise<string | null> {
  await ownContainer(run);
  try {
    return await readAddress(run);
  } catch (error) {
    if (!(error instanceof FleetError) || error.code !== "start_failed") throw error;
    throw new FleetError("not_running", "the container has stopped; start it first", {
      cause: error,
      facts: { sandbox: run.sandbox.id },
    });
  }
}
