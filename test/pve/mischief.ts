import type { Container } from "./container.ts";
import type { Guests } from "./guest/guests.ts";
import { GIB } from "./storage.ts";
import type { World } from "./world.ts";

/** Removed behind everyone's back: config, disks and processes. */
export function vanishContainer(world: World, guests: Guests, container: Container): void {
  world.freeVolumes(container);
  world.forget(container);
  void guests.stop(container).then(() => guests.removeDisk(container));
}

/** The guest's init has exited. */
export function crashGuest(guests: Guests, container: Container): void {
  void guests.stop(container);
}

/** A human's container: not from our templates, no stamp. Or a QEMU machine. */
export function occupyVmid(world: World, vmid: number, nodeName?: string, kind: "lxc" | "qemu" = "lxc"): void {
  const node = nodeName ?? world.nodes.keys().next().value ?? "";
  if (kind === "qemu") {
    world.checkUnused(vmid);
    world.machines.set(vmid, world.node(node).name);
    return;
  }
  const container = world.claim(vmid, node, { execd: false });
  const storage = world.node(node).storages.values().next().value;
  container.config.set("hostname", `human-${vmid}`);
  container.config.set("memory", "512");
  container.config.set("ostype", "debian");
  container.config.set("arch", "amd64");
  if (storage !== undefined) {
    const volid = storage.volid(vmid, 0);
    storage.add({
      volid,
      storage,
      owner: vmid,
      sizeBytes: GIB,
      usedBytes: GIB / 8,
      format: "raw",
      createdAt: Date.now(),
    });
    container.config.set("rootfs", `${volid},size=1G`);
  }
  world.see(container);
}
