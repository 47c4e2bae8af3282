import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import { execQueue } from "../../shared/queues.ts";
import { isGone } from "../../shared/state/records.ts";
import { spanned } from "../../shared/trace.ts";
import { type Asked, readAsked } from "../exec/asked.ts";
import type { ExecOutcome } from "../exec/exec-reply.ts";
import type { ExecCall } from "../exec/execd.ts";
import { createFraming } from "../exec/framing.ts";
import { endLeftovers } from "../exec/leftovers.ts";
import { createLiveOutput, type LiveOutput } from "../exec/live-output.ts";
import { toDelivery, toScriptAs } from "../exec/shell.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { ownContainer, refuseTemplate } from "../sandbox/look.ts";
import { readAddress } from "../sandbox/ready.ts";
import { type Handler, Reroute } from "./handler.ts";

export const exec: Handler<"exec"> = {
  async run(run) {
    stayWithNode(run);
    if (run.operation.step?.name === "sent" && !run.input.idempotent) {
      throw new FleetError(
        "exec_interrupted",
        "its worker died or lost Redis while the command ran; it is not run again unless idempotent is set",
        {
          facts: { sandbox: run.sandbox.id },
        },
      );
    }
    // As an earlier run left it, whose worker died.
    if (run.input.idempotent && run.operation.claims > 1) await endCommand(run, run.call);
    const begun = performance.now();
    const live = createLiveOutput(run.addOutput);
    try {
      const asked = readAsked(run, live);
      const outcome = await callExecd(run, asked).catch((error: unknown) => callOverSsh(run, asked, error));
      asked.checkUser();
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

  /** Whatever it ended by, nothing of it runs on. */
  async undo(run) {
    const isSent = run.operation.step?.name === "sent" || (run.input.idempotent && run.sandbox.state === "running");
    if (isSent) await endCommand(run, run.undoing());
    return { undone: [] };
  },
};

async function endCommand(run: Run, call: Call): Promise<void> {
  const { address } = run.sandbox;
  const { execToken: token } = run.context.secrets.openSandbox(run.sandbox.id, run.sealed.sandbox);
  if (address !== undefined && token !== undefined) await endLeftovers(run, { address, token, name: run.id }, call);
}

/** A result that holds all of one stream says all that a watcher would have seen, unless something is written already. */
function needsLiveOutput({ operation }: Run, live: LiveOutput, result: JobOutput<"exec">): boolean {
  const bothStreams = result.stdout !== "" && result.stderr !== "";
  return live.written || bothStreams || result.truncated || operation.output !== undefined;
}

/** A sandbox that moved takes its operations along; one that is not up can't do anything. */
export function stayWithNode(run: Run): void {
  const { state, node, id } = run.sandbox;
  refuseTemplate(run.sandbox);
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

/** Made with `waitFor: "address"`, or adopted. */
export const NO_DAEMON =
  "no exec token of this sandbox is known, so it needs SSH to its node: FLEET_SSH_KEY, and a guard there that covers its VMID";

async function callExecd(run: Run<"exec">, asked: Asked): Promise<ExecOutcome> {
  const { secrets, execd } = run.context;
  let token = asked.execToken;
  if (token === undefined) throw new FleetError("not_configured", NO_DAEMON, { facts: { sandbox: run.sandbox.id } });
  let address = run.sandbox.address ?? (await addressNow(run));
  const { command, timeoutMs, outputLimitBytes: keepBytes, idempotent } = run.input;
  const { place, as, stdin, hear } = asked;
  const framing = run.input.exact ? createFraming(run.id) : undefined;
  const { before, script, clean } = toDelivery(command, place, { as, stdin, name: `.fleet-${run.id}`, framing });
  const { signal } = run;
  for (let fresh = false; ; fresh = true) {
    if (address === null)
      throw new FleetError("no_address", "the sandbox has no address", { facts: { sandbox: run.sandbox.id } });
    const call = { address, token, guard: run.check };
    try {
      if (before.length > 0) await sendBefore(run, before, { ...call, signal });
      const ready = idempotent ? undefined : run.begin("sent");
      const guest = `${run.sandbox.id} ${run.sandbox.stateAt}`;
      const asked = {
        ...call,
        ready,
        script,
        name: run.id,
        timeoutMs,
        keepBytes,
        signal,
        guest,
        onOutput: hear,
        readLine: framing?.read,
      };
      return await spanned("command", {}, () => execd.exec(asked));
    } catch (error) {
      if (clean !== undefined) await tidy(run, clean, call);
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

const DELIVERY_MS = 30_000;
type DaemonCall = Pick<ExecCall, "address" | "token" | "guard">;

/** What does not fit into the command's own text. Whatever goes wrong here, the command has not begun. */
export async function sendBefore(run: Run, scripts: readonly string[], call: DaemonCall & { signal: AbortSignal }) {
  for (const script of scripts) {
    const outcome = await run.context.execd
      .exec({ ...call, script, timeoutMs: DELIVERY_MS, keepBytes: 1_024 })
      .catch((error: unknown) => {
        if (!(error instanceof FleetError) || error.code !== "exec_interrupted") throw error;
        throw new FleetError("execd_unreachable", "the connection broke before the command was sent", { cause: error });
      });
    if (outcome.exitCode === 0) continue;
    throw new FleetError(
      "input_refused",
      "the sandbox could not keep the command's input; is its memory or disk full?",
      {
        facts: { sandbox: run.sandbox.id, exitCode: outcome.exitCode },
      },
    );
  }
}

/** As far as it goes; files that stay are root's alone, and the next try replaces them. */
async function tidy(run: Run, script: string, { address, token }: DaemonCall): Promise<void> {
  const signal = AbortSignal.timeout(3_000);
  const call = { address, token, script, timeoutMs: 3_000, keepBytes: 0, signal };
  await run.context.execd.exec(call).catch(() => {});
}

/** Causes that lie in the way to execd, not in it: none, no address, or nothing that takes a connection there. */
export const NO_WAY_TO_EXECD: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "not_configured",
  "no_address",
  "execd_unreachable",
]);
/** Without having begun; then what is wrong with execd is the better news. */
export const NO_WAY_OVER_SSH: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "ssh_unreachable",
  "ssh_refused",
  "ssh_host_key_refused",
]);

/** `pct exec` on the node, where execd can't be reached and SSH is set up; else throws `cause`. */
async function callOverSsh(run: Run<"exec">, asked: Asked, cause: unknown): Promise<ExecOutcome> {
  const { shell } = run.context;
  if (shell === null || !(cause instanceof FleetError) || !NO_WAY_TO_EXECD.has(cause.code)) throw cause;
  const { place } = await ownContainer(run); // the number alone could be another's by now
  const { command, timeoutMs, outputLimitBytes: keepBytes, idempotent } = run.input;
  const { stdin = Buffer.alloc(0), hear } = asked;
  const script = toScriptAs(command, asked.place, asked.as);
  run.log.info({ code: cause.code, node: place.node }, "execd can't be reached; running the command over SSH");
  if (!idempotent) await run.begin("sent");
  try {
    const { code, stdout, stderr, stdoutBytes, stderrBytes, truncated } = await shell.run(
      place.node,
      { verb: "exec", vmid: place.vmid, script, timeoutMs },
      { signal: run.signal, guard: run.check, stdin, keepBytes, onOutput: hear },
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
export async function addressNow(run: Run): Promise<string | null> {
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
