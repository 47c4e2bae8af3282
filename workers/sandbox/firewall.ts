/** A container's own firewall: nobody gets in but the fleet, and out to nowhere that sandboxes have no business with. */
import { isIP } from "node:net";
import type { WorkerConfig } from "../../shared/config.ts";
import type { FirewallOptions, FirewallRule } from "../pve/api-lxc.ts";
import { parseNet } from "../pve/config-format.ts";
import type { LxcFirewallRule } from "../pve/replies-lxc.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";

/** By which our rules are known again. */
const COMMENT = "sandbox-fleet";

/**
 * Before the first start; PVE enforces it within some ten seconds of that. Nothing where PVE_FIREWALL_ALLOW is not set:
 * who may get in has to be known first. A clone has its template's firewall, so rules that are there stay one each.
 */
export async function closeFirewall(run: Run<"provision">): Promise<void> {
  const wanted = desiredRules(run.context.config);
  if (wanted.length === 0) return;
  await run.timed("firewall", async () => {
    const { lxc } = containerOf(run);
    const [config, present] = await Promise.all([lxc.config(run.call), lxc.firewallRules(run.call)]);
    for (const rule of missingRules(wanted, present)) await lxc.addFirewallRule(rule, run.writing);
    await lxc.firewallOptions(desiredOptions(config.net0), run.writing);
  });
}

/** Rules first, then the policy that they are exceptions of. Each is of one address family, as PVE wants it. Pure. */
function desiredRules({
  PVE_FIREWALL_ALLOW: allow,
  PVE_FIREWALL_DENY: deny,
}: Pick<WorkerConfig, "PVE_FIREWALL_ALLOW" | "PVE_FIREWALL_DENY">): FirewallRule[] {
  const common = { enable: 1, comment: COMMENT };
  return [
    ...byFamily(allow).map((source) => ({ ...common, type: "in" as const, action: "ACCEPT", proto: "tcp", source })),
    ...byFamily(deny).map((dest) => ({ ...common, type: "out" as const, action: "DROP", dest })),
  ];
}

function byFamily(networks: readonly string[]): string[] {
  return [4, 6].flatMap((family) =>
    inLists(networks.filter((network) => isIP(network.split("/")[0] ?? "") === family)),
  );
}

/** PVE's limit of `source` and `dest`, in characters. */
const LIST_LIMIT = 512;

function inLists(networks: readonly string[]): string[] {
  const lists: string[] = [];
  for (const network of networks) {
    const longer = `${lists.at(-1)},${network}`;
    if (lists.length === 0 || longer.length > LIST_LIMIT) lists.push(network);
    else lists[lists.length - 1] = longer;
  }
  return lists;
}

/** Pure. */
function missingRules(wanted: readonly FirewallRule[], present: readonly LxcFirewallRule[]): FirewallRule[] {
  const isThere = (rule: FirewallRule) =>
    present.some(
      (one) =>
        one.enable === 1 &&
        one.comment === COMMENT &&
        one.type === rule.type &&
        one.action === rule.action &&
        (one.source ?? "") === (rule.source ?? "") &&
        (one.dest ?? "") === (rule.dest ?? ""),
    );
  return wanted.filter((rule) => !isThere(rule));
}

/** PVE knows the addresses of `ipfilter` from net0 alone: with DHCP it would let nothing out. Pure. */
function desiredOptions(net0: string | undefined): FirewallOptions {
  const isFixed = net0 !== undefined && parseNet(net0).ip?.includes("/") === true;
  return { enable: true, dhcp: true, ndp: true, macfilter: true, ipfilter: isFixed, policy_in: "DROP" };
}
