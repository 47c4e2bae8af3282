/** What sandboxes are made of: templates, storages, VMIDs. */

import { canLink } from "../../shared/placement/choose-node.ts";
import { hasConfigEnv, type Inventory, type Replica } from "../../shared/state/inventory.ts";
import type { ClusterResource, PveApi } from "../pve/api.ts";
import { parseStamp } from "../sandbox/stamp.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

/** Pure: each template by name, over its replicas. */
export function judgeTemplates({ replicas, nodes, version }: Inventory, allowsPrivileged: boolean): Finding[] {
  const check = "templates";
  if (replicas.length === 0)
    return [
      problem(
        check,
        "the token sees none, so nothing can be provisioned",
        "pct template VMID on a node makes one of a container with cmux-execd; seeing it needs VM.Audit",
      ),
    ];
  const names = [...new Set(replicas.map(({ name }) => name))].toSorted();
  return names.flatMap((name) => {
    const own = replicas.filter((one) => one.name === name);
    const lacking = nodes.filter((node) => !own.some((one) => one.node === node.name || reaches(one, node)));
    const where = nodes
      .map((node) => ({ node: node.name, count: own.filter((one) => one.node === node.name).length }))
      .filter(({ count }) => count > 0)
      .map(({ node, count }) => (count === 1 ? node : `${node} (${count})`));
    const text = `${name} on ${where.join(", ")}`;
    const faults = own.flatMap((one) => faultsOf(one, { nodes, version, allowsPrivileged }));
    const first =
      lacking.length === 0
        ? ok(check, text)
        : warning(
            check,
            `${text}; not on ${lacking.map((node) => node.name).join(", ")}, which get no sandbox of it`,
            "Copy it there (vzdump, pct restore, pct template) under the same name, or keep it on shared storage",
          );
    return [...(faults.length > 0 && first.level === "ok" ? [] : [first]), ...faults];
  });
}

const reaches = (replica: Replica, node: Inventory["nodes"][number]) =>
  replica.shared && node.storages.some(({ name }) => name === replica.storage);

function faultsOf(
  replica: Replica,
  { nodes, version, allowsPrivileged }: Pick<Inventory, "nodes" | "version"> & { allowsPrivileged: boolean },
): Finding[] {
  const check = "templates";
  const which = `${replica.name} (${replica.vmid} on ${replica.node})`;
  const node = nodes.find(({ name }) => name === replica.node);
  if (!replica.online)
    return node?.online === true
      ? [problem(check, `${which} can't be read there`, `See what its node says: pct config ${replica.vmid}`)]
      : []; // its node's own finding says so
  const faults: Finding[] = [];
  const type = node?.storages.find(({ name }) => name === replica.storage)?.type;
  // A storage that is not seen at all is the rights' finding.
  if (type !== undefined && !canLink(type))
    faults.push(
      warning(
        check,
        `${which} lies on ${replica.storage} (${type}), which can't clone linked: every clone copies the disk`,
        "Move its disk to LVM-thin, ZFS, RBD or btrfs",
      ),
    );
  if (!replica.hookscript && !hasConfigEnv(version))
    faults.push(
      problem(
        check,
        `${which} has no hookscript, and PVE ${version} has no \`env\`: the exec token can't be handed in`,
        `pct set ${replica.vmid} --hookscript STORAGE:snippets/FILE as root@pam, or PVE 9.1`,
      ),
    );
  if (!replica.unprivileged && !allowsPrivileged)
    faults.push(
      warning(check, `${which} is privileged and is refused`, "Make it unprivileged, or set PVE_ALLOW_PRIVILEGED=1"),
    );
  if (replica.locked)
    faults.push(
      warning(check, `${which} is locked`, `If no backup or clone of it runs: pct unlock ${replica.vmid} on its node`),
    );
  return faults;
}

/** Pure: where sandboxes' disks go. */
export function judgeStorages({ nodes }: Inventory, target: string | undefined): Finding[] {
  const check = "storages";
  const online = nodes.filter((node) => node.online);
  const findings: Finding[] = online.flatMap(({ name, storages }) => {
    const fit = storages.filter(({ rootdir, active }) => rootdir && active);
    const linked = fit.filter(({ type }) => canLink(type));
    if (linked.length > 0) return [ok(check, `${name} clones linked on ${linked.map((one) => one.name).join(", ")}`)];
    const wayOut = "pvesm add lvmthin|zfspool|rbd|btrfs … --content rootdir,images; seeing it needs Datastore.Audit";
    return [warning(check, `the token sees none on ${name} that can clone linked`, wayOut)];
  });
  const lacking = online.filter(({ storages }) => !storages.some((one) => one.name === target && one.rootdir));
  if (target !== undefined && lacking.length > 0)
    findings.push(
      problem(
        check,
        `${target} takes no containers on ${lacking.map(({ name }) => name).join(", ")}`,
        "Set PVE_STORAGE to a storage with content rootdir, or add that to it: pvesm set STORAGE --content …",
      ),
    );
  return findings;
}

const NAMED = 5;
const LOOKED_AT = 50;

/** Guests in the fleet's range that are not the fleet's. `leased`: VMIDs that sandboxes have. */
export async function examineVmids(
  pve: PveApi,
  {
    range,
    leased,
    signal,
  }: { range: { first: number; last: number }; leased: ReadonlySet<string>; signal: AbortSignal },
): Promise<Finding[]> {
  const check = "vmids";
  const guests = (await pve.clusterResources({ type: "vm" }, { signal })).filter(
    ({ vmid }) => vmid !== undefined && vmid >= range.first && vmid <= range.last && !leased.has(String(vmid)),
  );
  const judged = await Promise.all(
    guests.slice(0, LOOKED_AT).map(async (guest) => ((await isStamped(pve, guest, signal)) ? null : guest.vmid)),
  );
  const foreign = judged.filter((vmid) => vmid !== null && vmid !== undefined);
  const text = `${range.first}-${range.last}`;
  if (foreign.length === 0) return [ok(check, `no foreign guest in ${text}`)];
  const named = `${foreign.slice(0, NAMED).join(", ")}${foreign.length > NAMED ? ", …" : ""}`;
  return [
    warning(
      check,
      `guests of others have ${named} in ${text}; they are passed over and never touched`,
      range.first > 101
        ? `Keep new ones out: pvesh set /cluster/options --next-id lower=100,upper=${range.first}`
        : "Set PVE_VMID_RANGE to where PVE's own choice of VMIDs does not go",
    ),
  ];
}

/** A container of ours that no record owns is the clockwork's business. */
async function isStamped(pve: PveApi, { type, node, vmid }: ClusterResource, signal: AbortSignal): Promise<boolean> {
  if (type !== "lxc" || node === undefined || vmid === undefined) return false;
  const config = await pve
    .lxc(node, vmid)
    .config({ signal })
    .catch(() => null);
  return parseStamp(config?.description, vmid) !== null;
}
