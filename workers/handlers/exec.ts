import { FleetError } from "../../shared/errors.ts";
import { EXEC_OUTPUT_LIMIT } from "../../shared/jobs/exec.ts";
import { execQueue } from "../../shared/queues.ts";
import { isGone } from "../../shared/state/records.ts";
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
    const outcome = await callExecd(run);
    return { result: { ...outcome, durationMs: Math.round(performance.now() - begun) } };
  },
};

const DAEMON_GRACE_MS = 10_000;

/** A sandbox that moved takes its operations along; one that is not up can't do anything. */
export function stayWithNode(run: Run): void {
  const { state, node, id } = run.sandbox;
  if (isGone(state) || state === "destroying")
    throw new FleetError("sandbox_gone", `sandbox ${id} has ended`, { facts: { sandbox: id } });
  if (state !== "running" || node === undefined) {
    throw new FleetError("not_running", `sandbox ${id} is ${state}${state === "stopped" ? "; start it first" : ""}`, {
      facts: { sandbox: id, state },
    });
  }
  if (run.operation.queue !== execQueue(node)) throw new Reroute(execQueue(node));
}

async function callExecd(run: Run<"exec">) {
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
