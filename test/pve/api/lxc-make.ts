import { check, checkAny, has } from "../access.ts";
import { sleep } from "../clock.ts";
import type { Container } from "../container.ts";
import { parseProperties, parseSize, printNetwork } from "../property-string.ts";
import { forbidden, invalid, refuse } from "../refusal.ts";
import { type Call, flagOf, type Route, route, vmidOf } from "../router.ts";
import { createRules, NODE, VMID } from "../schema/lxc.ts";
import { type Backup, GIB } from "../storage.ts";
import type { Task } from "../task.ts";
import { allowChange, uniqueTags } from "./lxc-config.ts";
import { bringUp, locked } from "./lxc-power.ts";
import { allocate } from "./lxc-volume.ts";

const flag = { type: "boolean" } as const;

export const makeRoutes: Route[] = [
  route("POST", "/nodes/{node}/lxc", { pace: "create", rules: (world) => createRules(world.version) }, create),
  route(
    "DELETE",
    "/nodes/{node}/lxc/{vmid}",
    {
      pace: "task",
      rules: { node: NODE, vmid: VMID, force: flag, purge: flag, "destroy-unreferenced-disks": flag },
      allow: (call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Allocate"),
    },
    destroy,
  ),
  route(
    "POST",
    "/nodes/{node}/lxc/{vmid}/template",
    {
      pace: "task",
      rules: { node: NODE, vmid: VMID },
      allow: (call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Allocate"),
    },
    toTemplate,
  ),
];

/** Parameters of a create that are not lines of the config. */
const NOT_CONFIG = new Set(
  "node vmid ostemplate bwlimit force ignore-unpack-errors password pool restore ssh-public-keys start storage unique unprivileged rootfs".split(
    " ",
  ),
);

async function create(call: Call): Promise<string> {
  const { world, node, params, by } = call;
  const vmid = vmidOf(call);
  world.checkQuorum();
  const unprivileged = params["unprivileged"] ?? (world.version === "9.2" ? "1" : "0");
  if (unprivileged === "0" && world.version === "9.2") check(world, by, "/", "Sys.Modify");
  world.checkUnused(vmid);
  allowCreate(call, vmid);
  const storage = params["storage"] ?? "local";
  const rootfs = params["rootfs"] ?? storage;
  const rootStorage = rootfs.split(":")[0] ?? "";
  const backup = flagOf(call, "restore") ? backupOf(call, rootStorage) : undefined;
  const archives = params["ostemplate"]?.split(":")[0];
  // PVE::Storage::check_volume_access
  if (backup === undefined) checkAny(world, by, `/storage/${archives}`, "Datastore.AllocateSpace", "Datastore.Audit");
  if (!/^\d/.test(rootfs) && !node.storages.has(rootStorage)) throw refuse(`storage '${rootStorage}' does not exist`);
  // Two creates at once both come this far; the claim decides.
  await sleep(world.latency(10, 16), world.closing);
  await new Promise((resolve) => setImmediate(resolve));
  const container = claim(call, vmid, backup === undefined ? "create" : "restore");
  // PVE::LXC::Config::create_and_lock_config: all else comes once the archive is unpacked, unlike with a clone.
  container.config.set("lock", "create");
  if (call.noWorker) throw refuse("got no worker upid - start worker failed");
  const facts = {
    type: backup === undefined ? "vzcreate" : "vzrestore",
    id: vmid,
    node,
    by,
    arrivedAt: call.arrivedAt,
    target: vmid,
  };
  if (backup !== undefined)
    return world.fork(facts, (task) =>
      locked(world, task, container, () => restore(call, task, { container, storage, backup })),
    ).upid;
  const root = rootfs.includes(":") ? rootfs : /^\d/.test(rootfs) ? `${storage}:${rootfs}` : `${storage}:4`;
  return world.fork(facts, (task) =>
    locked(world, task, container, () => build(call, task, { container, root, unprivileged })),
  ).upid;
}

function allowCreate(call: Call, vmid: number): void {
  const { world, by, params } = call;
  const { pool } = params;
  if (pool !== undefined && !world.pools.has(pool)) throw forbidden(`pool '${pool}' does not exist`);
  const allowed =
    has(world, by, `/vms/${vmid}`, "VM.Allocate") ||
    (pool !== undefined && has(world, by, `/pool/${pool}`, "VM.Allocate"));
  if (!allowed) throw forbidden();
  for (const [key, value] of Object.entries(params)) if (!NOT_CONFIG.has(key)) allowChange(call, undefined, key, value);
}

/** PVE::Storage::check_volume_access; whether it is there is seen by the task. */
function backupOf(call: Call, rootStorage: string): Backup | string {
  const { world, node, by, params } = call;
  const volid = params["ostemplate"] ?? "";
  const storage = node.storages.get(volid.split(":")[0] ?? "");
  if (storage === undefined) throw refuse(`storage '${volid.split(":")[0]}' does not exist`);
  const [, owner] = /:backup\/vzdump-lxc-(\d+)-/.exec(volid) ?? [];
  if (owner === undefined) throw refuse(`${volid} is not a backup volume`);
  check(world, by, `/storage/${storage.name}`, "Datastore.AllocateSpace");
  check(world, by, `/vms/${owner}`, "VM.Backup");
  if (node.storages.get(rootStorage)?.holds("rootdir") === false)
    throw invalid({ storage: `storage '${rootStorage}' does not support container directories` });
  check(world, by, `/storage/${rootStorage}`, "Datastore.AllocateSpace");
  return storage.backups.get(volid) ?? volid;
}

/** PVE::LXC::Create::restore_configuration: what is given goes over what is saved; a template becomes one again. */
async function restore(
  call: Call,
  task: Task,
  { container, storage, backup }: { container: Container; storage: string; backup: Backup | string },
): Promise<void> {
  const { world, node, guests, params } = call;
  const { config, vmid } = container;
  try {
    if (typeof backup === "string") throw new Error(`volume '${backup}' does not exist`);
    task.log(`recovering backed-up configuration from '${backup.volid}'`);
    const disks = [...backup.values].filter(([key]) => /^(rootfs|mp\d+)$/.test(key));
    for (const [key, value] of disks) {
      const parts = parseProperties(value, "volume");
      const gib = (parseSize(parts.get("size") ?? "") ?? 4 * GIB) / GIB;
      config.set(key, allocate(call, container, `${storage}:${gib}`));
    }
    task.log(`restoring '${backup.volid}' now..`);
    await task.spend(world.takes(world.timings.restore), node.load);
    await guests.copyDisk(backup.of, container);
    task.log("merging backed-up and given configuration..");
    for (const [key, value] of Object.entries(params)) if (!NOT_CONFIG.has(key)) config.set(key, value);
    for (const [key, value] of backup.values) {
      if (/^(rootfs|mp\d+|unused\d+|template|lock|parent|digest)$/.test(key) || config.get(key) !== undefined) continue;
      const network = /^net\d+$/.test(key) && flagOf(call, "unique") ? parseProperties(value) : undefined;
      network?.set("hwaddr", world.newMac());
      config.set(key, network === undefined ? value : printNetwork(network));
    }
    if (backup.values.get("template") === "1") {
      task.log("Convert restored container to template...");
      convert(call, container);
    }
    if (params["pool"] !== undefined) world.pools.get(params["pool"])?.members.add(vmid);
    config.set("lock", undefined);
    world.see(container);
  } catch (error) {
    // Interrupted it tidies up like after any other error; killed it can't.
    if (!(error instanceof Error) || ("how" in error && error.how === "kill") || task.doomed?.leaveLocks) throw error;
    world.freeVolumes(container);
    world.forget(container);
    throw new Error(`unable to restore CT ${vmid} - ${error.message}`);
  }
}

function claim(call: Call, vmid: number, what: "create" | "restore"): Container {
  try {
    return call.world.claim(vmid, call.node.name);
  } catch (error) {
    throw refuse(`unable to ${what} CT ${vmid} - ${error instanceof Error ? error.message : error}`);
  }
}

function fill(call: Call, container: Container, unprivileged: string): void {
  const { config, vmid } = container;
  const { params, world } = call;
  config.set("arch", "amd64");
  config.set("hostname", `CT${vmid}`);
  config.set("memory", "512");
  config.set("swap", "512");
  config.set(
    "ostype",
    /(debian|ubuntu|alpine|fedora|centos|archlinux)/.exec(params["ostemplate"] ?? "")?.[1] ?? "unmanaged",
  );
  if (unprivileged === "1") config.set("unprivileged", "1");
  for (const [key, value] of Object.entries(params)) {
    if (NOT_CONFIG.has(key) || /^mp\d+$/.test(key)) continue;
    if (/^net\d+$/.test(key)) {
      const network = parseProperties(value);
      if (!network.has("hwaddr")) network.set("hwaddr", world.newMac());
      config.set(key, printNetwork(network));
    } else config.set(key, key === "tags" ? uniqueTags(value) : value);
  }
}

async function build(
  call: Call,
  task: Task,
  { container, root, unprivileged }: { container: Container; root: string; unprivileged: string },
): Promise<void> {
  const { world, node, guests, params } = call;
  const { config, vmid } = container;
  try {
    const template = params["ostemplate"] ?? "";
    if (!node.osTemplates.has(template)) {
      await task.spend(world.takes(world.timings.create / 4), node.load);
      throw new Error(`volume '${template}' does not exist`);
    }
    config.set("rootfs", allocate(call, container, root));
    for (const [key, value] of Object.entries(params)) {
      if (/^mp\d+$/.test(key)) config.set(key, allocate(call, container, value));
    }
    task.log("Creating filesystem with 262144 4k blocks and 65536 inodes");
    await task.spend(world.takes(world.timings.create * 0.9), node.load);
    // "safe config (after OS detection)": from here on without the lock, while the task goes on inside and holds the file's.
    fill(call, container, unprivileged);
    config.set("lock", undefined);
    await task.spend(world.takes(world.timings.create * 0.1), node.load);
    if (params["pool"] !== undefined) world.pools.get(params["pool"])?.members.add(vmid);
    world.see(container);
  } catch (error) {
    if (!(error instanceof Error) || "how" in error || task.doomed?.leaveLocks) throw error;
    world.freeVolumes(container);
    world.forget(container);
    throw new Error(`unable to create CT ${vmid} - ${error.message}`);
  }
  if (flagOf(call, "start")) {
    await bringUp(world, guests, { task, container, ms: world.takes(world.timings.start), load: node.load });
  }
}

function earlyChecks(container: Container): void {
  if (container.config.get("protection") === "1") {
    throw refuse(`can't remove CT ${container.vmid} - protection mode enabled`);
  }
  container.checkLock();
}

function destroy(call: Call): string {
  const { world, node, by, arrivedAt } = call;
  const vmid = vmidOf(call);
  const container = world.container(node.name, vmid);
  earlyChecks(container);
  const runningText = `unable to destroy CT ${vmid} - container is running`;
  if (!flagOf(call, "force") && container.running) throw refuse(runningText);
  return world.fork({ type: "vzdestroy", id: vmid, node, by, arrivedAt }, (task) =>
    locked(world, task, container, () => remove(call, task, container, runningText)),
  ).upid;
}

async function remove(call: Call, task: Task, container: Container, runningText: string): Promise<void> {
  const { world, node, guests } = call;
  if (world.containers.get(container.vmid) !== container) world.container(node.name, container.vmid);
  earlyChecks(container);
  // Told to leave locks, it fails in its last step.
  const doomed = task.doomed?.leaveLocks ? task.doomed : undefined;
  if (doomed !== undefined) task.doomed = undefined;
  if (container.running) {
    if (!flagOf(call, "force")) throw refuse(runningText);
    task.log(`forced to stop CT ${container.vmid} before destroying!`);
    await task.spend(world.takes(world.timings.stop), node.load);
    await guests.stop(container);
  }
  const volumes = world.volumesOf(container);
  const inUse = volumes.find((volume) => volume.storage.hasClones(volume.volid));
  const name = inUse?.volid.slice(inUse.volid.indexOf(":") + 1);
  if (name !== undefined) throw new Error(`base volume '${name}' is still in use by linked clones`);
  await task.spend(world.takes(world.timings.destroy * 0.8));
  world.freeVolumes(container);
  // PVE::LXC::destroy_lxc_container leaves nothing else until rights, firewall and jobs are cleaned up, too.
  for (const key of [...container.config.values.keys()]) container.config.set(key, undefined);
  container.config.snapshots.clear();
  container.config.set("lock", "destroyed");
  if (doomed !== undefined) throw new Error(doomed.text);
  await task.spend(world.takes(world.timings.destroy * 0.2));
  if (flagOf(call, "purge")) task.log(`purging CT ${container.vmid} from related configurations..`);
  world.forget(container);
  await guests.removeDisk(container);
}

/** Answers nothing and works in a task all the same. */
async function toTemplate(call: Call): Promise<null> {
  const { world, node, by, arrivedAt } = call;
  const vmid = vmidOf(call);
  const container = world.container(node.name, vmid);
  await container.fileLock.hold(
    () => {
      checkTemplate(container);
      world.checkQuorum();
      world.fork({ type: "vztemplate", id: vmid, node, by, arrivedAt }, async (task) => {
        await task.spend(world.takes(world.timings.template));
        convert(call, container);
      });
    },
    { timeoutMs: world.timings.lockTimeout, signal: world.closing },
  );
  return null;
}

function checkTemplate(container: Container): void {
  container.checkLock();
  if (container.config.snapshots.size > 0) throw refuse("unable to create template, because CT contains snapshots");
  if (container.template) throw refuse("you can't convert a template to a template");
  if (container.running) throw refuse("you can't convert a CT to template if the CT is running");
}

function convert({ world }: Call, container: Container): void {
  for (const [index, volume] of world.volumesOf(container).entries()) {
    const key = [...container.config.values].find(([, value]) => value.split(",")[0] === volume.volid)?.[0];
    if (key === undefined) continue;
    const base = volume.storage.volid(container.vmid, index, true);
    volume.storage.remove(volume.volid);
    volume.storage.add({ ...volume, volid: base });
    container.config.set(key, [base, ...(container.config.get(key) ?? "").split(",").slice(1)].join(","));
  }
  container.config.set("template", "1");
  world.see(container);
}
