import { check } from "../access.ts";
import { sleep } from "../clock.ts";
import type { Container } from "../container.ts";
import { invalid, refuse } from "../refusal.ts";
import { type Call, flagOf, type Route, route, vmidOf } from "../router.ts";
import { NODE, VMID } from "../schema/lxc.ts";
import type { Rule } from "../schema/rules.ts";
import { GIB, type Storage, type Volume } from "../storage.ts";
import type { Task } from "../task.ts";
import { goDown, locked } from "./lxc-power.ts";

const flag: Rule = { type: "boolean" };

/** PVE::LXC::Migrate, between nodes of one cluster. */
export const migrateRoutes: Route[] = [
  route(
    "POST",
    "/nodes/{node}/lxc/{vmid}/migrate",
    {
      pace: "task",
      rules: {
        node: NODE,
        vmid: VMID,
        target: { ...NODE, required: true },
        "target-storage": { type: "string" },
        online: flag,
        restart: flag,
        timeout: { type: "integer" },
        bwlimit: { type: "number", min: 0 },
      },
      allow: (call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Migrate"),
    },
    migrate,
  ),
];

function migrate(call: Call): string {
  const { world, node, params, by, arrivedAt } = call;
  const vmid = vmidOf(call);
  const target = params["target"] ?? "";
  if (target === node.name) throw invalid({ target: "target is local node." });
  world.checkQuorum();
  world.node(target);
  const container = world.container(node.name, vmid);
  if (container.running && !flagOf(call, "online") && !flagOf(call, "restart"))
    throw refuse("can't migrate running container without --online or --restart");
  const mapped = params["target-storage"];
  if (mapped !== undefined) check(world, by, `/storage/${mapped}`, "Datastore.AllocateSpace");
  return world.fork({ type: "vzmigrate", id: vmid, node, by, arrivedAt }, async (task) => {
    try {
      await locked(world, task, container, () => move(call, task, { container, target, mapped }));
    } catch (error) {
      if (task.doomed?.leaveLocks || (error instanceof Error && "how" in error && error.how === "kill")) throw error;
      // PVE::AbstractMigrate::migrate: whatever it was, also a lock, is in the log alone.
      say(task, `ERROR: migration aborted (duration 00:00:00): ${error instanceof Error ? error.message : error}`);
      throw new Error("migration aborted");
    }
  }).upid;
}

const say = (task: Task, text: string) =>
  task.log(`${new Date().toISOString().slice(0, 19).replace("T", " ")} ${text}`);

interface Move {
  container: Container;
  target: string;
  mapped: string | undefined;
}

/**
 * Once the container's lock is set, a migration that fails starts it again on its own node; one that fails before leaves
 * it as it is by then, and one that is killed leaves the lock.
 */
async function move(call: Call, task: Task, { container, target, mapped }: Move): Promise<void> {
  const { world, node, guests, params } = call;
  world.container(node.name, container.vmid).checkLock();
  const wasRunning = container.running;
  if (wasRunning && flagOf(call, "online")) throw new Error("lxc live migration is currently not implemented");
  const plan = planOf(call, { container, target, mapped });
  const there = world.node(target);
  if (there.state !== "online") throw new Error("Can't connect to destination address using public key");
  if (wasRunning) {
    say(task, `shutdown CT ${container.vmid}`);
    const timeout = Number(params["timeout"] ?? 180);
    await goDown(call, task, { container, timeout, force: false, ms: world.timings.shutdown });
    await guests.stop(container);
  }
  say(task, `starting migration of CT ${container.vmid} to node '${target}'`);
  container.config.set("lock", "migrate");
  let moved = false;
  try {
    checkVolumes(task, container, plan);
    for (const { volume, to } of plan) {
      if (!to.hasRoom(volume.usedBytes)) {
        const text = to.fullText(`vm-${container.vmid}-disk-0`);
        throw new Error(`storage migration for '${volume.volid}' to storage '${to.name}' failed - ${text}`);
      }
      await task.spend(world.takes(world.timings.cloneFull), node.load);
    }
    for (const [index, one] of plan.entries()) rehome(container, one, index);
    world.move(container, target);
    moved = true;
  } catch (error) {
    if (task.doomed?.leaveLocks || (error instanceof Error && "how" in error && error.how === "kill")) throw error;
    say(task, `ERROR: ${error instanceof Error ? error.message : String(error)}`);
    throw error;
  } finally {
    if (!task.doomed?.leaveLocks && world.containers.get(container.vmid) === container) {
      container.config.set("lock", undefined);
      if (wasRunning) {
        say(task, `start container on ${moved ? "target" : "source"} node`);
        // Not cut short by an interrupt, which has had its effect.
        await sleep(world.takes(world.timings.start), world.closing);
        await guests.start(container);
      }
    }
    world.see(container);
  }
}

interface Local {
  key: string;
  volume: Volume;
  to: Storage;
}

/** Volumes that must be copied: those on storages that the nodes do not share. */
function planOf({ world }: Call, { container, target, mapped }: Move): Local[] {
  const plan: Local[] = [];
  for (const [key, value] of container.config.values) {
    if (key !== "rootfs" && !/^(mp|unused)\d+$/.test(key)) continue;
    const volume = world.volume(value.split(",")[0] ?? "");
    if (volume === undefined) continue;
    if (volume.storage.shared) {
      if (!world.node(target).storages.has(volume.storage.name))
        throw new Error(`storage '${volume.storage.name}' is not available on node '${target}'`);
      continue;
    }
    const name = mapped ?? volume.storage.name;
    const to = world.node(target).storages.get(name);
    if (to === undefined) throw new Error(`storage '${name}' is not available on node '${target}'`);
    plan.push({ key, volume, to });
  }
  return plan;
}

function checkVolumes(task: Task, container: Container, plan: readonly Local[]): void {
  let problems = 0;
  for (const { volume } of plan) {
    const { type } = volume.storage;
    // A linked clone's id names its base there.
    const base = /:(base-[^/]+)\//.exec(volume.volid)?.[1];
    const keepsSnapshots = type === "zfspool" || type === "btrfs";
    const problem =
      container.config.snapshots.size > 0 && !keepsSnapshots
        ? "non-migratable snapshot exists"
        : base === undefined
          ? undefined
          : `clone of '${base}'`;
    if (problem === undefined) continue;
    problems += 1;
    say(task, `can't migrate local volume '${volume.volid}': ${problem}`);
  }
  if (problems > 0) throw new Error("can't migrate CT - check log");
}

/** The copy is whole: what a linked clone shared with its base is its own now. */
function rehome(container: Container, { key, volume, to }: Local, index: number): void {
  const { parent: _, ...own } = volume;
  volume.storage.remove(volume.volid);
  const volid = to.volid(container.vmid, index);
  const usedBytes = volume.usedBytes + (volume.parent === undefined ? 0 : GIB);
  to.add({ ...own, volid, storage: to, usedBytes: Math.min(usedBytes, volume.sizeBytes) });
  const rest = (container.config.get(key) ?? "").split(",").slice(1);
  container.config.set(key, [volid, ...rest].join(","));
}
