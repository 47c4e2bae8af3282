import type { IdleAction, TtlAction } from "../../shared/jobs/fields.ts";
import { type ResourceOptions, toResources, withoutUndefined } from "./commands/shared-options.ts";
import type { NamedPort } from "./parse-values.ts";

export interface ProvisionOptions extends ResourceOptions {
  template?: string | number;
  clone?: string;
  sourceSnapshot?: string;
  node?: string;
  nodeLabel?: string[];
  antiAffinity?: string;
  group?: string;
  storage?: string;
  pool?: string;
  bwlimit?: number;
  batch?: boolean;
  bridge?: string;
  ip?: string;
  ip6?: string;
  gateway?: string;
  gateway6?: string;
  hwaddr?: string;
  vlan?: number;
  rate?: number;
  mtu?: number;
  firewall?: boolean;
  instanceId?: string;
  hostname?: string;
  nesting?: boolean;
  description?: string;
  tag?: string[];
  metadata?: Record<string, string>;
  env?: Record<string, string>;
  setup?: string[];
  service?: NamedPort[];
  ttl?: number;
  ttlAction?: TtlAction;
  ttlExtendOnUse?: boolean;
  idle?: number | false;
  idleAction?: IdleAction;
  wakeOnHttp?: boolean;
}

/** A provision's input from a file's with the command line's options over it; still to be checked. Pure. */
export function toProvisionInput(
  base: Readonly<Record<string, unknown>>,
  template: string | number | undefined,
  options: ProvisionOptions,
): Record<string, unknown> {
  const network = withoutUndefined({
    bridge: options.bridge,
    ip: options.ip,
    ip6: options.ip6,
    gateway: options.gateway,
    gateway6: options.gateway6,
    hwaddr: options.hwaddr,
    vlan: options.vlan,
    rateMbps: options.rate,
    mtu: options.mtu,
    firewall: options.firewall,
  });
  return {
    ...base,
    ...toResources(options),
    ...withoutUndefined({
      template,
      clone: options.clone,
      sourceSnapshot: options.sourceSnapshot,
      node: options.node,
      nodeLabels: options.nodeLabel,
      antiAffinity: toAntiAffinity(options),
      storage: options.storage,
      pool: options.pool,
      bwlimitKib: options.bwlimit,
      priority: options.batch ? "batch" : undefined,
      network: Object.keys(network).length > 0 ? merge(base["network"], network) : undefined,
      instanceId: options.instanceId,
      hostname: options.hostname,
      features: options.nesting ? merge(base["features"], { nesting: true }) : undefined,
      description: options.description,
      tags: options.tag,
      metadata: options.metadata && merge(base["metadata"], options.metadata),
      env: options.env && merge(base["env"], options.env),
      setup: options.setup,
      services: options.service,
      ttlSeconds: options.ttl,
      ttlAction: options.ttlAction,
      ttlExtendOnUse: options.ttlExtendOnUse,
      idleSeconds: options.idle === false ? null : options.idle,
      idleAction: options.idleAction,
      wakeOnHttp: options.wakeOnHttp,
    }),
  };
}

function toAntiAffinity({ antiAffinity: mode, group }: ProvisionOptions) {
  return mode === undefined && group === undefined ? undefined : withoutUndefined({ mode, group });
}

/** Of a file's object the entries that no option names stay. */
const merge = (below: unknown, above: object): object =>
  typeof below === "object" && below !== null ? { ...below, ...above } : above;
