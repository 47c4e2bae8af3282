import { FleetError } from "../../shared/errors.ts";
import { newSnapshotId, SnapshotId } from "../../shared/ids.ts";
import { GIB } from "../../shared/placement/capacity.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import type { SnapshotRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call, LxcApi } from "../pve/api.ts";
import { parseMount, storageOf } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { rootfsGib } from "../sandbox/configure-clone.ts";
import { containerOf, ownContainer } from "../sandbox/look.ts";
import { findWhole, forgetCommands, keepPaused, removeRecorded, removeSnapshot } from "../sandbox/snapshots.ts";
import { storageTypes } from "../sandbox/storage-types.ts";
import { runTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const snapshot: Handler<"snapshot"> = {
  async run(run) {
    const { place, lxc } = await ownContainer(run);
    const name = nameOf(run);
    const { step } = run.operation;
    // An earlier run's task first: PVE lists a snapshot while it is still being taken.
    const isTaking = step?.name === TAKE && step.open === true && step.upid !== undefined;
    const mine = isTaking ? null : await findOwn(run, run.call);
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
    const removed = await removeOldest(run);
    const createdAt = Date.now();
    const expiresAt = expiryOf(run, createdAt);
    const { branch } = run.input;
    const { execToken } = await run.context.secrets.get(sandbox);
    const about = { ...(await readFacts(run, name)), branch, createdAt, expiresAt };
    const record = encodeFields({ id: snapshotId, sandbox, team, ...place, name, ...about });
    return {
      result: {
        snapshotId,
        name,
        ...place,
        ...(expiresAt === undefined ? {} : { expiresAt }),
        removed: removed.map(({ id }) => id),
        execd: execToken !== undefined,
      },
      write: {
        also: [
          ["HSET", keys.snapshot(snapshotId), ...record.set],
          ["SADD", keys.sandboxSnapshots(sandbox), snapshotId],
          ...(expiresAt === undefined ? [] : [["ZADD", keys.snapshotExpiries, expiresAt, snapshotId]]),
          ...(branch === undefined ? [] : [["HSET", keys.branches, snapshotId, branch]]),
          ...removed.flatMap((one) => forgetCommands(keys, one)),
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

const TAKE = "snapshot";

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
      step: TAKE,
      kind: "snapshot",
      type: "vzsnapshot",
      start: () => lxc.snapshot(name, { description }, run.writing),
    }),
  );
}

/** Deletes those that are too many. One that can't be deleted stays, and is tried again with the next snapshot. */
async function removeOldest(run: Run<"snapshot">): Promise<SnapshotRecord[]> {
  const { redis, keys, store, config } = run.context;
  const kept = run.input.keepLast ?? config.FLEET_SNAPSHOTS_KEPT;
  if (kept === undefined || run.input.branch !== undefined) return [];
  const ids = await redis.smembers(keys.sandboxSnapshots(run.sandbox.id));
  const records = await Promise.all(ids.map((id) => store.loadSnapshot(id)));
  const oldest = records
    .filter((one) => one !== null)
    .filter(({ branch }) => branch === undefined)
    .sort((a, b) => a.createdAt - b.createdAt);
  const removed: SnapshotRecord[] = [];
  for (const one of oldest.slice(0, Math.max(0, oldest.length - (kept - 1)))) {
    try {
      await removeRecorded(run, one);
      removed.push(one);
    } catch (error) {
      if (!(error instanceof FleetError) || error.policy !== "never") throw error;
      run.check();
      run.log.warn({ code: error.code, facts: error.facts, snapshot: one.id }, "could not delete an old snapshot");
    }
  }
  return removed;
}

/** Of storages that keep a linked clone of a snapshot whole without it: LVM-thin's are thin volumes of their own, btrfs' subvolumes. */
const INDEPENDENT: ReadonlySet<string | undefined> = new Set(["lvmthin", "btrfs"]);

/** What placement and the clone want to know of it. */
async function readFacts(run: Run<"snapshot">, snapname: string) {
  const { place, lxc, config } = await ownContainer(run);
  const rootfs = config.rootfs === undefined ? undefined : parseMount(config.rootfs);
  const storage = rootfs && storageOf(rootfs.volume);
  const types = storageTypes(run.context.inventory.current(), place.node, config);
  const linkable = types.every((type) => INDEPENDENT.has(type)) && (await lxc.feature("clone", { snapname }, run.call));
  return {
    storage: linkable ? storage : undefined,
    diskBytes: (rootfsGib(config) ?? 0) * GIB,
    memoryMib: config.memory ?? 512,
  };
}

function expiryOf({ input, context }: Run<"snapshot">, now: number): number | undefined {
  const { FLEET_SNAPSHOT_MAX_AGE_HOURS: hours } = context.config;
  const ages = [input.maxAgeSeconds, hours === undefined ? undefined : hours * 3_600].filter(
    (one) => one !== undefined,
  );
  return ages.length === 0 ? undefined : now + Math.min(...ages) * 1_000;
}

/** The id of the snapshot that this operation took, read from PVE. */
async function findOwn(run: Run<"snapshot">, call: Call): Promise<SnapshotId | null> {
  const { place } = containerOf(run);
  const one = await findWhole(run, place, { is: isOwn(run), call });
  const id = SnapshotId.safeParse(one?.description?.split(/\s/)[1]);
  return id.success ? id.data : null;
}
