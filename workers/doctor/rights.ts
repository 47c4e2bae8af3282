/** What the token may do, asked of PVE without trying it. */

import { grant } from "../../shared/pve-grant.ts";
import type { PveApi } from "../pve/api.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";
import { type Place, PRIVILEGES } from "./privileges.ts";

/** One thing that the token must have a privilege on. */
export interface Subject {
  /** On any of them it is enough. */
  paths: readonly [string, ...string[]];
  /** Where a grant holds for the next ones as well, unless the path has an ACL of its own, which overrides those above. */
  above?: string;
  /** Said behind the command. */
  hint?: string;
}

export type Subjects = Readonly<Record<Place, readonly Subject[]>>;

export interface RightsFor {
  /** A VMID that sandboxes may get. */
  vmid: number;
  pool: string | undefined;
  nodes: readonly string[];
  templates: readonly number[];
  storages: readonly string[];
  /** By way of which templates come to other nodes. */
  replicaStorages: readonly string[];
  /** `vmbr0`, or `vmbr0/7` for those whose VLAN a template names. */
  bridges: readonly string[];
  /** Zones of PVE's software-defined networks; bridges of the nodes' own are in `localnetwork`. */
  zones: readonly string[];
}

export function toSubjects(needs: RightsFor): Subjects {
  const { vmid, pool, nodes, templates, storages, replicaStorages, bridges, zones } = needs;
  // What is put into a pool is under the pool's rights as well.
  const pools = pool === undefined ? [] : [`/pool/${pool}`];
  const onStorages = (names: readonly string[]) => names.map((name): Subject => ({ paths: [`/storage/${name}`] }));
  return {
    sandboxes: [{ paths: [`/vms/${vmid}`, ...pools], above: "/vms" }],
    templates: templates.map((template) => ({ paths: [`/vms/${template}`], above: "/vms" })),
    storages: onStorages(storages),
    "storages for replicas": onStorages(replicaStorages),
    bridges: bridges.map((bridge) => onBridge(bridge, zones)),
    "the pool": pools.map((path) => ({ paths: [path] })),
    nodes: nodes.map((node) => ({ paths: [`/nodes/${node}`], above: "/" })),
    "/": [{ paths: ["/"] }],
  };
}

function onBridge(bridge: string, zones: readonly string[]): Subject {
  const local = `/sdn/zones/localnetwork/${bridge}`;
  // PVE's own name for a bridge; any other may be a virtual network's, whose zone is seen by few tokens.
  if (/^vmbr\d+\b/.test(bridge)) return { paths: [local] };
  const hint = `where ${bridge} is a virtual network, its zone in place of localnetwork: pvesh get /cluster/sdn/vnets`;
  return { paths: [local, ...zones.map((zone) => `/sdn/zones/${zone}/${bridge}` as const)], hint };
}

/** PVE lists the pools that the token sees. */
export async function examinePool(pve: PveApi, pool: string, signal: AbortSignal): Promise<Finding[]> {
  const pools = await pve.pools({ signal });
  if (pools.some(({ poolid }) => poolid === pool)) return [ok("pve.pool", pool)];
  return [
    problem(
      "pve.pool",
      `the token sees no pool ${pool} (PVE_POOL)`,
      `pveum pool add ${pool}; seeing it needs Pool.Audit`,
    ),
  ];
}

type Held = ReadonlyMap<string, ReadonlySet<string>>;

/** `subjects`: all that there is; `skip`: privileges that nothing here would make use of. */
export async function examineRights(
  pve: PveApi,
  subjects: Subjects,
  { tokenId, major, skip, signal }: { tokenId: string; major: number; skip: readonly string[]; signal: AbortSignal },
): Promise<Finding[]> {
  const all = Object.values(subjects).flat();
  const paths = [...new Set(all.flatMap((one) => (one.above === undefined ? one.paths : [...one.paths, one.above])))];
  const held: Held = new Map(
    await Promise.all(paths.map(async (path) => [path, await pve.permissions(path, { signal })] as const)),
  );
  const asked = PRIVILEGES.filter(({ name, since = 0 }) => since <= major && !skip.includes(name));
  const lacking = asked.flatMap((privilege) =>
    subjects[privilege.on]
      .filter(({ paths: on }) => !on.some((path) => held.get(path)?.has(privilege.name)))
      .map((subject) => ({ ...privilege, at: grantedAt(subject, held), hint: subject.hint })),
  );
  if (lacking.length === 0)
    return [ok("pve.rights", `${tokenId} has the ${new Set(asked.map(({ name }) => name)).size} it needs`)];
  const groups = Map.groupBy(lacking, ({ name, at }) => `${name} on ${at}`);
  return [...groups].map(([what, group]) => {
    const tell = group.some(({ vital }) => vital) ? problem : warning;
    const wayOut = [
      ...new Set(group.map(({ name, at, hint }) => [grant(at, name, tokenId), hint ?? []].flat().join("; "))),
    ];
    const lost = [...new Set(group.map((one) => one.lost))];
    return tell("pve.rights", `the token lacks ${what}: ${lost.join(", ")}`, wayOut.join("; "));
  });
}

/** An ACL on a path replaces what comes down from above, and a pool's rights are enough for what is in it. */
function grantedAt({ paths: [path, ...others], above }: Subject, held: Held): string {
  const size = (at: string) => [...(held.get(at) ?? [])].filter((name) => name.startsWith("VM.")).length;
  const pool = others.find((other) => other.startsWith("/pool/") && size(other) > size(path));
  if (pool !== undefined) return pool;
  const list = (at: string) => [...(held.get(at) ?? [])].toSorted().join();
  return above !== undefined && list(above) === list(path) ? above : path;
}
