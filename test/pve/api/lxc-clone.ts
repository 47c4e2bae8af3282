import { check, checkBridge, has } from "../access.ts";
import type { Snapshot } from "../config-file.ts";
import type { Container } from "../container.ts";
import { parseProperties, parseSize, printNetwork } from "../property-string.ts";
import { forbidden, refuse } from "../refusal.ts";
import { type Call, flagOf, type Route, route, vmidOf } from "../router.ts";
import { CLONE } from "../schema/lxc.ts";
import { GIB, MIB, type Storage, type Volume } from "../storage.ts";
import { isInterrupted, type Task } from "../task.ts";

/** A linked clone's own blocks right after it was made. */
const LINKED_BYTES = 36 * MIB;

interface Plan {
  source: Container;
  target: Container;
  values: ReadonlyMap<string, string>;
  snapshot: Snapshot | undefined;
  full: boolean;
  disks: { key: string; value: string; from: Volume; to: Storage }[];
}

export const cloneRoutes: Route[] = [
  route("POST", "/nodes/{node}/lxc/{vmid}/clone", { pace: "task", rules: CLONE, allow: allowClone }, clone),
];

function allowClone(call: Call): void {
  const { world, by, params } = call;
  check(world, by, `/vms/${params["vmid"]}`, "VM.Clone");
  const onVmid = has(world, by, `/vms/${params["newid"]}`, "VM.Allocate");
  const onPool = params["pool"] !== undefined && has(world, by, `/pool/${params["pool"]}`, "VM.Allocate");
  if (!onVmid && !onPool) throw forbidden();
}

async function clone(call: Call): Promise<string> {
  const { world, params, node } = call;
  const vmid = vmidOf(call);
  const newid = vmidOf(call, "newid");
  checkPlace(call);
  world.checkQuorum();
  const source = await lockSource(call, vmid);
  let target: Container;
  try {
    target = world.claim(newid, node.name, source.traits);
  } catch (error) {
    source.config.set("lock", undefined);
    throw error;
  }
  let plan: Plan;
  try {
    plan = prepare(call, source, target);
  } catch (error) {
    source.config.set("lock", undefined);
    world.forget(target);
    throw error;
  }
  // 9.x now and then fails here, with both locks set and nobody left to clear them.
  if (call.noWorker) throw refuse("got no worker upid - start worker failed");
  const facts = { type: "vzclone", id: vmid, node, by: call.by, arrivedAt: call.arrivedAt, target: newid };
  return world.fork(facts, (task) => work(call, task, plan, params["pool"])).upid;
}

/** Pool, target node and storage are looked at before anything is locked. */
function checkPlace({ world, params, node }: Call): void {
  const { pool, target, storage } = params;
  if (pool !== undefined && !world.pools.has(pool)) throw forbidden(`pool '${pool}' does not exist`);
  const elsewhere = target !== undefined && target !== node.name;
  if (elsewhere) world.node(target);
  if (storage === undefined) return;
  if (![...world.nodes.values()].some((other) => other.storages.has(storage))) {
    throw refuse(`storage '${storage}' does not exist`);
  }
  if (!node.storages.has(storage)) throw refuse(`storage '${storage}' is not available on node '${node.name}'`);
  if (!elsewhere) return;
  if (!world.node(target).storages.has(storage))
    throw refuse(`storage '${storage}' is not available on node '${target}'`);
  if (!node.storages.get(storage)?.shared) throw refuse(`can't clone to non-shared storage '${storage}'`);
}

/** One clone at a time per source: the others are refused at once. */
async function lockSource({ world, node }: Call, vmid: number): Promise<Container> {
  const source = world.container(node.name, vmid);
  return source.fileLock.hold(
    () => {
      world.container(node.name, vmid).checkLock();
      source.config.set("lock", "disk");
      return source;
    },
    { timeoutMs: world.timings.lockTimeout, signal: world.closing },
  );
}

function prepare(call: Call, source: Container, target: Container): Plan {
  const { world, params, node } = call;
  const { snapname } = params;
  const full = params["full"] === undefined ? !source.template : flagOf(call, "full");
  if (params["storage"] !== undefined && !full) throw refuse("parameter 'storage' not allowed for linked clones");
  const snapshot = snapname === undefined ? undefined : source.config.snapshots.get(snapname);
  if (snapname !== undefined && snapshot === undefined) throw refuse(`snapshot '${snapname}' does not exist`);
  const values = snapshot?.values ?? source.config.values;
  const disks: Plan["disks"] = [];
  let shared = true;
  for (const [key, value] of [...values].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (/^(unused\d+|lock|template|snaptime|parent)$/.test(key)) continue;
    if (key === "rootfs" || /^mp\d+$/.test(key)) {
      const disk = planDisk(call, { source, key, value, full, snapshot: snapshot !== undefined });
      if (!disk.to.shared) shared = false;
      disks.push(disk);
      continue;
    }
    if (/^net\d+$/.test(key)) checkBridge(world, call.by, value);
    target.config.set(key, /^net\d+$/.test(key) ? withNewMac(world.newMac(), value) : value);
  }
  if (params["target"] !== undefined && params["target"] !== node.name && !shared) {
    throw refuse(`can't clone CT to node '${params["target"]}' (CT uses local storage)`);
  }
  target.config.set("lock", "create");
  if (params["hostname"]) target.config.set("hostname", params["hostname"]);
  if (params["description"]) target.config.set("description", params["description"]);
  // Its file is copied whole.
  for (const [key, value] of source.firewall) target.firewall.set(key, value);
  target.firewallRules.push(...source.firewallRules.map((rule) => ({ ...rule })));
  world.see(target);
  return { source, target, values, snapshot, full, disks };
}

function planDisk(
  { world, params, by, node }: Call,
  disk: { source: Container; key: string; value: string; full: boolean; snapshot: boolean },
): Plan["disks"][number] {
  const volid = disk.value.split(",")[0] ?? "";
  const from = world.volume(volid);
  if (from === undefined) throw refuse(`unable to clone mountpoint '${disk.key}' (type bind)`);
  const to = node.storages.get(params["storage"] ?? from.storage.name) ?? from.storage;
  check(world, by, `/storage/${to.name}`, "Datastore.AllocateSpace");
  if (disk.full) {
    if (disk.source.running && !disk.snapshot) throw refuse(runningText(world.version));
  } else if (!canLink(from.storage, disk)) {
    throw refuse(`Linked clone feature for '${volid}' is not available`);
  }
  return { key: disk.key, value: disk.value, from, to };
}

function canLink({ can }: Storage, disk: { source: Container; snapshot: boolean }): boolean {
  return disk.snapshot ? can.linkedOfSnapshot : can.linked && (can.linkedOfAny || disk.source.template);
}

function runningText(version: string): string {
  return version === "9.2"
    ? "Full clone of a running container is only possible from a snapshot"
    : "Cannot do full clones on a running container without snapshots";
}

function withNewMac(mac: string, value: string): string {
  const network = parseProperties(value);
  network.set("hwaddr", mac);
  return printNetwork(network);
}

async function work(call: Call, task: Task, plan: Plan, pool: string | undefined): Promise<void> {
  const { world, node, guests } = call;
  const made: Volume[] = [];
  if (world.version === "9.2")
    task.log(`creating a clone of container ${plan.source.vmid} with ID ${plan.target.vmid}`);
  try {
    for (const disk of plan.disks) {
      const what = plan.full ? "create full clone of mountpoint" : "create linked clone of mount point";
      task.log(`${what} ${disk.key} (${disk.from.volid})`);
      made.push(copyVolume(plan, disk));
    }
    const ms = world.takes(plan.full ? world.timings.cloneFull : world.timings.cloneLinked);
    await task.spend(ms, plan.full ? node.load : undefined);
    await guests.copyDisk(plan.source, plan.target, plan.snapshot?.name);
  } catch (error) {
    await giveUp(call, task, { plan, made, error });
  }
  plan.source.config.set("lock", undefined);
  for (const [index, volume] of made.entries()) {
    const disk = plan.disks[index];
    if (disk !== undefined) plan.target.config.set(disk.key, withVolume(disk.value, volume.volid));
  }
  if (pool !== undefined) world.pools.get(pool)?.members.add(plan.target.vmid);
  plan.target.config.set("lock", undefined);
  const { target } = call.params;
  if (target !== undefined && target !== node.name && world.containers.get(plan.target.vmid) === plan.target) {
    world.move(plan.target, target);
  }
  world.see(plan.target);
}

/** A clone that fails or is interrupted cleans up after itself; one that is killed, or told to, leaves its locks. */
async function giveUp(
  call: Call,
  task: Task,
  { plan, made, error }: { plan: Plan; made: Volume[]; error: unknown },
): Promise<never> {
  const { world } = call;
  if (isInterrupted(error) && error.how === "kill") throw error;
  if (task.doomed?.leaveLocks) throw error;
  plan.source.config.set("lock", undefined);
  for (const volume of made) volume.storage.remove(volume.volid);
  world.forget(plan.target);
  throw new Error(`clone failed: ${error instanceof Error ? error.message : String(error)}`);
}

function copyVolume(plan: Plan, disk: Plan["disks"][number]): Volume {
  const owner = plan.target.vmid;
  const { from, to } = disk;
  const storage = plan.full ? to : from.storage;
  const index = plan.disks.indexOf(disk);
  const volid = plan.full ? storage.volid(owner, index) : storage.linkedVolid(owner, index, from.volid);
  const usedBytes = plan.full ? from.usedBytes + (from.parent === undefined ? 0 : GIB) : LINKED_BYTES;
  if (!storage.hasRoom(usedBytes)) throw new Error(storage.fullText(`vm-${owner}-disk-${index}`));
  const sizeBytes = parseSize(parseProperties(disk.value, "volume").get("size") ?? "") ?? from.sizeBytes;
  const volume: Volume = {
    volid,
    storage,
    owner,
    sizeBytes,
    usedBytes: Math.min(usedBytes, sizeBytes),
    format: from.format,
    createdAt: Date.now(),
    // A linked clone of a snapshot is nobody's child where it is a thin volume or subvolume of its own.
    ...(plan.full || (plan.snapshot && from.storage.type !== "rbd") ? {} : { parent: from.volid }),
  };
  storage.add(volume);
  return volume;
}

function withVolume(value: string, volid: string): string {
  return [volid, ...value.split(",").slice(1)].join(",");
}
