import { FleetError, unreachable } from "../../shared/errors.ts";
import type { JobOutput, ParsedInput } from "../../shared/jobs/index.ts";
import type { Write } from "../../shared/state/operations.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { LxcApi } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { unusedSince } from "../sandbox/idle.ts";
import { ownContainer, type Place } from "../sandbox/look.ts";
import { haltContainer, startContainer } from "../sandbox/power.ts";
import { awaitOwnReady } from "../sandbox/ready.ts";
import { isFrozen, stoppedWrite, tellStanding } from "../sandbox/standing.ts";
import { runTask } from "../sandbox/task.ts";
import type { Ending, Handler } from "./handler.ts";

type Action = ParsedInput<"power">["action"];

export const power: Handler<"power"> = {
  async run(run) {
    const { place, lxc } = await ownContainer(run);
    const { status } = await lxc.status(run.call);
    const { state } = run.sandbox;
    if (run.operation.step === undefined && state !== "stopped" && (await isUncalledFor(run)))
      return { result: { state: state === "paused" ? state : "running", changed: false } };
    const action = asPossible(run, status);
    if (action !== "pause" && action !== "resume") return drive(run, { place, lxc }, { action, status });
    try {
      return await freezeOrThaw(run, place, action);
    } catch (error) {
      if (!mayStopInstead(run, action, error)) throw error;
      run.log.warn({ node: place.node }, "the node lets nothing be frozen over SSH; stopping instead");
      return drive(run, { place, lxc }, { action: "stop", status });
    }
  },

  undo: tellStanding,
};

/** It was to end only what nobody uses, or what is out of time, and between the look and now that has changed. */
async function isUncalledFor({ context, input, sandbox }: Run<"power">): Promise<boolean> {
  const { ifIdleSeconds: seconds, ifExpired, action } = input;
  if (action !== "pause" && action !== "stop") return false;
  if (ifExpired) return (sandbox.expiresAt ?? Number.POSITIVE_INFINITY) > (await toRedisTime(context));
  if (seconds === undefined || sandbox.state !== "running") return false;
  const since = await unusedSince(context, sandbox);
  return since === null || Date.now() - since < seconds * 1_000;
}

/** ms since the epoch by the clock that set its end. */
async function toRedisTime({ redis }: Run["context"]): Promise<number> {
  const [seconds = 0, micros = 0] = await redis.time();
  return seconds * 1_000 + micros / 1_000;
}

/**
 * What the action comes to as things stand: pause and resume need SSH, and where the caller allows it a stop and a start
 * do in their place. Throws `unsupported`, or `not_running` for what is stopped.
 */
function asPossible(run: Run<"power">, status: "running" | "stopped"): Action {
  const { action, allowStop } = run.input;
  const { id, state } = run.sandbox;
  if (action === "start" && state === "paused" && status === "running") return "resume";
  if (action !== "pause" && action !== "resume") return action;
  // By its own earlier run, or by an earlier operation that stopped it in place of a pause.
  if (status === "stopped" && allowStop) return action === "pause" ? "stop" : "start";
  if (status === "stopped") {
    throw new FleetError("not_running", `sandbox ${id} is stopped, so there is nothing to ${action}; start it`, {
      facts: { sandbox: id, state: "stopped" },
    });
  }
  if (run.context.shell !== null) return action;
  if (action === "pause" && allowStop) return "stop";
  if (action === "resume" && state !== "paused") return "start"; // it runs: nothing to do
  throw new FleetError(
    "unsupported",
    `${action} keeps the memory and so needs SSH to the nodes: set FLEET_SSH_KEY, or allow a stop in its place (allowStop)`,
    { facts: { sandbox: id, variables: ["FLEET_SSH_KEY"] } },
  );
}

/** Where the node takes neither key nor command, as where there is no SSH; what is frozen already keeps its memory. */
function mayStopInstead({ input, sandbox }: Run<"power">, action: Action, error: unknown): boolean {
  const refused = error instanceof FleetError && ["ssh_refused", "ssh_host_key_refused"].includes(error.code);
  return refused && action === "pause" && input.allowStop && sandbox.state !== "paused";
}

/** Starts, stops, shuts down or reboots, unless that is how things stand. */
async function drive(
  run: Run<"power">,
  { place, lxc }: { place: Place; lxc: LxcApi },
  { action, status }: { action: Exclude<Action, "pause" | "resume">; status: "running" | "stopped" },
): Promise<Ending<"power">> {
  const wanted = action === "start" || action === "reboot" ? "running" : "stopped";
  const begun = run.operation.step !== undefined;
  const changed = begun || action === "reboot" || status !== wanted;
  if (changed) {
    await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, async () => {
      // A frozen guest can't obey; a stop kills it as it is.
      if (run.sandbox.state === "paused" && status === "running" && action !== "stop") await thaw(run, place);
      await act(run, lxc, { action, status });
    });
  }
  if (wanted === "running" && changed) await awaitOwnReady(run);
  const result: JobOutput<"power"> = { state: wanted, changed };
  return { result, write: wanted === "running" ? { sandbox: { state: wanted } } : restWrite(run) };
}

/** Somebody wants it to rest: it is not started again after its node. */
function restWrite(run: Run<"power">): Write {
  const { keys } = run.context;
  const { also = [], ...write } = stoppedWrite(run);
  return { ...write, also: [...also, ["SREM", keys.restarts, run.sandbox.id], ["ZREM", keys.halted, run.sandbox.id]] };
}

/** Freezing what is frozen and thawing what is thawed change nothing, so a run that is repeated does no harm. */
async function freezeOrThaw(run: Run<"power">, place: Place, action: "pause" | "resume"): Promise<Ending<"power">> {
  const frozen = await isFrozen(run, place, run.call);
  const changed = run.operation.step !== undefined || frozen !== (action === "pause");
  if (action === "pause") {
    await run.begin("pause");
    await run.context.shell?.run(place.node, { verb: "freeze", vmid: place.vmid }, run.writing);
    return {
      result: { state: "paused", changed },
      write: { sandbox: { state: "paused" }, patch: { settles: ["pause"] } },
    };
  }
  if (frozen) await thaw(run, place);
  if (changed) await awaitOwnReady(run);
  return { result: { state: "running", changed }, write: { sandbox: { state: "running" } } };
}

async function thaw(run: Run<"power">, { node, vmid }: Place): Promise<void> {
  if (run.context.shell === null) return;
  await run.begin("resume");
  await run.context.shell.run(node, { verb: "unfreeze", vmid }, run.writing);
}

async function act(
  run: Run<"power">,
  lxc: LxcApi,
  { action, status }: { action: Exclude<Action, "pause" | "resume">; status: "running" | "stopped" },
): Promise<void> {
  const { graceSec, force } = run.input;
  switch (action) {
    case "start":
      return startContainer(run);
    case "stop":
      return haltContainer(run, action, () => lxc.stop({}, run.writing));
    case "shutdown":
      return haltContainer(run, action, () => lxc.shutdown({ timeoutSec: graceSec, forceStop: force }, run.writing));
    case "reboot":
      if (status === "stopped" && run.operation.step === undefined) return startContainer(run);
      if (await hasRebooted(run, lxc)) return;
      return runTask(run, {
        step: "reboot",
        kind: "reboot",
        type: "vzreboot",
        start: () => lxc.reboot({ timeoutSec: graceSec }, run.writing),
      });
    default:
      throw unreachable(action);
  }
}

/** Whether a reboot whose answer was lost has happened all the same: the container is younger than the request. */
async function hasRebooted(run: Run<"power">, lxc: LxcApi): Promise<boolean> {
  const begun = run.operation.step;
  if (begun?.name !== "reboot" || begun.open !== true || begun.upid !== undefined) return false;
  const { status, uptime } = await lxc.status(run.call);
  return status === "running" && uptime !== undefined && uptime * 1_000 < Date.now() - begun.at;
}
