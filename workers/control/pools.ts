/** Pools: members are looked at, those that are no use any more removed, and new ones asked for. */
import { newOperationId, newSandboxId, POOL_TEAM } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import type { PoolCounts, PoolSettings, Seen } from "../../shared/state/pools.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { averageRate, planPool, toMadeOf } from "../pool/plan.ts";
import { type Finding, loadMembers, lookAtMembers } from "../pool/probe.ts";
import { addJob } from "../run/add-jobs.ts";
import { ASK_AGAIN_MS, destroySandbox } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

/** Between two looks at a member; more members are looked at less often, well before they count as not ready. */
const LOOK_MS = { least: 2_000, each: 5, most: 6_000 };

export async function tendPools(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const { pools } = context;
  const [settings, members] = await Promise.all([pools.all(), loadMembers(context)]);
  const templates = new Set([...settings.keys(), ...members.flatMap(({ pool }) => pool ?? [])]);
  if (templates.size === 0) return;
  let room = roomFor(context) - members.filter(({ state }) => state === "placing" || state === "cloning").length;
  await forEachRecord(
    context,
    [...templates].map((id) => ({ id })),
    async ({ id: template }) => {
      const own = members.filter(({ pool }) => pool === template);
      room -= await tend(context, { template, settings: settings.get(template), members: own, room }, signal);
    },
  );
}

/** Others' work must find slots: what fills pools gets half of them. */
function roomFor({ inventory, nodes, config }: WorkerContext): number {
  const usable = inventory.current().nodes.filter(({ name, online }) => online && !nodes.obstacles().has(name));
  return usable.length * Math.max(1, Math.floor(config.FLEET_NODE_SLOTS / 2));
}

interface Pool {
  template: string;
  settings: PoolSettings | undefined;
  members: readonly SandboxRecord[];
  room: number;
}

/** Returns how many were asked for. */
async function tend(context: WorkerContext, { template, settings, members, room }: Pool, signal: AbortSignal) {
  const { pools, inventory, nodes } = context;
  const found = await lookAtDue(context, template, members, signal);
  const [counts, seen] = await Promise.all([pools.counts(template), pools.lastSeen(template)]);
  const now = Date.now();
  const rate = averageRate(counts, now);
  const demand = { rate, seen: counts.asked, at: now, since: counts.since || now };
  const plan = planPool({
    settings,
    members: members.map((one) => ({
      ...one,
      silentMs: silentMs(seen, one.id),
      lost: found.get(one.id) === "lost",
    })),
    sources: sourcesOf(inventory.current(), template),
    obstacles: nodes.obstacles(),
    isCordoned: nodes.isCordoned,
    counts: { ...counts, ...demand },
    room,
    now,
  });
  if (settings !== undefined) await pools.keepCounts(template, { ...demand, target: plan.target });
  for (const { id, why } of plan.remove) {
    const member = members.find((one) => one.id === id);
    const idempotencyKey = `pool ${id} ${Math.floor(now / ASK_AGAIN_MS)}`;
    if (member) await destroySandbox(context, member, { idempotencyKey, why });
  }
  for (let at = 0; at < plan.make; at++) await makeMember(context, template, { ...counts, ...demand }, at);
  return plan.make;
}

function silentMs({ now, members }: Seen, id: string): number {
  const at = members.get(id) ?? 0;
  return at < 0 ? now + at : 0;
}

/** Those whose turn it is, and after a start of Redis all of them. */
async function lookAtDue(
  context: WorkerContext,
  template: string,
  members: readonly SandboxRecord[],
  signal: AbortSignal,
): Promise<Map<string, Finding>> {
  const { pools } = context;
  const [server, seen] = await Promise.all([pools.server(), pools.lastSeen(template)]);
  const everyMs = Math.min(LOOK_MS.most, Math.max(LOOK_MS.least, members.length * LOOK_MS.each));
  const due = members.filter(
    ({ id, state, warmOn }) =>
      state === "warm" && (warmOn !== server || seen.now - (seen.members.get(id) ?? 0) > everyMs - 500),
  );
  return lookAtMembers(context, due, { template, server, signal });
}

/** By name, tag or VMID, as placement finds them. */
function sourcesOf({ replicas }: Inventory, template: string): Set<string> {
  const fits = replicas.filter(
    ({ owner, name, tags, vmid }) =>
      owner === undefined && (name === template || tags.includes(template) || String(vmid) === template),
  );
  return new Set(fits.map(toMadeOf));
}

/** An ordinary provision, behind every team's work. The same key again, after a crash, is the same operation. */
async function makeMember(
  context: WorkerContext,
  template: string,
  { since, fills }: PoolCounts,
  at: number,
): Promise<void> {
  const { store, redis, keys } = context;
  const asked = /^\d+$/.test(template) ? Number(template) : template;
  const accepted = await store.accept({
    id: newOperationId(),
    kind: "provision",
    sandbox: newSandboxId(),
    team: POOL_TEAM,
    scope: undefined,
    input: parseInput("provision", { template: asked, priority: "batch" }),
    secrets: undefined,
    // Of a pool that was removed and set anew the first must not pass for those of before.
    idempotencyKey: `pool ${template} ${since} ${fills + at}`,
    batch: true,
    onQuota: "ignore",
    newSandbox: { state: "placing", createdAt: Date.now(), template, pool: template },
  });
  const operation = await store.load(accepted.id);
  if (operation && accepted.needsJob) await addJob(context, operation);
  await redis.hset(keys.poolCounts(template), "fills", fills + at + 1);
}
