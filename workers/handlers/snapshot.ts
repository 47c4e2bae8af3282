import { FleetError } from "../../shared/errors.ts";
import { newSnapshotId, SnapshotId } from "../../shared/ids.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call, LxcApi } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { containerOf, ownContainer } from "../sandbox/look.ts";
import { findSnapshot, keepPaused, removeSnapshot } from "../sandbox/snapshots.ts";
import { runTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const snapshot: Handler<"snapshot"> = {
  async run(run) {
    const { place, lxc } = await ownContainer(run);
    const name = nameOf(run);
    // An earlier run's task first: PVE lists a snapshot while it is still being taken.
    const mine =
      run.operation.step?.open !== true || run.operation.step.upid === undefined ? await findOwn(run, run.call) : null;
    if (mine === null) await take(run, lxc, name);
    await keepPaused(run, run.sandbox, run.writing);
    // The id is part of what PVE keeps, so that a lost record finds the same one again.
    const snapshotId = mine ?? (await findOwn(run, run.call));
    if (snapshotId === null)
      throw new FleetError("task_failed", "PVE reports the snapshot as taken, but it is not there", {
        facts: { ...place },
      });
    const { keys } = run.context;
    const { team, id: sandbox } = run.sandbox;
    const record = encodeFields({ id: snapshotId, sandbox, team, ...place, name, createdAt: Date.now() });
    return {
      result: { snapshotId, name, ...place },
      write: {
        also: [
          ["HSET", keys.snapshot(snapshotId), ...record.set],
          ["SADD", keys.sandboxSnapshots(sandbox), snapshotId],
        ],
      },
    };
  },

  /** A snapshot that nobody was told of is removed. */
  async undo(run) {
    const call = run.undoing();
    const { place } = containerOf(run);
    if (run.operation.step !== undefined) await keepPaused(run, run.sandbox, call);
    return { undone: (await removeSnapshot(run, place, { is: isOwn(run), call })) ? ["snapshot"] : [] };
  },
};

const isOwn =
  ({ id }: Run<"snapshot">) =>
  ({ description }: { description?: string | undefined }) =>
    description?.startsWith(`${id} `);

const nameOf = (run: Run<"snapshot">) => run.input.name ?? `s-${run.id.slice(3)}`;

async function take(run: Run<"snapshot">, lxc: LxcApi, name: string): Promise<void> {
  const { place } = containerOf(run);
  if (!(await lxc.feature("snapshot", {}, run.call))) {
    throw new FleetError("snapshot_unsupported", "the container's storage can't take snapshots", {
      facts: { ...place },
    });
  }
  const mark = `${run.id} ${newSnapshotId()}`;
  const description = run.input.description === undefined ? mark : `${mark}\n${run.input.description}`;
  await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, () =>
    runTask(run, {
      step: "snapshot",
      kind: "snapshot",
      type: "vzsnapshot",
      start: () => lxc.snapshot(name, { description }, run.writing),
    }),
  );
}

/** The id of the snapshot that this operation took, read from PVE. */
async function findOwn(run: Run<"snapshot">, call: Call): Promise<SnapshotId | null> {
  const { place } = containerOf(run);
  const one = await findSnapshot(run, place, { is: isOwn(run), call });
  const id = SnapshotId.safeParse(one?.description?.split(/\s/)[1]);
  return id.success ? id.data : null;
}
