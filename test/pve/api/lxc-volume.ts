import { check } from "../access.ts";
import type { Container } from "../container.ts";
import { parseProperties, parseSize, printProperties, printSize } from "../property-string.ts";
import { refuse } from "../refusal.ts";
import { type Call, type Route, route, vmidOf } from "../router.ts";
import { DIGEST, NODE, VMID } from "../schema/lxc.ts";
import { GIB, type Volume } from "../storage.ts";
import { locked } from "./lxc-power.ts";

/** A fresh file system's share of its volume. */
const FRESH = 0.035;

/** `STORAGE:GIB` makes a new volume; anything else must be there already. Returns the value for the config. */
export function allocate(call: Call, container: Container, value: string): string {
  const { world, node } = call;
  const parts = parseProperties(value, "volume");
  const asked = parts.get("volume") ?? "";
  const match = /^([^:\s]+):(\d+(?:\.\d+)?)$/.exec(asked);
  const storage = node.storages.get(match?.[1] ?? asked.split(":")[0] ?? "");
  if (storage === undefined) throw refuse(`storage '${match?.[1] ?? asked.split(":")[0]}' does not exist`);
  check(world, call.by, `/storage/${storage.name}`, "Datastore.AllocateSpace");
  if (match === null) {
    if (world.volume(asked) === undefined) throw refuse(`volume '${asked}' does not exist`);
    return value;
  }
  const sizeBytes = Number(match[2]) * GIB;
  const disks = new Set(world.volumesOf(container).map((volume) => volume.volid));
  let disk = 0;
  while (disks.has(storage.volid(container.vmid, disk))) disk += 1;
  const volid = storage.volid(container.vmid, disk);
  const usedBytes = Math.ceil(sizeBytes * FRESH);
  if (!storage.hasRoom(usedBytes)) throw refuse(storage.fullText(`vm-${container.vmid}-disk-${disk}`));
  storage.add({ volid, storage, owner: container.vmid, sizeBytes, usedBytes, format: "raw", createdAt: Date.now() });
  parts.set("volume", volid);
  parts.set("size", printSize(sizeBytes));
  return printProperties(parts, "volume");
}

const rules = {
  node: NODE,
  vmid: VMID,
  digest: DIGEST,
  disk: { type: "string", required: true, pattern: /^(?:rootfs|mp(?:\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5]))$/ },
  size: { type: "string", required: true, pattern: /^\+?\d+(\.\d+)?[KMGT]?$/ },
} as const;

export const volumeRoutes: Route[] = [
  route(
    "PUT",
    "/nodes/{node}/lxc/{vmid}/resize",
    {
      pace: "task",
      rules,
      allow: (call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Config.Disk"),
    },
    resize,
  ),
];

function planResize(call: Call): { container: Container; volume: Volume; newSize: number } {
  const { world, node, params } = call;
  const container = world.container(node.name, vmidOf(call));
  container.checkLock();
  const { digest, disk = "", size = "" } = params;
  if (digest !== undefined && digest !== container.config.digest) {
    throw refuse("detected modified configuration - file changed by other user? Try again.");
  }
  const value = container.config.get(disk);
  const volume = value === undefined ? undefined : world.volume(value.split(",")[0] ?? "");
  if (volume === undefined) throw refuse(`unable to parse volume ID '${value ?? ""}'`);
  check(world, call.by, `/storage/${volume.storage.name}`, "Datastore.AllocateSpace");
  const asked = parseSize(size.replace(/^\+/, "")) ?? 0;
  const newSize = size.startsWith("+") ? volume.sizeBytes + asked : asked;
  if (newSize < volume.sizeBytes) throw refuse("unable to shrink disk size");
  if (newSize === volume.sizeBytes) throw refuse("disk is already at specified size");
  return { container, volume, newSize };
}

function resize(call: Call): string {
  const { world, node, by, arrivedAt, params } = call;
  const { container } = planResize(call);
  return world.fork({ type: "resize", id: container.vmid, node, by, arrivedAt }, (task) =>
    locked(world, task, container, async () => {
      const { volume, newSize } = planResize(call);
      await task.spend(world.takes(world.timings.resize));
      volume.sizeBytes = newSize;
      const disk = params["disk"] ?? "rootfs";
      const parts = parseProperties(container.config.get(disk) ?? "", "volume");
      parts.set("size", printSize(newSize));
      container.config.set(disk, printProperties(parts, "volume"));
      task.log("Image resized.");
    }),
  ).upid;
}
