/** The stand-in's truth against the fleet's records, in the numbers that a chaos run is judged by. */

import { decodeSandbox } from "../../shared/state/operations.ts";
import { isEnded, isGone, type OperationRecord, type SandboxRecord } from "../../shared/state/records.ts";
import { parseStamp } from "../../workers/sandbox/stamp.ts";
import { groupBy, isHeavy, mostAtOnce } from "../integration/fleet/overlap.ts";
import type { Pve } from "../pve/index.ts";
import type { Span } from "./strike.ts";
import { NODE_SLOTS, VMIDS, type World } from "./world.ts";

/** Each finding is a line for people. */
export interface Findings {
  lost: string[];
  doubled: string[];
  leaked: string[];
  stuckLeases: string[];
  limitViolations: string[];
  drift: string[];
}

export interface Records {
  operations: ReadonlyMap<string, OperationRecord>;
  sandboxes: readonly SandboxRecord[];
}

/** `accepted`: what producers were told; records of operations that nobody was told of (a lost reply) come on top. */
export async function loadRecords({ redis, keys, store }: World, accepted: Iterable<string>): Promise<Records> {
  const names = await redis.keys(`${escapeGlob(keys.prefix)}:*`);
  const idsOf = (prefix: string) =>
    names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  const ids = new Set([...accepted, ...idsOf(keys.operation(""))]);
  const operations = await Promise.all([...ids].map((id) => store.load(id as OperationRecord["id"]))); // a key's end
  const hashes = await Promise.all(idsOf(keys.sandbox("")).map((id) => redis.hgetall(keys.sandbox(id))));
  return {
    operations: new Map(operations.flatMap((one) => (one ? [[one.id, one]] : []))),
    sandboxes: hashes.map(decodeSandbox),
  };
}

const escapeGlob = (text: string) => text.replaceAll(/[[\]*?\\]/g, "\\$&");

/** Operations without a record that were accepted when Redis forgot what it was told. */
export function findForgotten(
  accepted: ReadonlyMap<string, Span>,
  { operations }: Records,
  wasLost: (span: Span) => boolean,
): ReadonlySet<string> {
  return new Set([...accepted].flatMap(([id, span]) => (!operations.has(id) && wasLost(span) ? [id] : [])));
}

export function findLost(accepted: ReadonlySet<string>, { operations }: Records): string[] {
  return [...new Set([...accepted, ...operations.keys()])].flatMap((id) => {
    const record = operations.get(id);
    if (record && isEnded(record.status)) return [];
    if (!record) return [`operation ${id} has no record`];
    const { kind, status, queue, job, parked, waitingFor = "", step, lastError } = record;
    const where = `${queue} as ${job}${parked ? ", parked" : ""}, step ${JSON.stringify(step)}, ${waitingFor}`;
    return [`operation ${id} (${kind}) is ${status} in ${where}; last error ${lastError?.code}`];
  });
}

/** Sandboxes that have more than one container right now, with the times when PVE was asked for all but the newest. */
export function doubledNow(pve: Pve): { line: string; clonedAt: number[] }[] {
  const clones = pve.tasks().filter(({ type }) => type === "vzclone");
  const owners = pve.containers().flatMap(({ vmid, node, config }) => {
    const stamp = parseStamp(config["description"], vmid);
    const clonedAt = clones.findLast(({ target }) => target === vmid)?.startedAt ?? 0;
    return stamp ? [{ sandbox: stamp.sandbox, place: `${node}/${vmid}`, clonedAt }] : [];
  });
  const groups = Map.groupBy(owners, ({ sandbox }) => sandbox);
  return [...groups]
    .filter(([, own]) => own.length > 1)
    .map(([sandbox, own]) => ({
      line: `sandbox ${sandbox} has ${own.map(({ place }) => place).join(" and ")}`,
      clonedAt: own
        .map(({ clonedAt }) => clonedAt)
        .sort((a, b) => a - b)
        .slice(0, -1),
    }));
}

export function findLeaked(pve: Pve, { sandboxes }: Records): string[] {
  const owned = new Set(sandboxes.filter(({ state }) => !isGone(state)).map(({ node, vmid }) => `${node}/${vmid}`));
  return pve
    .containers()
    .filter(({ vmid, node }) => inRange(vmid) && !owned.has(`${node}/${vmid}`))
    .map(({ vmid, node, status, lock, config }) => {
      const owner = parseStamp(config["description"], vmid);
      const record = sandboxes.find(({ id }) => id === owner?.sandbox);
      const told = `record: ${record?.state} at ${record?.node}/${record?.vmid}`;
      return `container ${node}/${vmid} (${status}, lock ${lock}) of ${owner?.operation} ${owner?.sandbox}; ${told}`;
    });
}

const inRange = (vmid: number) => vmid >= VMIDS.first && vmid <= VMIDS.last;

/** Slots, VMIDs, addresses and reservations whose holder has ended. */
export async function findStuckLeases({ redis, keys }: World, { operations, sandboxes }: Records): Promise<string[]> {
  const names = await redis.keys(`${escapeGlob(keys.prefix)}:*`);
  const under = (prefix: string) => names.filter((name) => name.startsWith(prefix));
  const open = new Set([...operations.values()].filter(({ status }) => !isEnded(status)).map(({ id }) => String(id)));
  const alive = new Set(sandboxes.filter(({ state }) => !isGone(state)).map(({ id }) => String(id)));
  const found: string[] = [];
  const check = (what: string, holders: readonly string[], live: ReadonlySet<string>) =>
    found.push(...holders.filter((one) => !live.has(one)).map((one) => `${what} is held by ${one}`));
  for (const name of under(keys.slot(""))) check(name, await redis.hkeys(name), open);
  for (const name of under(keys.held(""))) check(name, [name.slice(keys.held("").length)], open);
  for (const name of under(keys.reserved(""))) check(name, await redis.hkeys(name), alive);
  for (const name of [keys.vmids, keys.ips, keys.addresses])
    for (const [what, holder] of Object.entries(await redis.hgetall(name))) check(`${name} ${what}`, [holder], alive);
  return found;
}

/** More heavy tasks at once on a node than it has slots, or two clones of one source at once. */
export function findLimitViolations(pve: Pve): string[] {
  const tasks = pve.tasks();
  const perNode = [...groupBy(tasks.filter(isHeavy), ({ node }) => node)].map(([node, own]) => ({
    what: `heavy tasks on ${node}`,
    most: mostAtOnce(own),
    limit: NODE_SLOTS,
  }));
  const clones = tasks.filter(({ type }) => type === "vzclone");
  const perSource = [...groupBy(clones, ({ id }) => id)].map(([id, own]) => ({
    what: `clones of ${id}`,
    most: mostAtOnce(own),
    limit: 1,
  }));
  return [...perNode, ...perSource]
    .filter(({ most, limit }) => most > limit)
    .map(({ what, most, limit }) => `${what}: ${most} at once, ${limit} allowed`);
}

/** What disagrees without being lost, doubled or leaked. */
export function findDrift(pve: Pve, { sandboxes }: Records): string[] {
  return sandboxes.flatMap(({ id, state, node, vmid }) => {
    if (isGone(state) || state === "quarantined") return [];
    const container = pve.containers().find((one) => one.vmid === vmid && one.node === node);
    if (!container) return [`sandbox ${id} is ${state} at ${node}/${vmid}, where no container is`];
    const stands = container.frozen ? "paused" : container.status;
    const told = `sandbox ${id} is ${state}, its container ${node}/${vmid} is ${stands}`;
    return [
      ...((state === "warm" ? "running" : state) === stands ? [] : [told]),
      ...(container.lock === undefined ? [] : [`container ${node}/${vmid} is locked (${container.lock})`]),
      ...(container.config["rootfs"] === undefined ? [`container ${node}/${vmid} of ${id} has no rootfs`] : []),
    ];
  });
}
