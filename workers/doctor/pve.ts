/** Whether PVE's API and the cluster behind it are fit for work. */
import { FleetError, toFleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { NodeInventory } from "../../shared/state/inventory.ts";
import { answers } from "../nodes/probe.ts";
import { createPveApi, type PveApi } from "../pve/api.ts";
import { createPveHttp, type PveTarget } from "../pve/http.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

const HOST_MS = 8_000;
/** What the API calls that we use are known to be in. */
const LEAST_MAJOR = 7;

export interface Reached {
  findings: Finding[];
  /** Those of the target that answered; the rest would only cost time. */
  hosts: string[];
}

/** Each host of PVE_API_URL by itself. */
export async function examineHosts(target: PveTarget, signal: AbortSignal): Promise<Reached> {
  const tries = await Promise.all(
    target.hosts.map(async (host) => ({ host, ...(await askHost(target, host, signal)) })),
  );
  const good = tries.filter(({ error }) => error === undefined);
  const findings = tries.map(({ host, error, ms, version }) => {
    if (error === undefined) return ok("pve.api", `${host} answers in ${ms} ms (PVE ${version})`);
    const isDown = error.code === "node_unreachable" || error.code === "timeout";
    const wayOut = "Requests go to the others; bring it back, or take it out of PVE_API_URL";
    if (isDown && good.length > 0) return warning("pve.api", `${host}: ${error.text}`, wayOut);
    return problem("pve.api", `${host}: ${error.text}`, isDown ? REACH : undefined);
  });
  const version = good[0]?.version ?? null;
  if (version !== null && Number.parseInt(version, 10) < LEAST_MAJOR)
    findings.push(problem("pve.version", `PVE ${version} is too old`, `Upgrade to ${LEAST_MAJOR} or newer; best 9`));
  return { findings, hosts: good.map(({ host }) => host) };
}

async function askHost(target: PveTarget, host: string, signal: AbortSignal) {
  await using http = createPveHttp({ ...target, hosts: [host] });
  const at = performance.now();
  try {
    const { version } = await createPveApi(http).version({ signal, deadlineMs: HOST_MS });
    return { version, ms: Math.round(performance.now() - at) };
  } catch (error) {
    signal.throwIfAborted();
    return { error: toFleetError(error), ms: 0, version: null };
  }
}

/** Quorum. */
export async function examineCluster(pve: PveApi, signal: AbortSignal): Promise<Finding[]> {
  const check = "pve.quorum";
  const entries = await unlessForbidden(() => pve.clusterStatus({ signal }));
  // The rights are looked at, too, with the command that gives them.
  if (entries === null) return [warning(check, "not known: the token may not see the cluster's state", SEE_RIGHTS)];
  const cluster = entries.find(({ type }) => type === "cluster");
  if (cluster === undefined) return [ok(check, "a single node, no cluster")];
  if (cluster.quorate === true) return [ok(check, `cluster ${cluster.name} is quorate`)];
  return [
    problem(
      check,
      `cluster ${cluster.name} has no quorum: PVE refuses every change`,
      "Bring nodes back until most of them see each other: pvecm status",
    ),
  ];
}

const REACH = "PVE_API_URL must name nodes of the cluster with port 8006, which must be reachable from here";
const SEE_RIGHTS = "Give it Sys.Audit; see pve.rights";

/** `closes`: provisions close their containers' own firewalls, which filter only while the datacenter's is on. */
export async function examineFirewall(
  pve: PveApi,
  { closes, signal }: { closes: boolean; signal: AbortSignal },
): Promise<Finding[]> {
  const check = "pve.firewall";
  const state = await unlessForbidden(() => pve.firewall({ signal }));
  if (!closes)
    return [
      warning(
        check,
        "sandboxes reach each other and all that their bridge reaches",
        "Set PVE_FIREWALL_ALLOW; see README",
      ),
    ];
  if (state === null) return [warning(check, "not known: the token may not see it", SEE_RIGHTS)];
  if ((state.enable ?? 0) > 0) return [ok(check, "on for the datacenter")];
  return [
    problem(
      check,
      "off for the datacenter: PVE_FIREWALL_ALLOW closes nothing",
      "Allow 8006 and 22 from where you are first, then: pvesh set /cluster/firewall/options --enable 1",
    ),
  ];
}

async function unlessForbidden<T>(read: () => Promise<T>): Promise<T | null> {
  try {
    return await read();
  } catch (error) {
    if (error instanceof FleetError && error.code === "forbidden") return null;
    throw error;
  }
}

/** Each node: online, its daemon answers, names for its sandboxes. */
export async function examineNodes(
  pve: PveApi,
  nodes: readonly NodeInventory[],
  { signal, defaultNode, isPublic }: { signal: AbortSignal; defaultNode: NodeName | undefined; isPublic: boolean },
): Promise<Finding[]> {
  const findings = await Promise.all(
    nodes.map(async ({ name, online }) => {
      if (!online)
        return problem("pve.node", `${name} is offline`, `Bring it back; until then: fleet node cordon ${name}`);
      if (await answers(pve, name, signal)) return ok("pve.node", `${name} is online and answers`);
      return problem("pve.node", `${name} is online, but its API daemon does not answer`, RESTART);
    }),
  );
  findings.push(...(isPublic ? [ok("pve.dns", "URLs are public")] : await examineNames(pve, nodes, signal)));
  if (defaultNode !== undefined && !nodes.some(({ name }) => name === defaultNode))
    findings.push(problem("pve.node", `there is no node ${defaultNode}`, "Set PVE_NODE to one of the cluster's"));
  return findings;
}

/** Search domains, without which URLs in the LAN are bare addresses. */
async function examineNames(pve: PveApi, nodes: readonly NodeInventory[], signal: AbortSignal): Promise<Finding[]> {
  const check = "pve.dns";
  const nameless = nodes.filter(({ online, dnsSearch }) => online && dnsSearch === undefined);
  if (nameless.length === 0) return [ok(check, "each node has a search domain")];
  const findings = nameless.map(async ({ name }) => {
    const text = `${name} has no DNS search domain: URLs there are bare addresses`;
    const dns = await unlessForbidden(() => pve.nodeDns(name, { signal }));
    if (dns === null) return warning(check, `not known of ${name}: URLs there are bare addresses`, SEE_RIGHTS);
    // PVE writes the file anew: name servers that are not given are gone (INotify::update_etc_resolv_conf).
    const servers = [dns.dns1, dns.dns2, dns.dns3].flatMap((ip, at) => (ip ? [` --dns${at + 1} ${ip}`] : []));
    return warning(
      check,
      text,
      `pvesh set /nodes/${name}/dns --search DOMAIN${servers.join("")}; or set PVE_PUBLIC_DOMAIN`,
    );
  });
  return Promise.all(findings);
}

const RESTART = "On the node: systemctl restart pvedaemon pveproxy; look at journalctl -u pvedaemon";
