/** vzdump of one container, and what is done with its archive but the restore, which is a create. */
import { check, has } from "../access.ts";
import { now } from "../clock.ts";
import type { Container } from "../container.ts";
import { refuse } from "../refusal.ts";
import { type Call, type Route, route, vmidOf } from "../router.ts";
import { NODE, optional, STORAGE } from "../schema/lxc.ts";
import { type Backup, GIB, type Storage } from "../storage.ts";
import { exited, isInterrupted, type Task } from "../task.ts";
import { locked } from "./lxc-power.ts";

const flag = { type: "boolean" } as const;
const text = { type: "string" } as const;

export const backupRoutes: Route[] = [
  route(
    "POST",
    "/nodes/{node}/vzdump",
    {
      pace: "task",
      rules: {
        node: NODE,
        vmid: { type: "string", pattern: /^\d+$/, required: true },
        storage: optional(STORAGE),
        mode: { type: "string", values: ["snapshot", "suspend", "stop"] },
        compress: { type: "string", values: ["0", "1", "gzip", "lzo", "zstd"] },
        remove: flag,
        lockwait: { type: "integer", min: 0 },
        "notes-template": { type: "string", maxLength: 1024 },
        protected: flag,
        quiet: flag,
      },
    },
    vzdump,
  ),
  route(
    "PUT",
    "/nodes/{node}/storage/{storage}/content/{volume...}",
    { daemon: true, rules: { node: NODE, storage: STORAGE, volume: text, notes: text, protected: flag } },
    update,
  ),
  route(
    "DELETE",
    "/nodes/{node}/storage/{storage}/content/{volume...}",
    {
      pace: "task",
      rules: { node: NODE, storage: STORAGE, volume: text, delay: { type: "integer", min: 1, max: 30 } },
    },
    remove,
  ),
];

/** PVE::VZDump: whatever else is wrong is told by the task, most of it as "job errors". */
function vzdump(call: Call): string {
  const { world, node, by, params, arrivedAt } = call;
  const vmid = vmidOf(call);
  const elsewhere = (world.containers.get(vmid)?.node ?? node.name) !== node.name;
  if (elsewhere) return "OK";
  check(world, by, `/storage/${params["storage"] ?? "local"}`, "Datastore.AllocateSpace");
  return world.fork({ type: "vzdump", id: vmid, node, by, arrivedAt }, (task) =>
    alone(call, task, () => dump(call, task, vmid)),
  ).upid;
}

/** PVE::VZDump::getlock: one a node at a time. */
async function alone({ world, node, params }: Call, task: Task, body: () => Promise<void>): Promise<void> {
  let got = false;
  const begin = () => {
    got = true;
    return body();
  };
  try {
    await node.dumpLock.hold(begin, {
      timeoutMs: Number(params["lockwait"] ?? 180) * world.timings.lockMinute,
      signal: task.signal,
      onWait: () => task.log("INFO: trying to get global lock - waiting..."),
      onGot: () => {
        task.log("INFO: got global lock");
        task.clock = now();
      },
    });
  } catch (error) {
    if (got || isInterrupted(error)) throw error;
    task.log("ERROR: can't acquire lock '/var/run/vzdump.lock' - got timeout");
    throw exited();
  }
}

async function dump(call: Call, task: Task, vmid: number): Promise<void> {
  const { world, node, by, params } = call;
  const name = params["storage"] ?? "local";
  const storage = node.storages.get(name);
  const why = `could not get storage information for '${name}': `;
  if (storage === undefined) throw new Error(`${why}storage '${name}' does not exist`);
  if (!storage.holds("backup")) throw new Error(`${why}can't use storage '${name}' for backups - wrong content type`);
  const container = world.containers.get(vmid);
  if (container !== undefined) check(world, by, `/vms/${vmid}`, "VM.Backup");
  const begunAt = new Date();
  try {
    if (container === undefined) throw new Error(`unable to find VM '${vmid}'`);
    checkRetention(call, storage, vmid);
    task.log(`INFO: Starting Backup of VM ${vmid} (lxc)`);
    await locked(world, task, container, async () => {
      container.checkLock();
      container.config.set("lock", "backup");
    });
    await task.spend(world.takes(world.timings.backup), node.load);
    const backup = save(container, storage, { params, at: begunAt });
    task.log(`INFO: creating vzdump archive '${backup.volid}'`);
    if (params["remove"] !== "0") prune(storage, vmid);
    container.config.set("lock", undefined);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    // Killed it leaves its lock; interrupted it does not.
    if ("how" in error && error.how === "kill") throw error;
    if (container?.config.lock === "backup") container.config.set("lock", undefined);
    if ("how" in error) throw error;
    task.log(`ERROR: Backup of VM ${vmid} failed - ${error.message}`);
    throw new Error("job errors");
  }
}

const backupsOf = (storage: Storage, vmid: number) =>
  [...storage.backups.values()].filter(({ of }) => of.vmid === vmid);

/** PVE::VZDump::exec_backup_task; whoever may not change the storage has five protected archives of a guest at most. */
function checkRetention({ world, by, params }: Call, storage: Storage, vmid: number): void {
  const { name, keepBackups: limit = 0 } = storage;
  const all = backupsOf(storage, vmid);
  const count = all.filter((one) => one.protected).length;
  if (params["protected"] === "1") {
    const most = has(world, by, `/storage/${name}`, "Datastore.Allocate") ? Number.POSITIVE_INFINITY : 5;
    if (count < most) return;
    throw new Error(`The number of protected backups per guest is limited to ${most} on storage '${name}'`);
  }
  if (limit > 0 && params["remove"] === "0" && all.length - count >= limit) {
    const ways = "Either increase the limit or delete old backups.";
    throw new Error(
      `There is a max backup limit of ${limit} enforced by the target storage or the vzdump parameters. ${ways}`,
    );
  }
}

function prune(storage: Storage, vmid: number): void {
  const { keepBackups: limit = 0 } = storage;
  if (limit === 0) return;
  const loose = backupsOf(storage, vmid).filter((one) => !one.protected);
  for (const { volid } of loose.slice(0, -limit)) storage.backups.delete(volid);
}

/** Named after its begin, in place of one of the same second. */
function save(container: Container, storage: Storage, { params, at }: Pick<Call, "params"> & { at: Date }): Backup {
  const notes = params["notes-template"] ?? "";
  const digits = (value: number) => String(value).padStart(2, "0");
  const day = [at.getFullYear(), at.getMonth() + 1, at.getDate()].map(digits).join("_");
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(digits).join("_");
  const backup: Backup = {
    volid: `${storage.name}:backup/vzdump-lxc-${container.vmid}-${day}-${time}.tar.zst`,
    of: container,
    values: new Map(container.config.values),
    sizeBytes: GIB / 2,
    createdAt: at.getTime(),
    notes: notes.replaceAll("{{vmid}}", String(container.vmid)).replaceAll("{{guestname}}", container.name),
    protected: params["protected"] === "1",
  };
  backup.values.delete("lock");
  storage.backups.set(backup.volid, backup);
  return backup;
}

/** As PVE::Storage::check_volume_access allows. */
function archiveOf({ world, node, by, params }: Call): { storage: Storage; volid: string; vmid: string } {
  const storage = node.storages.get(params["storage"] ?? "");
  if (storage === undefined) throw refuse(`storage '${params["storage"]}' does not exist`);
  const name = params["volume"] ?? "";
  const volid = name.startsWith(`${storage.name}:`) ? name : `${storage.name}:${name}`;
  const vmid = /vzdump-lxc-(\d+)-/.exec(volid)?.[1] ?? "0";
  check(world, by, `/storage/${storage.name}`, "Datastore.AllocateSpace");
  check(world, by, `/vms/${vmid}`, "VM.Backup");
  return { storage, volid, vmid };
}

function update(call: Call): null {
  const { storage, volid } = archiveOf(call);
  const backup = storage.backups.get(volid);
  if (backup === undefined) throw refuse(`volume '${volid}' does not exist`);
  const { notes, protected: kept } = call.params;
  if (notes !== undefined) backup.notes = notes;
  if (kept !== undefined) backup.protected = kept === "1";
  return null;
}

/** With a delay PVE waits so long for the task's end, and answers nothing then. */
async function remove(call: Call): Promise<string | null> {
  const { world, node, by, params, arrivedAt } = call;
  const { storage, volid, vmid } = archiveOf(call);
  const backup = storage.backups.get(volid);
  const task = world.fork({ type: "imgdel", id: `${vmid}@${storage.name}`, node, by, arrivedAt }, async (own) => {
    if (backup === undefined) throw new Error(`volume '${volid}' does not exist`);
    if (backup.protected)
      throw new Error(`cannot remove protected volume '${volid.split(":")[1]}' on '${storage.name}'`);
    storage.backups.delete(volid);
    own.log(`Removed volume '${volid}'`);
  });
  if (params["delay"] === undefined) return task.upid;
  await task.ended;
  return task.exitstatus === "OK" ? null : task.upid;
}
