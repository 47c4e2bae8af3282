/** The first promise, checked for one fleet after a kill: each finding is one line for people. */
import type { Handle, JobName } from "../../../producers/index.ts";
import type { RedisConnection } from "../../../shared/redis/connect.ts";
import { readEvents } from "../../../shared/state/events.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import type { LogEntry } from "../../pve/index.ts";
import { leaksOfFleet } from "../fleet/leaks.ts";
import { isOf, type Killed, type KillFleet } from "./kill-fleet.ts";

export interface Aftermath {
  one: KillFleet;
  handle: Handle<JobName>;
  redis: RedisConnection;
  /** A request of the killed run was executed after everything else. */
  late: boolean;
}

/** `cold`: a claim for which the member did not answer within a second, as on a busy machine: it is left, and another made. */
type Ended = Killed | "cold";

/** Containers that are there in the end, and snapshots that those have. */
const KEPT: Partial<Record<Ended, number>> = { destroy: 0, template: 2, copy: 2, tidy: 2, untake: 2, cold: 2 };
const SNAPSHOTS: Partial<Record<Ended, { source: number } & Partial<Record<"made", number>>>> = {
  restore: { source: 1 },
  snapshot: { source: 1 },
  copy: { source: 1 },
};

export async function brokenPromises({ one, handle, redis, late }: Aftermath): Promise<string[]> {
  const keys = createKeys(one.prefix);
  const { vmids, pve } = one;
  const own = pve.containers().filter(({ vmid }) => vmid >= vmids.first && vmid <= vmids.last);
  const killed = one.killed === "claim" && own.length > 1 ? "cold" : one.killed;
  const view = { containers: () => own };
  const kept = KEPT[killed] ?? 1;
  const stamped = own.filter(({ config }) => config["description"]?.includes(handle.sandboxId));
  const first = Math.min(...own.map(({ vmid }) => vmid));
  const leases = await redis.hvals(keys.vmids);
  const requests = pve.log().filter(({ path }) => isOf(one, path));
  return [
    ...(own.length === kept && stamped.length === Math.min(kept, 1)
      ? []
      : [`${own.length} containers, ${stamped.length} of them ours`]),
    ...(leases.length === kept ? [] : [`${leases.length} VMIDs leased`]),
    ...own.flatMap(({ vmid, lock, snapshots }) => [
      ...(lock === undefined ? [] : [`container ${vmid} is locked (${lock})`]),
      ...(snapshots.length === (SNAPSHOTS[killed]?.[vmid === first ? "source" : "made"] ?? 0)
        ? []
        : [`container ${vmid} has snapshots ${snapshots.join()}`]),
    ]),
    ...(await leaksOfFleet(redis, keys, view)),
    ...(await wrongEvents(redis, one, { handle, killed })),
    ...wrongTasks(one, killed),
    ...refusals(requests, late),
  ];
}

const STEPS = ["cloning", "configuring", "starting", "readying"];
const MADE = [...STEPS, "running"];
/** Of all sandboxes of the fleet, in their order. */
const STATES: Partial<Record<Ended, readonly string[]>> = {
  destroy: [...MADE, "destroying", "destroyed"],
  build: [...STEPS, "template"],
  template: [...MADE, ...STEPS, "template"],
  copy: [...MADE, ...MADE],
  tidy: [...MADE, ...MADE],
  untake: [...MADE, ...MADE],
  replicate: ["cloning", "configuring", "template"],
  archive: ["cloning", "configuring", "template"],
  fill: [...STEPS, "warm"],
  claim: [...STEPS, "warm", "claimed", "running"],
  cold: [...STEPS, "warm", ...MADE],
};

/** One acceptance and one end an operation; each state of the sandbox once, in order. */
async function wrongEvents(
  redis: RedisConnection,
  one: KillFleet,
  { handle, killed }: { handle: Handle<JobName>; killed: Ended },
): Promise<string[]> {
  const { events } = await readEvents(redis, createKeys(one.prefix), "0", 1);
  const of = (type: string) => events.filter((event) => event.type === type && event.operation === handle.id).length;
  const states = events.flatMap((event) => (event.type === "sandbox.changed" ? [event.data.state] : []));
  // On a busy machine a connection to PVE may take too long: then nothing was asked for, and it is placed again. That
  // nothing was is seen from the tasks and refusals.
  const told = states.join().replace(/^(cloning,placing,)+/, "");
  const wanted = STATES[killed] ?? MADE;
  return [
    ...(of("operation.accepted") === 1 ? [] : [`accepted ${of("operation.accepted")} times`]),
    ...(of("operation.succeeded") === 1 ? [] : [`succeeded ${of("operation.succeeded")} times`]),
    ...(told === wanted.join() ? [] : [`the sandbox was ${states.join(", ")}`]),
  ];
}

const CLONED = ["vzclone", "vzstart"];
const BRANCHED = [...CLONED, "vzsnapshot", ...CLONED, "vzdelsnapshot"];
const TASKS: Readonly<Record<Ended, readonly string[]>> = {
  provision: CLONED,
  destroy: [...CLONED, "vzdestroy"],
  build: [...CLONED, "vzshutdown", "vztemplate"],
  snapshot: [...CLONED, "vzsnapshot", "vzsnapshot", "vzdelsnapshot"],
  restore: [...CLONED, "vzsnapshot", "vzrollback", "vzstart"],
  migrate: [...CLONED, "vzmigrate"],
  template: [...CLONED, "vzsnapshot", "vzclone", "vzdelsnapshot", "vzstart", "vzshutdown", "vztemplate"],
  copy: [...CLONED, "vzsnapshot", ...CLONED],
  tidy: BRANCHED,
  untake: BRANCHED,
  replicate: ["vzclone", "vztemplate"],
  archive: ["vzdump", "vzrestore"],
  fill: CLONED,
  claim: CLONED,
  cold: [...CLONED, ...CLONED],
};

/** Each task once, and well. */
function wrongTasks({ pve, template, vmids }: KillFleet, killed: Ended): string[] {
  const own = pve.tasks().filter(({ id, target }) => {
    const vmid = target ?? Number(id);
    return Number(id) === template.vmid || (vmid >= vmids.first && vmid <= vmids.last);
  });
  const told = own.map(({ type, exitstatus }) => (exitstatus === "OK" ? type : `${type} (${exitstatus})`));
  const wanted = TASKS[killed];
  // One that was asked for without its answer being heard is asked for again, before anything is started: see restore.ts.
  if (killed === "restore" && told.join() === [...wanted.slice(0, -1), ...wanted.slice(-2)].join()) return [];
  return told.join() === wanted.join() ? [] : [`tasks: ${told.join(", ")}`];
}

/** A change that PVE refused was asked for twice; only a request that PVE executed late may find its work done. */
function refusals(requests: readonly LogEntry[], late: boolean): string[] {
  const changes = requests.filter(({ method, fault }) => method !== "GET" && !(late && fault === "hang"));
  const refused = changes.filter(({ status }) => status >= 400);
  return refused.map(({ method, path, reason }) => `PVE refused ${method} ${path}: ${reason}`);
}
