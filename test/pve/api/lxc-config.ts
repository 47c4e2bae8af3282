import { check, checkAny, checkBridge } from "../access.ts";
import { valuesToJson } from "../config-file.ts";
import type { Container } from "../container.ts";
import { parseProperties, printNetwork } from "../property-string.ts";
import { forbidden, invalid, refuse } from "../refusal.ts";
import { type Call, flagOf, type Route, route, vmidOf } from "../router.ts";
import { splitList } from "../schema/formats.ts";
import { configRules, NODE, optional, SNAPNAME, updateRules, VMID } from "../schema/lxc.ts";
import { JSON_NULL, ruleFor } from "../schema/rules.ts";
import { allocate } from "./lxc-volume.ts";

const CONFIG_PRIVILEGES = "VM.Config.Disk VM.Config.CPU VM.Config.Memory VM.Config.Network VM.Config.Options".split(
  " ",
);

export const configRoutes: Route[] = [
  route(
    "GET",
    "/nodes/{node}/lxc/{vmid}/config",
    {
      rules: { node: NODE, vmid: VMID, current: { type: "boolean" }, snapshot: optional(SNAPNAME) },
      allow: (call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Audit"),
    },
    show,
  ),
  route(
    "PUT",
    "/nodes/{node}/lxc/{vmid}/config",
    {
      rules: (world) => updateRules(world.version),
      allow: (call) => checkAny(call.world, call.by, `/vms/${call.params["vmid"]}`, ...CONFIG_PRIVILEGES),
    },
    update,
  ),
];

function show(call: Call): unknown {
  const { config } = call.world.container(call.node.name, vmidOf(call));
  const name = call.params["snapshot"];
  if (name === undefined) return config.toJson(flagOf(call, "current"));
  const snapshot = config.snapshots.get(name);
  if (snapshot === undefined) throw refuse(`snapshot '${name}' does not exist`);
  return valuesToJson(snapshot.values);
}

/** Waits for the file lock in the request itself, up to ten seconds. */
async function update(call: Call): Promise<null> {
  const { world, node } = call;
  const vmid = vmidOf(call);
  const { node: _node, vmid: _vmid, digest, ...rest } = call.params;
  if (Object.keys(rest).length === 0) throw refuse("no options specified");
  const { delete: deletions = "", revert: reverts = "", ...changes } = rest;
  const container = world.container(node.name, vmid);
  await container.fileLock.hold(
    () => apply(call, { digest, changes, deletions: splitList(deletions), reverts: splitList(reverts) }),
    { timeoutMs: world.timings.lockTimeout, signal: world.closing },
  );
  return null;
}

interface Update {
  digest: string | undefined;
  changes: Record<string, string>;
  deletions: string[];
  reverts: string[];
}

function apply(call: Call, { digest, changes, deletions, reverts }: Update): void {
  const { world, node } = call;
  const container = world.container(node.name, vmidOf(call));
  const { config, running } = container;
  container.checkLock();
  world.checkQuorum();
  if (digest !== undefined && digest !== "" && digest !== config.digest) {
    throw refuse("detected modified configuration - file changed by other user? Try again.");
  }
  for (const key of [...deletions, ...reverts]) allowChange(call, container, key, undefined);
  checkNames(call, "revert", reverts, changes);
  checkNames(call, "delete", deletions, changes);
  for (const [key, value] of Object.entries(changes)) allowChange(call, container, key, value);
  for (const key of reverts) config.pending.delete(key);
  for (const key of deletions) checkDeletion(key);
  const values = Object.entries(changes).map(([key, value]) => [key, settle(call, container, key, value)] as const);
  for (const key of deletions) {
    if (config.get(key) !== undefined || config.pending.has(key)) config.change(key, null, running);
  }
  for (const [key, value] of values) config.change(key, value, running);
  config.touch();
  world.see(container);
}

function checkNames(call: Call, param: string, names: string[], changes: Record<string, string>): void {
  for (const name of names) {
    if (ruleFor(configRules(call.world.version), name) === undefined)
      throw invalid({ [param]: `unknown option '${name}'` });
    if (changes[name] !== undefined) {
      const second = param === "delete" ? "-delete" : "'-revert";
      throw invalid({ [param]: `you can't use '-${name}' and ${second} ${name}' at the same time` });
    }
  }
}

function checkDeletion(key: string): void {
  if (key === "memory" || key === "rootfs" || key === "ostype")
    throw refuse(`unable to delete required option '${key}'`);
  if (key === "unprivileged") throw refuse(`unable to delete read-only option: '${key}'`);
}

/** The value as it is kept. */
function settle(call: Call, container: Container, key: string, value: string): string {
  if (value === JSON_NULL) return value;
  if (key === "unprivileged") throw refuse(`unable to modify read-only option: '${key}'`);
  if (key === "tags") return uniqueTags(value);
  if (/^net\d+$/.test(key)) {
    const network = parseProperties(value);
    if (!network.has("hwaddr")) {
      const before = parseProperties(container.config.get(key) ?? "").get("hwaddr");
      network.set("hwaddr", before ?? call.world.newMac());
    }
    return printNetwork(network);
  }
  if (key === "rootfs" || /^mp\d+$/.test(key)) {
    if (container.config.get("protection") === "1")
      throw refuse(`can't update CT ${container.vmid} drive '${key}' - protection mode enabled`);
    return allocate(call, container, value);
  }
  return value;
}

/** PVE::GuestHelpers::get_unique_tags with the datacenter's default: case does not count, alphabetical. */
export function uniqueTags(text: string): string {
  return [...new Set(splitList(text.toLowerCase()))].sort().join(";");
}

const PRIVILEGE: readonly (readonly [RegExp, string])[] = [
  [/^(cores|cpuunits|cpulimit)$/, "VM.Config.CPU"],
  [/^(rootfs|mp\d+|unused\d+)$/, "VM.Config.Disk"],
  [/^(memory|swap)$/, "VM.Config.Memory"],
  [/^(net\d+|nameserver|searchdomain|hostname)$/, "VM.Config.Network"],
];

/** PVE::LXC::check_ct_modify_config_perm: what only root@pam itself may do, no token of its may. */
export function allowChange(
  call: Call,
  container: Container | undefined,
  key: string,
  value: string | undefined,
): void {
  const { world, by } = call;
  const path = `/vms/${call.params["vmid"]}`;
  if (/^dev\d+$/.test(key)) throw forbidden("configuring device passthrough is only allowed for root@pam");
  if (key === "hookscript") throw forbidden("changing the hookscript is only allowed for root@pam");
  if (key === "features") {
    allowFeatures(call, container, value);
    return;
  }
  const privilege = PRIVILEGE.find(([pattern]) => pattern.test(key))?.[1] ?? "VM.Config.Options";
  check(world, by, path, privilege);
  if (/^net\d+$/.test(key)) {
    for (const network of [container?.config.get(key), value]) if (network) checkBridge(world, by, network);
  }
  if (value !== undefined && (key === "rootfs" || /^mp\d+$/.test(key))) {
    const volume = parseProperties(value, "volume").get("volume") ?? "";
    if (volume.startsWith("/dev/")) throw forbidden("mount point type device is only allowed for root@pam");
    if (volume.startsWith("/")) throw forbidden("mount point type bind is only allowed for root@pam");
  }
}

function allowFeatures(call: Call, container: Container | undefined, value: string | undefined): void {
  const unprivileged = container === undefined ? call.params["unprivileged"] : container.config.get("unprivileged");
  if (unprivileged !== "1")
    throw forbidden("changing feature flags for privileged container is only allowed for root@pam");
  const before = parseProperties(container?.config.get("features") ?? "");
  const after = parseProperties(value ?? "");
  const changed = [...new Set([...before.keys(), ...after.keys()])].filter(
    (name) => before.get(name) !== after.get(name),
  );
  if (changed.some((name) => name !== "nesting")) {
    throw forbidden("changing feature flags (except nesting) is only allowed for root@pam");
  }
  if (changed.length > 0) check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Allocate");
}
