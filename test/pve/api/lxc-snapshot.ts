import { check, checkAny } from "../access.ts";
import { valuesToJson } from "../config-file.ts";
import type { Container } from "../container.ts";
import { refuse } from "../refusal.ts";
import { type Call, flagOf, type Route, route, vmidOf } from "../router.ts";
import { NODE, optional, SNAPNAME, VMID } from "../schema/lxc.ts";
import type { Rule, Rules } from "../schema/rules.ts";
import type { Task } from "../task.ts";
import { bringUp, locked } from "./lxc-power.ts";

const flag: Rule = { type: "boolean" };
const base: Rules = { node: NODE, vmid: VMID };
const named: Rules = { ...base, snapname: SNAPNAME };
const path = "/nodes/{node}/lxc/{vmid}/snapshot";
const audit = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Audit");
const take = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Snapshot");
const back = (call: Call) =>
  checkAny(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Snapshot", "VM.Snapshot.Rollback");

export const snapshotRoutes: Route[] = [
  route("GET", path, { daemon: true, rules: base, allow: audit }, list),
  route("POST", path, { pace: "task", rules: { ...named, description: { type: "string" } }, allow: take }, create),
  route("GET", `${path}/{snapname}`, { rules: named }, () => [{ cmd: "rollback" }, { cmd: "config" }]),
  route("DELETE", `${path}/{snapname}`, { pace: "task", rules: { ...named, force: flag }, allow: take }, remove),
  route("GET", `${path}/{snapname}/config`, { rules: named, allow: back }, (call) =>
    valuesToJson(snapshotOf(call).values),
  ),
  route(
    "PUT",
    `${path}/{snapname}/config`,
    { rules: { ...named, description: { type: "string" } }, allow: take },
    describe,
  ),
  route(
    "POST",
    `${path}/{snapname}/rollback`,
    { pace: "task", rules: { ...named, start: flag }, allow: back },
    rollback,
  ),
  route(
    "GET",
    "/nodes/{node}/lxc/{vmid}/feature",
    {
      daemon: true,
      rules: {
        ...base,
        feature: { type: "string", required: true, values: ["snapshot", "clone", "copy"] },
        snapname: optional(SNAPNAME),
      },
      allow: audit,
    },
    feature,
  ),
];

function snapshotOf(call: Call) {
  const name = call.params["snapname"] ?? "";
  const snapshot = call.world.container(call.node.name, vmidOf(call)).config.snapshots.get(name);
  if (snapshot === undefined) throw refuse(`snapshot '${name}' does not exist`);
  return snapshot;
}

function list(call: Call): unknown[] {
  const container = call.world.container(call.node.name, vmidOf(call));
  const { config } = container;
  const shown: unknown[] = [...config.snapshots.values()].map(({ name, takenAt, description, parent, state }) => ({
    name,
    snaptime: takenAt,
    description,
    ...(parent === undefined ? {} : { parent }),
    ...(state === undefined ? {} : { snapstate: state }),
  }));
  const parent = config.parent === undefined ? {} : { parent: config.parent };
  shown.push({
    name: "current",
    description: "You are here!",
    digest: config.digest,
    running: container.running ? 1 : 0,
    ...parent,
  });
  return shown;
}

function describe(call: Call): null {
  const snapshot = snapshotOf(call);
  const container = call.world.container(call.node.name, vmidOf(call));
  container.checkLock();
  const { description } = call.params;
  if (description !== undefined) {
    snapshot.description = description === "" ? "" : `${description}\n`;
    if (description === "") snapshot.values.delete("description");
    else snapshot.values.set("description", `${description}\n`);
    container.config.touch();
  }
  return null;
}

/** Can every volume of the container do this? */
function able(call: Call, container: Container, what: string, ofSnapshot = false): boolean {
  return call.world.volumesOf(container).every(({ storage: { can } }) => {
    if (what === "snapshot") return can.snapshot;
    if (what === "clone" && ofSnapshot) return can.linkedOfSnapshot;
    if (what === "clone") return can.linked && (can.linkedOfAny || container.template);
    return true;
  });
}

function feature(call: Call): unknown {
  const container = call.world.container(call.node.name, vmidOf(call));
  const { snapname, feature: what = "" } = call.params;
  if (snapname !== undefined) snapshotOf(call);
  return { hasFeature: able(call, container, what, snapname !== undefined) ? 1 : 0 };
}

function fork(call: Call, type: string, body: (task: Task, container: Container) => Promise<void>): string {
  const { world, node, by, arrivedAt } = call;
  const vmid = vmidOf(call);
  return world.fork({ type, id: vmid, node, by, arrivedAt }, (task) => body(task, world.container(node.name, vmid)))
    .upid;
}

interface Steps {
  prepare: () => void;
  work: () => Promise<void>;
  commit: () => void;
  /** What is done after an error; without it the lock stays, as AbstractConfig leaves it where a deletion or a rollback fails. */
  cleanup?: () => void;
}

/** The config lock stands while the volumes are worked on; the file lock is held at the beginning and the end only. */
async function withConfigLock(
  call: Call,
  { task, container, lock }: { task: Task; container: Container; lock: string },
  { prepare, work, commit, cleanup }: Steps,
): Promise<void> {
  const { world } = call;
  await locked(world, task, container, () => {
    prepare();
    container.config.set("lock", lock);
  });
  let failure: unknown;
  try {
    await work();
  } catch (error) {
    // A killed worker leaves its lock behind, and so does one that was told to.
    if (!(error instanceof Error) || "how" in error || task.doomed?.leaveLocks || cleanup === undefined) throw error;
    failure = error;
  }
  await locked(world, task, container, () => {
    container.config.set("lock", undefined);
    if (failure === undefined) commit();
    else cleanup?.();
  });
  if (failure !== undefined) throw failure;
}

function create(call: Call): string {
  const { world, guests } = call;
  const { snapname = "", description } = call.params;
  if (snapname === "current" || snapname === "vzdump") {
    throw refuse(`unable to use snapshot name '${snapname}' (reserved name)`);
  }
  return fork(call, "vzsnapshot", async (task, container) => {
    const { config } = container;
    await withConfigLock(
      call,
      { task, container, lock: "snapshot" },
      {
        prepare: () => {
          if (container.template) throw refuse("you can't take a snapshot if it's a template");
          container.checkLock();
          world.checkQuorum();
          if (config.snapshots.has(snapname)) throw refuse(`snapshot name '${snapname}' already used`);
          if (!able(call, container, "snapshot")) throw refuse("snapshot feature is not available");
          addSnapshot(container, snapname, description);
        },
        work: async () => {
          await task.spend(world.takes(world.timings.snapshot));
          await guests.snapshotDisk(container, snapname);
          // A running container is frozen for it, and thawed afterwards even if it was frozen before.
          guests.unfreeze(container);
        },
        commit: () => {
          delete config.snapshots.get(snapname)?.state;
          config.parent = snapname;
        },
        cleanup: () => dropSnapshot(container, snapname),
      },
    );
  });
}

function addSnapshot(container: Container, name: string, text: string | undefined): void {
  const { config } = container;
  const takenAt = Math.floor(Date.now() / 1000);
  const description = text ? `${text.replace(/\n+$/, "")}\n` : "";
  const values = new Map(config.values);
  values.delete("lock");
  values.delete("description");
  if (description !== "") values.set("description", description);
  values.set("snaptime", String(takenAt));
  const parent = config.parent;
  if (parent !== undefined) values.set("parent", parent);
  const about = { name, takenAt, description, values, state: "prepare" as const };
  config.snapshots.set(name, { ...about, ...(parent === undefined ? {} : { parent }) });
  config.touch();
}

function remove(call: Call): string {
  const { world, guests } = call;
  const { snapname = "" } = call.params;
  return fork(call, "vzdelsnapshot", async (task, container) => {
    const { config } = container;
    let isWhole = true;
    await withConfigLock(
      call,
      { task, container, lock: "snapshot-delete" },
      {
        prepare: () => {
          container.checkLock();
          world.checkQuorum();
          const snapshot = config.snapshots.get(snapname);
          if (snapshot === undefined) throw refuse(`snapshot '${snapname}' does not exist`);
          isWhole = snapshot.state === undefined;
          snapshot.state = "delete";
          config.touch();
        },
        work: async () => {
          await task.spend(world.takes(world.timings.deleteSnapshot));
          // Of what was never finished, or deleted already, the storage knows nothing.
          const [volume] = world.volumesOf(container);
          if (!isWhole && !flagOf(call, "force"))
            throw new Error(
              `lvremove 'pve/snap_${volume?.volid.split(":")[1]}_${snapname}' error: Failed to find logical volume`,
            );
          await guests.dropSnapshot(container, snapname);
        },
        commit: () => dropSnapshot(container, snapname),
      },
    );
  });
}

function dropSnapshot({ config }: Container, name: string): void {
  const parent = config.snapshots.get(name)?.parent;
  config.snapshots.delete(name);
  for (const other of config.snapshots.values()) {
    if (other.parent !== name) continue;
    if (parent === undefined) delete other.parent;
    else other.parent = parent;
  }
  if (config.parent === name) config.parent = parent;
  config.touch();
}

/** Stops the container and leaves it stopped; `start=1` starts it in a task of its own. */
function rollback(call: Call): string {
  const { world, node, guests, by } = call;
  const { snapname = "" } = call.params;
  return fork(call, "vzrollback", async (task, container) => {
    const { config } = container;
    await withConfigLock(
      call,
      { task, container, lock: "rollback" },
      {
        prepare: () => {
          if (container.template) throw refuse("you can't rollback if it's a template");
          world.checkQuorum();
          if (!config.snapshots.has(snapname)) throw refuse(`snapshot '${snapname}' does not exist`);
          checkNewest(call, container, snapname);
          const { state } = snapshotOf(call);
          if (state) throw refuse(`unable to rollback to incomplete snapshot (snapstate = ${state})`);
          container.checkLock();
        },
        work: async () => {
          // 1.3 s were seen with a running container, 0.25 s with a stopped one.
          const share = container.running ? 1 : 0.2;
          await task.spend(world.takes(world.timings.rollback * share), container.running ? node.load : undefined);
          await guests.stop(container);
          await guests.rollbackDisk(container, snapname);
        },
        commit: () => restore(container, snapname),
      },
    );
    world.see(container);
    if (!flagOf(call, "start")) return;
    world.fork({ type: "vzstart", id: container.vmid, node, by, arrivedAt: task.clock }, (next) =>
      locked(world, next, container, () =>
        bringUp(world, guests, { task: next, container, ms: world.takes(world.timings.start), load: node.load }),
      ),
    );
  });
}

/** ZFSPoolPlugin::volume_rollback_is_possible */
function checkNewest({ world }: Call, container: Container, name: string): void {
  const volume = world.volumesOf(container).find(({ storage }) => storage.can.newestOnly);
  const names = [...container.config.snapshots.keys()];
  if (volume === undefined || names.at(-1) === name) return;
  throw refuse(`can't rollback, '${name}' is not most recent snapshot on '${volume.volid}'`);
}

function restore({ config }: Container, name: string): void {
  const snapshot = config.snapshots.get(name);
  if (snapshot === undefined) return;
  const description = config.get("description");
  for (const key of [...config.values.keys()]) config.set(key, undefined);
  for (const [key, value] of snapshot.values) {
    if (!/^(snaptime|parent|description)$/.test(key)) config.set(key, value);
  }
  // The current description stays; it is not part of what a snapshot brings back.
  if (description !== undefined) config.set("description", description);
  config.parent = name;
}
