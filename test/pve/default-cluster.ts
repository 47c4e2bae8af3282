import type { Container } from "./container.ts";
import { PveNode } from "./node.ts";
import type { NodeSpec, PveOptions, StorageSpec, TemplateSpec } from "./options.ts";
import { printSize } from "./property-string.ts";
import { GIB, Storage } from "./storage.ts";
import type { World } from "./world.ts";

const HOOKSCRIPT = "local:snippets/cmux-lxc-execd-token-hook.sh";
const FIRST_TEMPLATE = 9001;
/** What a Debian template with the cmux tools takes of its volume. */
const TEMPLATE_BYTES = 1.2 * GIB;

const STORAGES: StorageSpec[] = [
  { name: "local", type: "dir", sizeGib: 100, usedGib: 10 },
  { name: "local-lvm", type: "lvmthin", sizeGib: 500 },
  { name: "ceph", type: "rbd", shared: true, sizeGib: 2000 },
];

export function nodeSpecs(nodes: PveOptions["nodes"] = 3): NodeSpec[] {
  if (typeof nodes !== "number") return nodes;
  return Array.from({ length: nodes }, (_, index) => ({ name: `pve${index + 1}` }));
}

/** One `cmux-base` on each node: 9001 on pve1, 9002 on pve2 ... */
export function templateSpecs(specs: NodeSpec[]): TemplateSpec[] {
  return specs.map(({ name }, index) => ({ node: name, vmid: FIRST_TEMPLATE + index }));
}

export function addNodes(world: World, specs: NodeSpec[]): void {
  for (const [index, spec] of specs.entries()) {
    const storages = new Map<string, Storage>();
    for (const each of spec.storages ?? STORAGES) {
      const shared = each.shared ? world.storages.get(each.name) : undefined;
      const storage = shared ?? new Storage(each);
      storages.set(each.name, storage);
      if (!world.storages.has(each.name)) world.storages.set(each.name, storage);
    }
    const parallel = world.timings.nodeParallel;
    world.nodes.set(spec.name, new PveNode(spec, { index, parallel, storages }));
  }
}

function freeVmid(world: World): number {
  let vmid = FIRST_TEMPLATE;
  while (world.containers.has(vmid)) vmid += 1;
  return vmid;
}

/** Puts a template (or, with template: false, a stopped container) there as if it had always been. */
export function addTemplate(world: World, spec: TemplateSpec): Container {
  const node = world.node(spec.node ?? world.nodes.keys().next().value ?? "");
  const vmid = spec.vmid ?? freeVmid(world);
  const template = spec.template ?? true;
  const storage =
    spec.storage === undefined
      ? (node.storages.get("local-lvm") ?? node.storages.values().next().value)
      : node.storages.get(spec.storage);
  if (storage === undefined) throw new Error(`node ${node.name} has no storage ${spec.storage ?? ""}`);
  const sizeBytes = (spec.diskGib ?? 4) * GIB;
  const container = world.claim(vmid, node.name, spec.guest);
  const volid = storage.volid(vmid, 0, template);
  const usedBytes = Math.min(sizeBytes, TEMPLATE_BYTES);
  storage.add({ volid, storage, owner: vmid, sizeBytes, usedBytes, format: "raw", createdAt: Date.now() });
  const lines: Record<string, string | number | undefined> = {
    arch: "amd64",
    cores: 2,
    hookscript: spec.hookscript === false ? undefined : (spec.hookscript ?? HOOKSCRIPT),
    hostname: spec.name ?? "cmux-base",
    memory: 512,
    net0: `name=eth0,bridge=vmbr0,hwaddr=${world.newMac()},ip=dhcp,type=veth`,
    ostype: "debian",
    protection: spec.protection ? 1 : undefined,
    rootfs: `${volid},size=${printSize(sizeBytes)}`,
    swap: 512,
    tags: spec.tags ?? "cmux",
    template: template ? 1 : undefined,
    unprivileged: spec.privileged ? undefined : 1,
    ...spec.config,
  };
  for (const [key, value] of Object.entries(lines)) {
    if (value !== undefined && value !== "") container.config.set(key, String(value));
  }
  world.see(container);
  world.backdate(vmid);
  return container;
}
