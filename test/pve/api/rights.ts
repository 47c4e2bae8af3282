import { isIP } from "node:net";
import { check, checkAny, has } from "../access.ts";
import type { PveVersion } from "../options.ts";
import { invalid, refuse } from "../refusal.ts";
import { type Call, type Route, route, vmidOf } from "../router.ts";
import { splitList } from "../schema/formats.ts";
import { NODE, POOL, VMID } from "../schema/lxc.ts";
import type { Rule, Rules } from "../schema/rules.ts";
import { firewallJson, setFirewall } from "./cluster.ts";
import { statusOf } from "./lxc-status.ts";

const text: Rule = { type: "string" };
const flag: Rule = { type: "boolean" };
const poolid: Rule = { ...POOL, required: true };
const allocatePool = (call: Call) => check(call.world, call.by, `/pool/${call.params["poolid"]}`, "Pool.Allocate");
const auditVm = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Audit");
const networkVm = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Config.Network");
const member: Rules = { poolid, comment: text, vms: text, storage: text, delete: flag, "allow-move": flag };
const policy: Rule = { type: "string", values: ["ACCEPT", "REJECT", "DROP"] };
const vm: Rules = { node: NODE, vmid: VMID };

export const rightsRoutes: Route[] = [
  route("GET", "/access/permissions", { rules: { path: text, userid: text } }, permissions),
  route("GET", "/pools", { rules: { poolid: POOL, type: text } }, listPools),
  route("POST", "/pools", { rules: { poolid, comment: text }, allow: allocatePool }, createPool),
  route("PUT", "/pools", { rules: member, allow: allocatePool }, changePool),
  route("PUT", "/pools/{poolid}", { rules: member, allow: allocatePool }, changePool),
  route("DELETE", "/pools/{poolid}", { rules: { poolid }, allow: allocatePool }, deletePool),
  route(
    "GET",
    "/pools/{poolid}",
    {
      rules: { poolid, type: text },
      allow: (call) => check(call.world, call.by, `/pool/${call.params["poolid"]}`, "Pool.Audit"),
    },
    showPool,
  ),
  route("GET", "/nodes/{node}/lxc/{vmid}/firewall/options", { rules: vm, allow: auditVm }, (call) =>
    firewallJson(call.world.container(call.node.name, vmidOf(call)).firewall),
  ),
  route(
    "PUT",
    "/nodes/{node}/lxc/{vmid}/firewall/options",
    {
      rules: {
        ...vm,
        enable: flag,
        dhcp: flag,
        ndp: flag,
        radv: flag,
        ipfilter: flag,
        macfilter: flag,
        policy_in: policy,
        policy_out: policy,
        log_level_in: text,
        log_level_out: text,
        delete: text,
        digest: text,
      },
      allow: networkVm,
    },
    (call) => setFirewall(call.world.container(call.node.name, vmidOf(call)).firewall, call.params),
  ),
  route("GET", "/nodes/{node}/lxc/{vmid}/firewall/rules", { rules: vm, allow: auditVm }, listRules),
  route("POST", "/nodes/{node}/lxc/{vmid}/firewall/rules", { rules: ruleRules(), allow: networkVm }, addRule),
];

function ruleRules(): Rules {
  return {
    ...vm,
    action: { type: "string", required: true, pattern: /^[A-Za-z][A-Za-z0-9\-_]+$/, maxLength: 20, minLength: 2 },
    type: { type: "string", required: true, values: ["in", "out", "forward", "group"] },
    comment: text,
    dest: { type: "string", maxLength: 512 },
    digest: text,
    dport: text,
    enable: { type: "integer", min: 0 },
    "icmp-type": text,
    iface: text,
    log: text,
    macro: text,
    pos: { type: "integer", min: 0 },
    proto: text,
    source: { type: "string", maxLength: 512 },
    sport: text,
  };
}

function listRules(call: Call): unknown[] {
  const { firewallRules } = call.world.container(call.node.name, vmidOf(call));
  return firewallRules.map((rule, pos) => ({
    ...rule,
    pos,
    ...(rule["enable"] === undefined ? {} : { enable: Number(rule["enable"]) }),
  }));
}

function addRule(call: Call): null {
  const { node: _node, vmid: _vmid, pos: _pos, digest: _digest, ...rule } = call.params;
  checkAddresses({ source: rule["source"], dest: rule["dest"] });
  if (!/^(ACCEPT|DROP|REJECT)$/.test(rule["action"] ?? ""))
    throw invalid({ action: `unknown action '${rule["action"]}'` });
  // New rules go to the top.
  call.world.container(call.node.name, vmidOf(call)).firewallRules.unshift(rule);
  return null;
}

/** PVE::Firewall::verify_rule: one family in a rule, and no bits beyond a network's mask (Net::IP). */
function checkAddresses(lists: Record<string, string | undefined>): void {
  const families = new Set<number>();
  for (const [name, list = ""] of Object.entries(lists)) {
    for (const one of list.split(",").filter(Boolean)) {
      const [address = "", bits = ""] = one.split("/");
      families.add(isIP(address));
      if (isIP(address) === 0) throw invalid({ [name]: `invalid IP address: ${one}` });
      const host = isIP(address) === 4 ? hostBits(address, Number(bits || 32)) : 0;
      if (host !== 0) throw invalid({ [name]: `invalid IP address: Invalid prefix ${one}` });
    }
    if (families.size > 1) throw invalid({ [name]: `detected mixed ipv4/ipv6 addresses in address list '${list}'` });
  }
}

function hostBits(address: string, bits: number): number {
  const value = address.split(".").reduce((sum, octet) => sum * 256 + Number(octet), 0);
  return value % 2 ** (32 - bits);
}

const ALL_PRIVILEGES =
  "Datastore.Allocate Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit Group.Allocate Mapping.Audit Mapping.Modify Mapping.Use Permissions.Modify Pool.Allocate Pool.Audit Realm.Allocate Realm.AllocateUser SDN.Allocate SDN.Audit SDN.Use Sys.AccessNetwork Sys.Audit Sys.Console Sys.Incoming Sys.Modify Sys.PowerMgmt Sys.Syslog User.Modify VM.Allocate VM.Audit VM.Backup VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options VM.Console VM.Migrate VM.PowerMgmt VM.Snapshot VM.Snapshot.Rollback".split(
    " ",
  );
/** 9.0 dropped VM.Monitor for these. */
const BY_VERSION: Record<PveVersion, string[]> = {
  "8.4": ["VM.Monitor"],
  "9.2":
    "VM.GuestAgent.Audit VM.GuestAgent.FileRead VM.GuestAgent.FileSystemMgmt VM.GuestAgent.FileWrite VM.GuestAgent.Unrestricted VM.Replicate".split(
      " ",
    ),
};
const ROOT_PATHS = "/ /access /access/groups /mapping /nodes /pool /sdn /storage /vms".split(" ");

function permissions({ world, by, params }: Call): unknown {
  const grant = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, 1]));
  const { path } = params;
  const all = [...ALL_PRIVILEGES, ...BY_VERSION[world.version]];
  // Of one path with what is passed down to it.
  if (path !== undefined) return { [path]: grant(all.filter((name) => has(world, by, path, name))) };
  if (by.privileges === "all") return Object.fromEntries(ROOT_PATHS.map((at) => [at, grant(all)]));
  return Object.fromEntries(Object.entries(by.privileges).map(([at, names]) => [at, grant(names)]));
}

function poolNamed(call: Call) {
  const name = call.params["poolid"] ?? "";
  const pool = call.world.pools.get(name);
  if (pool === undefined) throw refuse(`pool '${name}' does not exist`);
  return pool;
}

function listPools(call: Call): unknown[] {
  const { world, by, params } = call;
  const only = params["poolid"];
  if (only !== undefined) return [{ poolid: only, ...showPool(call) }];
  return [...world.pools]
    .filter(([name]) => has(world, by, `/pool/${name}`, "Pool.Audit"))
    .map(([name, { comment }]) => ({ poolid: name, ...(comment === undefined ? {} : { comment }) }));
}

function showPool(call: Call): { members: unknown[]; comment?: string } {
  const { world } = call;
  const pool = poolNamed(call);
  const members = [...pool.members].flatMap((vmid) => {
    const container = world.containers.get(vmid);
    if (container === undefined) return [];
    return [{ ...statusOf(world, container), id: `lxc/${vmid}`, node: container.node }];
  });
  return { members, ...(pool.comment === undefined ? {} : { comment: pool.comment }) };
}

function createPool({ world, params }: Call): null {
  const name = params["poolid"] ?? "";
  if (world.pools.has(name)) throw refuse(`create pool failed: pool '${name}' already exists`);
  world.checkQuorum();
  world.pools.set(name, { comment: params["comment"], members: new Set() });
  return null;
}

function changePool(call: Call): null {
  const { world, by, params } = call;
  const pool = poolNamed(call);
  world.checkQuorum();
  for (const id of splitList(params["vms"] ?? "")) {
    const vmid = Number(id);
    checkAny(world, by, `/vms/${vmid}`, "VM.Allocate", "Permissions.Modify");
    if (params["delete"] === "1") {
      if (!pool.members.delete(vmid)) throw refuse(`update pools failed: VM ${vmid} is not a pool member`);
      continue;
    }
    if (!world.containers.has(vmid)) throw invalid({ vms: `VM ${vmid} does not exist` });
    const other = world.poolOf(vmid);
    if (other !== undefined && params["allow-move"] !== "1") {
      throw refuse(`update pools failed: VM ${vmid} belongs already to pool '${other}' and 'allow-move' is not set`);
    }
    for (const each of world.pools.values()) each.members.delete(vmid);
    pool.members.add(vmid);
  }
  if (params["comment"] !== undefined) pool.comment = params["comment"];
  return null;
}

function deletePool(call: Call): null {
  const name = call.params["poolid"] ?? "";
  const pool = poolNamed(call);
  if (pool.members.size > 0) throw refuse(`delete pool failed: pool '${name}' is not empty`);
  call.world.pools.delete(name);
  return null;
}
