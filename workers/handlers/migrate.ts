import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { reserve, unreserve } from "../../shared/placement/reservation.ts";
import type { Command } from "../../shared/state/operations.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call, LxcConfig, Params } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { chooseTarget } from "../sandbox/choose-target.ts";
import { containerOf, lookAt, ownContainer, type Place, placeOf } from "../sandbox/look.ts";
import { startContainer } from "../sandbox/power.ts";
import { awaitOwnReady } from "../sandbox/ready.ts";
import { toReservation } from "../sandbox/reservation.ts";
import { readStanding, tellStanding } from "../sandbox/standing.ts";
import { hasEnded, runTask, wasRefused } from "../sandbox/task.ts";
import type { Ending, Handler } from "./handler.ts";

export const migrate: Handler<"migrate"> = {
  async run(run) {
    await followMoved(run);
    const { place, config } = await ownContainer(run);
    const { before = await readStanding(run, run.call), from = place.node } = run.operation;
    if (before === "paused") {
      throw new FleetError(
        "not_movable",
        `sandbox ${run.sandbox.id} is paused, which can't be shut down; resume or stop it`,
        {
          facts: { sandbox: run.sandbox.id, ...place },
        },
      );
    }
    const isThere = run.operation.target === place.node || run.input.target === place.node;
    if (!isThere) await move(run, { place, config, before });
    return arrive(run, { from, before });
  },

  async undo(run) {
    const { target, from } = run.operation;
    if (target === undefined) return { undone: [] };
    const call = run.undoing();
    const isThere = await followMoved(run, call);
    await startAgain(run, call);
    const { write = {}, undone } = await tellStanding(run);
    const other = isThere ? from : target;
    const also = other === undefined ? [] : unreserve(run.context.keys, other, run.sandbox.id);
    return { undone, write: { ...write, also: [...(write.also ?? []), ...also] } };
  },
};

/** A move that was interrupted hard leaves it shut down. */
async function startAgain(run: Run<"migrate">, call: Call): Promise<void> {
  if (run.operation.before !== "running") return;
  const { lxc } = containerOf(run);
  if ((await lxc.status(call)).status === "running") return;
  try {
    await run.context.tasks.wait(await lxc.start(call), { signal: call.signal, kind: "start" });
  } catch (error) {
    if (!(error instanceof FleetError) || error.code === "lock_lost") throw error;
    run.log.warn({ code: error.code }, "could not start it again after a move that was canceled");
  }
}

interface Standing {
  place: Place;
  config: LxcConfig;
  before: "running" | "stopped";
}

/** Shut down by PVE, moved, and started there. */
async function move(run: Run<"migrate">, { place, config, before }: Standing): Promise<void> {
  const { context, input, sandbox } = run;
  // What was asked for and may be under way goes where it was sent.
  const { step, target: sent } = run.operation;
  const target = step?.open === true && sent !== undefined ? sent : await chooseTarget(run, { place, config });
  const { keys, pve } = context;
  // In one order for all, since two that move in opposite directions need the same two.
  const nodes = [place.node, target].sort();
  const withSlots = (rest: readonly string[]): Promise<void> => {
    const [node, ...others] = rest;
    if (node === undefined) return ask();
    return run.withSlot(slotOf.node(node), context.config.FLEET_NODE_SLOTS, () => withSlots(others));
  };
  const params: Params = {
    target,
    restart: before === "running",
    timeout: input.graceSec,
    "target-storage": input.targetStorage,
    bwlimit: input.bwlimitKib,
  };
  const ask = async () => {
    try {
      await runTask(run, {
        step: "migrate",
        kind: "migrate",
        type: "vzmigrate",
        write: {
          operation: { before, from: place.node, target },
          also: reserve(keys, target, sandbox.id, toReservation(config)),
        },
        start: () => pve.lxc(place.node, place.vmid).migrate(params, run.writing),
      });
    } catch (error) {
      // Its fate is not known: the next attempt, or the undo, finds it. Where it is, it may have moved all the same: PVE
      // starts it on the target as the last part of the task.
      if (!wasRefused(error) && !hasEnded(error)) throw error;
      if (await followMoved(run)) return;
      await run.write({ also: unreserve(keys, target, sandbox.id) });
      throw explain(error, place);
    }
    if (!(await followMoved(run))) {
      throw new FleetError("container_missing", `container ${place.vmid} is not on ${target} after its move`, {
        facts: { ...place, target },
      });
    }
  };
  await withSlots(nodes);
}

/** What PVE's log gave as the reason, where that is nothing that we know. */
function explain(error: unknown, place: Place): unknown {
  if (!(error instanceof FleetError) || error.code !== "task_failed") return error;
  return new FleetError("not_movable", `PVE could not move container ${place.vmid}: ${error.text}`, {
    cause: error,
    facts: { ...error.facts, ...place },
  });
}

/** Where its container stands on the node that it was moved to, the record follows. Returns whether it is there. */
async function followMoved(run: Run<"migrate">, call: Call = run.call): Promise<boolean> {
  const { target, from } = run.operation;
  const known = placeOf(run.sandbox);
  if (target === undefined || known === null) return false;
  if (known.node === target) return true;
  const sight = await lookAt(run, { ...known, node: target }, call);
  if (sight.is !== "ours") return false;
  const { keys } = run.context;
  const also = [...unreserve(keys, from ?? known.node, run.sandbox.id), ...(await snapshotsFollow(run, target))];
  await run.write({ sandbox: { node: target }, also });
  return true;
}

async function snapshotsFollow({ context, sandbox }: Run, node: NodeName): Promise<Command[]> {
  const snapshots = await context.redis.smembers(context.keys.sandboxSnapshots(sandbox.id));
  return snapshots.map((id) => ["HSET", context.keys.snapshot(id), "node", node]);
}

async function arrive(
  run: Run<"migrate">,
  { from, before }: { from: NodeName; before: "running" | "stopped" },
): Promise<Ending<"migrate">> {
  const { place } = await ownContainer(run);
  if (before === "stopped") return { result: { from, ...place, state: before } };
  const isUp = (await readStanding(run, run.call)) !== "stopped";
  if (!isUp) {
    await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, () => startContainer(run));
  }
  const address = await awaitOwnReady(run);
  return { result: { from, ...place, state: before, address }, write: { sandbox: { state: before, address } } };
}
