/** A node that is no more: its sandboxes end as `lost`, and with them what was to be done to them. */
import { retentionSecOf } from "../../shared/config.ts";
import { FleetError } from "../../shared/errors.ts";
import { type NodeName, newFence, OperationId } from "../../shared/ids.ts";
import { unreserve } from "../../shared/placement/reservation.ts";
import type { Finding } from "../../shared/state/errands.ts";
import type { Command, OperationEnd, Write } from "../../shared/state/operations.ts";
import { isEnded, isGone, type SandboxRecord } from "../../shared/state/records.ts";
import { settleSandbox } from "../../shared/state/settle-sandbox.ts";
import { isTaskHolder } from "../../shared/state/slots.ts";
import { listPlaced } from "../../shared/state/standing.ts";
import type { WorkerContext } from "../context.ts";
import { addReleased } from "../run/add-jobs.ts";
import { releaseCommands } from "../sandbox/release.ts";
import type { Round } from "./round.ts";

/** Throws `invalid_input` while the cluster counts it as online. */
export async function forgetNode(context: WorkerContext, node: NodeName, round: Round): Promise<Finding[]> {
  const { redis, keys, store, slots, metrics, log } = context;
  if (round.guests.some((one) => one.type === "node" && one.node === node && one.status === "online")) {
    const text = `node: ${node} is online, and its containers run; drain it, or switch it off for good first`;
    throw new FleetError("invalid_input", text, { facts: { node, fields: ["node"] } });
  }
  const placed = (await listPlaced(redis, keys)).filter((one) => one.node === node && !isGone(one.state));
  const findings: Finding[] = [];
  for (const { id, vmid, hostname } of placed) {
    round.signal.throwIfAborted();
    const about = { what: "ghost" as const, node, vmid, name: hostname, sandbox: id };
    // Somebody may have moved its config to another node, as PVE's manual says; then it is taken in where it is.
    const other = round.guests.find((one) => one.vmid === vmid && one.node !== undefined && one.node !== node)?.node;
    if (other !== undefined) {
      findings.push({ ...about, done: "waits", text: `it stands on ${other} now, and is taken in there` });
      continue;
    }
    await endOperations(context, node, id);
    const record = await store.loadSandbox(id);
    if (record === null) continue;
    const done = isGone(record.state) || (await lose(context, record));
    const text = done ? `ends as lost with ${node}` : "something was begun on it just now; ask again";
    findings.push({ ...about, team: record.team, done: done ? "taken in" : "waits", text });
    round.onProgress?.();
  }
  const name = `node-${node}`;
  for (const holder of await slots.holders(name)) {
    const operation = isTaskHolder(holder) ? null : await store.load(holder);
    if (operation === null || operation.endedAt !== undefined) await slots.reap(name, holder);
  }
  await redis
    .multi()
    .hdel(keys.boots, node)
    .hdel(keys.nodesSeen, node)
    .zadd(keys.nodesForgotten, Date.now(), node)
    .exec();
  metrics.reconciled("lost", findings.filter(({ done }) => done === "taken in").length);
  log.warn({ node, sandboxes: findings.length }, "node is forgotten: its sandboxes are lost");
  return findings;
}

async function lose(context: WorkerContext, record: SandboxRecord): Promise<boolean> {
  const { redis, keys, config } = context;
  const change = { sandbox: { state: "lost" as const }, also: await releaseAll(context, record) };
  return settleSandbox(redis, keys, record, change, { now: Date.now(), retentionSec: retentionSecOf(config) });
}

/** What it holds; a migration may have reserved on another node, too. */
async function releaseAll(context: WorkerContext, sandbox: SandboxRecord): Promise<Command[]> {
  const { redis, keys } = context;
  const also = await releaseCommands({ context, sandbox });
  for (const node of await redis.smembers(keys.nodes))
    if (node !== sandbox.node && (await redis.hexists(keys.reserved(node), sandbox.id)) === 1)
      also.push(...unreserve(keys, node, sandbox.id));
  return also;
}

/** A run of it that is alive claims it again and again, as its node does not answer. */
const TRIES = 20;

/** Ends all that is open on a sandbox, whatever a run of it is at: that one may write no more. */
async function endOperations(context: WorkerContext, node: NodeName, sandbox: string): Promise<void> {
  const { redis, keys } = context;
  const open = [
    ...(await redis.lrange(keys.changes(sandbox), 0, "-1")),
    ...(await redis.smembers(keys.users(sandbox))),
  ];
  for (const id of new Set(open.map((one) => OperationId.parse(one)))) {
    for (let tries = 1; ; tries++) {
      try {
        await endOperation(context, node, id);
        break;
      } catch (error) {
        if (!(error instanceof FleetError) || error.code !== "lock_lost" || tries === TRIES) throw error;
      }
    }
  }
}

async function endOperation(context: WorkerContext, node: NodeName, id: OperationId): Promise<void> {
  const { store, queues, metrics, log } = context;
  const operation = await store.load(id);
  if (operation === null || isEnded(operation.status)) return;
  const { kind, job, queue, acceptedAt, timings } = operation;
  const sandbox = await store.loadSandbox(operation.sandbox);
  const isLost = sandbox !== null && sandbox.node === node && !isGone(sandbox.state);
  const write: Write = isLost ? { sandbox: { state: "lost" }, also: await releaseAll(context, sandbox) } : {};
  const text = `node ${node} is no more (fleet node forget), and sandbox ${operation.sandbox} with it`;
  const error = new FleetError("sandbox_gone", text, { facts: { sandbox: operation.sandbox, node } });
  // What a destroy was to bring about is so.
  const end: OperationEnd =
    kind === "destroy"
      ? { status: "succeeded", result: { destroyed: true, existed: false } }
      : { status: "failed", error };
  const claim = await store.claim(id, newFence(), { job, lockKey: "", lockToken: "" });
  if (claim.outcome === "ended" || claim.outcome === "unknown") return;
  if (claim.outcome !== "claimed") throw new FleetError("lock_lost", `operation ${id} is on its way to another queue`);
  const released = await store.end(claim.writer, end, write);
  metrics.operationEnded({ kind, code: kind === "destroy" ? "ok" : error.code, node, acceptedAt, timings });
  log.warn({ operation: id, kind, node, sandbox: operation.sandbox }, "operation ends with its node");
  // A job that runs can't be removed: its run finds out.
  const carrier = await queues.get(queue).getJob(job);
  await carrier?.remove().catch(() => {});
  await addReleased(context, released);
}
