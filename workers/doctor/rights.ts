/** What the token may do, asked of PVE without trying it. */

import { grant } from "../../shared/pve-grant.ts";
import type { PveApi } from "../pve/api.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

export interface Right {
  privilege: string;
  /** On the first of them it is given; on any of them it is enough. */
  paths: readonly [string, ...string[]];
  /** What does not work without it; absent: something that the fleet is for. */
  lost?: string;
}

const ON_CONTAINERS = [
  "VM.Allocate",
  "VM.Audit",
  "VM.Clone",
  "VM.Config.CPU",
  "VM.Config.Disk",
  "VM.Config.Memory",
  "VM.Config.Network",
  "VM.Config.Options",
  "VM.PowerMgmt",
  "VM.Snapshot",
];
const ON_STORAGES = ["Datastore.AllocateSpace", "Datastore.Audit"];

export interface RightsFor {
  /** A VMID that sandboxes may get. */
  vmid: number;
  templates: readonly number[];
  storages: readonly string[];
  bridges: readonly string[];
  pool: string | undefined;
}

/** All that the fleet's work takes; which objects there are is for the caller to say. */
export function neededRights({ vmid, templates, storages, bridges, pool }: RightsFor): Right[] {
  // What is put into a pool is under the pool's rights as well.
  const pools = pool === undefined ? [] : [`/pool/${pool}`];
  return [
    ...ON_CONTAINERS.map((privilege): Right => ({ privilege, paths: [`/vms/${vmid}`, ...pools] })),
    ...templates.map((template): Right => ({ privilege: "VM.Clone", paths: [`/vms/${template}`] })),
    ...storages.flatMap((storage) =>
      ON_STORAGES.map((privilege): Right => ({ privilege, paths: [`/storage/${storage}`] })),
    ),
    ...bridges.map((bridge): Right => ({ privilege: "SDN.Use", paths: [`/sdn/zones/localnetwork/${bridge}`] })),
    ...(pool === undefined
      ? []
      : [
          {
            privilege: "Pool.Audit",
            paths: [`/pool/${pool}`],
            lost: "what is in the pool is not seen",
          } satisfies Right,
        ]),
    { privilege: "Sys.Audit", paths: ["/"], lost: "sizes, quorum, DNS domains and stale locks of nodes are not seen" },
  ];
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

export async function examineRights(
  pve: PveApi,
  rights: readonly Right[],
  { tokenId, signal }: { tokenId: string; signal: AbortSignal },
): Promise<Finding[]> {
  const paths = [...new Set(rights.flatMap((right) => right.paths))];
  const held = new Map(
    await Promise.all(paths.map(async (path) => [path, await pve.permissions(path, { signal })] as const)),
  );
  const missing = rights.filter(({ privilege, paths }) => !paths.some((path) => held.get(path)?.has(privilege)));
  const told = new Map(missing.map((right) => [`${right.privilege} ${commandFor(right, tokenId)}`, right]));
  const findings = [...told.values()].map((right) => {
    const { privilege, paths, lost } = right;
    const text = `the token lacks ${privilege} on ${paths[0]}`;
    const command = commandFor(right, tokenId);
    return lost === undefined
      ? problem("pve.rights", text, command)
      : warning("pve.rights", `${text}: ${lost}`, command);
  });
  if (findings.length > 0) return findings;
  return [ok("pve.rights", `${tokenId} has the ${new Set(rights.map(({ privilege }) => privilege)).size} it needs`)];
}

const commandFor = ({ privilege, paths: [path] }: Right, tokenId: string) => grant(path, privilege, tokenId);
