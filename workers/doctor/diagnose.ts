/** All checks, each within a deadline of its own; what does not need another one's answer runs beside it. */

import type { WorkerConfig } from "../../shared/config.ts";
import { Vmid } from "../../shared/ids.ts";
import { closeRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { createCollector } from "../inventory/collect.ts";
import { toLimits } from "../placement/limits.ts";
import { waysTo } from "../placement/replica-site.ts";
import { createPveApi, type PveApi } from "../pve/api.ts";
import { parseNet } from "../pve/config-format.ts";
import { createPveHttp } from "../pve/http.ts";
import { toPveTarget } from "../pve/target.ts";
import { createAddressOf } from "../ssh/node-address.ts";
import { createNodeShell, type NodeShell } from "../ssh/node-shell.ts";
import { examineClocks } from "./clocks.ts";
import { examine, type Finding, problem } from "./finding.ts";
import { examineByProbe } from "./probe.ts";
import { examineProxy } from "./proxy.ts";
import { examineCluster, examineFirewall, examineHosts, examineNodes } from "./pve.ts";
import { examineRedis, examineWorkers, openRedis } from "./redis.ts";
import { examinePool, examineRights, type RightsFor, toSubjects } from "./rights.ts";
import { examineSettings } from "./settings.ts";
import { examineSsh } from "./ssh.ts";
import { examineVmids, judgeStorages, judgeTemplates } from "./templates.ts";

const REDIS_MS = 5_000;
const PVE_MS = 15_000;
const PROXY_MS = 25_000;
const PROBE_MS = 240_000;

export interface Wishes {
  /** Make a sandbox of this template, or of the first there is (""), and destroy it again; undefined: do not. */
  probe: string | undefined;
}

/** What the checks behind the doors work with. */
interface Patient {
  config: WorkerConfig;
  redis: RedisConnection | null;
  pve: PveApi;
  shell: NodeShell | null;
  /** VMIDs that sandboxes have. */
  leased: readonly string[];
  wishes: Wishes;
}

export async function diagnose(
  env: Readonly<Record<string, string | undefined>>,
  wishes: Wishes,
): Promise<readonly Finding[]> {
  const { config, findings } = examineSettings(env);
  if (config === null) return findings;
  await using stack = new AsyncDisposableStack();
  const keys = createKeys(config.FLEET_PREFIX);
  const found: { redis?: RedisConnection; hosts: readonly string[] } = { hosts: [] };
  const doors = await Promise.all([
    examine("redis", REDIS_MS, async (signal) => {
      found.redis = stack.adopt(await openRedis(config.REDIS_URL, signal), closeRedis);
      return examineRedis(found.redis, keys);
    }),
    examine("pve.api", PVE_MS, async (signal) => {
      const reached = await examineHosts(toPveTarget(config), signal);
      found.hosts = reached.hosts;
      return reached.findings;
    }),
  ]);
  const { redis, hosts } = found;
  const behind: Promise<readonly Finding[]>[] = [];
  if (redis !== undefined)
    behind.push(
      examine("workers", REDIS_MS, () => examineWorkers(redis, { keys, perNode: config.PVE_CONNECTIONS_PER_NODE })),
    );
  const { PVE_PUBLIC_DOMAIN: domain } = config;
  if (redis !== undefined && domain !== undefined)
    behind.push(examine("proxy", PROXY_MS, () => examineProxy(config, domain)));
  if (hosts.length > 0) {
    const pve = createPveApi(stack.use(createPveHttp({ ...toPveTarget(config), hosts })));
    const shell = stack.use(createNodeShell(config, createAddressOf(pve)));
    const leased = redis === undefined ? [] : await redis.hkeys(keys.vmids);
    behind.push(examinePve({ config, redis: redis ?? null, pve, shell, leased, wishes }));
  }
  return [...findings, ...doors.flat(), ...(await Promise.all(behind)).flat()];
}

/** What PVE's API tells of the rest. */
async function examinePve(patient: Patient): Promise<readonly Finding[]> {
  const { config, pve, leased } = patient;
  const found: { inventory?: Inventory } = {};
  const reading = await examine("pve.inventory", PVE_MS, async (signal) => {
    const { PVE_VMID_RANGE: vmids, PVE_URL_PATTERN: pattern, FLEET_ADOPT_PREFIXES: prefixes } = config;
    const read = { leased: async () => leased, isCloning: async () => false };
    const options = { vmids, prefixes, urls: { pattern }, limits: toLimits(config), ...read };
    found.inventory = await createCollector(pve, options).collect({ signal }, null);
    return [];
  });
  const { inventory } = found;
  const looks = await Promise.all([
    examine("pve.quorum", PVE_MS, (signal) => examineCluster(pve, signal)),
    examine("pve.firewall", PVE_MS, (signal) =>
      examineFirewall(pve, { closes: config.PVE_FIREWALL_ALLOW.length > 0, signal }),
    ),
    ...(inventory === undefined ? [] : examineInventory(patient, inventory)),
  ]);
  return [...reading, ...looks.flat()];
}

function examineInventory(patient: Patient, inventory: Inventory): Promise<readonly Finding[]>[] {
  const { config, pve, shell, leased, wishes } = patient;
  const { PVE_VMID_RANGE: range, PVE_NODE: defaultNode, PVE_PUBLIC_DOMAIN: domain, PVE_POOL: pool } = config;
  const online = inventory.nodes.filter((node) => node.online).map(({ name }) => name);
  const first = Vmid.parse(range.first);
  const last = Vmid.parse(range.last);
  return [
    examine("pve.node", PVE_MS, (signal) =>
      examineNodes(pve, inventory.nodes, { signal, defaultNode, isPublic: domain !== undefined }),
    ),
    examine("pve.rights", PVE_MS, async (signal) => {
      const subjects = toSubjects({ ...(await objectsOf(patient, inventory, signal)), vmid: first });
      const [tokenId = ""] = config.PVE_API_TOKEN.split("=", 1);
      const major = Number.parseInt(inventory.version, 10);
      return examineRights(pve, subjects, { tokenId, major, skip: needless(inventory), signal });
    }),
    examine("clocks", PVE_MS, (signal) => examineClocks(patient, online, signal)),
    ...(pool === undefined ? [] : [examine("pve.pool", PVE_MS, (signal) => examinePool(pve, pool, signal))]),
    examine("storages", PVE_MS, async () => judgeStorages(inventory, config.PVE_STORAGE)),
    examine("templates", PVE_MS, async () => judgeTemplates(inventory, config.PVE_ALLOW_PRIVILEGED)),
    examine("vmids", PVE_MS, (signal) => examineVmids(pve, { range, leased: new Set(leased), signal })),
    ...(shell === null ? [] : [examine("ssh", PVE_MS, (signal) => examineSsh(shell, online, { first, last, signal }))]),
    ...(wishes.probe === undefined ? [] : [probe(patient, wishes.probe || inventory.replicas[0]?.name)]),
  ];
}

async function probe({ config, shell }: Patient, template: string | undefined): Promise<readonly Finding[]> {
  if (template === undefined) return [problem("probe", "there is no template to make a sandbox of", "See templates")];
  return examine("probe", PROBE_MS, () => examineByProbe(config, { template, shell }));
}

/** What the token must have rights on, as the settings and templates name it. */
async function objectsOf(
  { config, pve }: Patient,
  inventory: Inventory,
  signal: AbortSignal,
): Promise<Omit<RightsFor, "vmid">> {
  const { PVE_STORAGE, PVE_BRIDGE, PVE_POOL: pool } = config;
  const known = inventory.replicas.filter(({ online }) => online);
  const configs = await Promise.all(known.map(({ node, vmid }) => pve.lxc(node, vmid).config({ signal })));
  // A clone is asked for the template's networks, and then gets its own.
  const bridges = new Set(PVE_BRIDGE === undefined ? [] : [PVE_BRIDGE]);
  for (const [key, net] of configs.flatMap((one) => Object.entries(one)))
    if (/^net\d+$/.test(key) && typeof net === "string") {
      const { bridge, tag } = parseNet(net);
      if (bridge !== undefined) bridges.add(tag === undefined ? bridge : `${bridge}/${tag}`);
    }
  const storages = known.map(({ storage }) => storage).filter((storage) => storage !== "");
  const hasVirtual = [...bridges].some((name) => !name.startsWith("vmbr"));
  const zones = hasVirtual ? await pve.clusterResources({ type: "sdn" }, { signal }) : [];
  return {
    pool,
    nodes: inventory.nodes.filter(({ online }) => online).map(({ name }) => name),
    templates: known.map(({ vmid }) => vmid),
    storages: [...new Set(PVE_STORAGE === undefined ? storages : [...storages, PVE_STORAGE])],
    replicaStorages: [
      ...new Set(replicaWays(inventory).flatMap(({ storage, archive }) => [storage.name, archive ?? []].flat())),
    ],
    bridges: [...bridges],
    zones: [...new Set(zones.flatMap(({ sdn }) => sdn ?? []))].filter((zone) => zone !== "localnetwork"),
  };
}

/** The best way of each template to each node that lacks it. */
const replicaWays = ({ nodes, replicas }: Inventory) =>
  replicas.flatMap((replica) =>
    nodes
      .filter(({ name }) => !replicas.some((other) => other.name === replica.name && other.node === name))
      .flatMap(({ name }) => waysTo({ nodes }, replica, name).slice(0, 1)),
  );

/** Privileges that nothing here would make use of. */
function needless(inventory: Inventory): string[] {
  const { nodes, adoptable } = inventory;
  return [
    ...(nodes.length > 1 ? [] : ["VM.Migrate"]),
    ...(replicaWays(inventory).some(({ archive }) => archive !== undefined) ? [] : ["VM.Backup"]),
    ...((adoptable?.containers.length ?? 0) > 0 ? [] : ["Pool.Allocate"]),
  ];
}

export const isWell = (findings: readonly Finding[]): boolean => findings.every(({ level }) => level !== "problem");
