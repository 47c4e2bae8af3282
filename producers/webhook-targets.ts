/** Where the workers send webhooks, what of it was given up, and trying it. */
import { randomBytes } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import type { Job } from "bullmq";
import { FleetError, type FleetErrorCode, POLICY } from "../shared/errors.ts";
import { createEventGroupStore } from "../shared/state/event-groups.ts";
import { loadTargets, type PublishedTarget, webhookGroup } from "../shared/state/webhooks.ts";
import type { WebhookJob } from "../shared/webhooks.ts";
import type { Parts } from "./parts.ts";

export interface WebhookTargetView {
  name: string;
  host: string;
  /** Whose events; all teams' when absent. */
  team?: string | undefined;
  /** All types when absent. */
  types?: string[] | undefined;
  /** When a worker last had it in its configuration: a target that none has for ten minutes is given up. ms since the epoch. */
  seenAt: number;
  /** Messages that wait for their first try or are on their way. */
  waiting: number;
  /** Messages that were not taken and are tried again. */
  retrying: number;
  /** Messages that were given up. */
  dead: number;
  /** Events that are not yet among these messages, those that it does not want included. */
  behind: number;
  /** Why one of those that are tried again was not taken. */
  lastError?: string | undefined;
}

export interface DeadWebhook {
  id: string;
  type: string;
  /** Of an event. */
  operation?: string | undefined;
  sandbox?: string | undefined;
  attempts: number;
  /** When it was given up; ms since the epoch. */
  at: number;
  reason: string;
}

export interface WebhookTry {
  /** The receiver's answer, 2xx. */
  status: number;
  tookMs: number;
}

/** Targets are in the workers' configuration (FLEET_WEBHOOKS). Only for clients of all teams: each throws `forbidden` in a client of one. */
export interface WebhookTargets {
  list(): Promise<WebhookTargetView[]>;
  /** Messages that were given up, newest first; 1,000 are kept, for two weeks. Throws `webhook_not_found`. */
  dead(target: string): Promise<DeadWebhook[]>;
  /** Sends them again, all or those with these ids, with all tries from the beginning; returns how many. Throws `webhook_not_found`. */
  retry(target: string, ids?: readonly string[]): Promise<number>;
  /**
   * Has a worker send a message of type `webhook.test`, once. Throws what that failed with (`webhook_failed`,
   * `address_refused`), `timeout`, `webhook_not_found`, or `signal`'s reason.
   */
  test(
    target: string,
    options?: { timeoutMs?: number | undefined; signal?: AbortSignal | undefined },
  ): Promise<WebhookTry>;
}

/** Workers tell of their targets every 5 s. */
const SEEN_MS = 30_000;
const LOOK_MS = 50;
const TEST_MS = 30_000;

export function createWebhookTargets(parts: Parts): WebhookTargets {
  const { link, keys, now } = parts;
  const list = () => {
    assertOperator(parts);
    return link.request((redis) => loadTargets(redis, keys));
  };
  const find = async (name: string): Promise<PublishedTarget> => {
    const known = await list();
    const target = known.find((one) => one.name === name);
    if (target !== undefined) return target;
    const which =
      known.length === 0 ? "no worker has told of any" : `there are ${known.map((one) => one.name).join(", ")}`;
    throw new FleetError("webhook_not_found", `there is no webhook target of this name; ${which}`, {
      facts: { targets: known.map((one) => one.name) },
    });
  };
  /** One that a worker serves. */
  const findServed = async (name: string) => {
    const { at } = await find(name);
    if (now() - at <= SEEN_MS) return;
    const text = `no worker has ${name} in its FLEET_WEBHOOKS since ${new Date(at).toISOString()}`;
    throw new FleetError("webhook_not_found", text, { facts: { seenAt: at } });
  };
  const loadDead = (name: string) => link.request(() => parts.queues.webhook(name).getFailed());
  return {
    async list() {
      const [targets, groups] = await Promise.all([list(), createEventGroupStore(link.request, keys).list()]);
      const lag = new Map(groups.map((group) => [group.name, group.lag]));
      return Promise.all(targets.map((target) => toView(parts, target, lag.get(webhookGroup(target.name)) ?? 0)));
    },
    async dead(name) {
      await find(name);
      return (await loadDead(name)).map(toDead);
    },
    async retry(name, ids) {
      await findServed(name);
      const wanted = (await loadDead(name)).filter(({ data }) => ids === undefined || ids.includes(data.id));
      const done = await Promise.allSettled(
        wanted.map((job) => link.request(() => job.retry("failed", { resetAttemptsMade: true }))),
      );
      return done.filter(({ status }) => status === "fulfilled").length; // others were sent again or removed meanwhile
    },
    async test(name, { timeoutMs = TEST_MS, signal } = {}) {
      await findServed(name);
      const id = `test_${randomBytes(8).toString("hex")}`;
      const message = { type: "webhook.test", timestamp: new Date(now()).toISOString(), data: {} } as const;
      const queue = parts.queues.webhook(name);
      const job = await link.request(() =>
        queue.add(message.type, { id, message }, { jobId: id, attempts: 1, lifo: true }),
      );
      try {
        return await waitForTry(parts, name, job, { timeoutMs, signal });
      } finally {
        await link.request(() => job.remove()).catch(() => {}); // one that runs just now goes with its queue's old jobs
      }
    },
  };
}

async function toView(
  parts: Parts,
  { name, host, team, types, at }: PublishedTarget,
  behind: number,
): Promise<WebhookTargetView> {
  const queue = parts.queues.webhook(name);
  const [counts, [retried]] = await parts.link.request(() =>
    Promise.all([queue.getJobCounts("waiting", "active", "delayed", "failed"), queue.getDelayed(0, 0)]),
  );
  const { waiting = 0, active = 0, delayed = 0, failed = 0 } = counts;
  return {
    name,
    host,
    team,
    types,
    seenAt: at,
    waiting: waiting + active,
    retrying: delayed,
    dead: failed,
    behind,
    lastError: retried?.failedReason,
  };
}

function toDead({ data: { id, message }, attemptsMade, finishedOn, failedReason }: Job<WebhookJob>): DeadWebhook {
  const { type } = message;
  const of = "operation" in message.data ? { operation: message.data.operation, sandbox: message.data.sandbox } : {};
  return { id, type, ...of, attempts: attemptsMade, at: finishedOn ?? 0, reason: failedReason ?? "" };
}

async function waitForTry(
  { link, queues, now }: Parts,
  target: string,
  { id = "" }: Job<WebhookJob>,
  { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal | undefined },
): Promise<WebhookTry> {
  for (const patience = now() + timeoutMs; now() < patience; ) {
    const job = await link.request(() => queues.webhook(target).getJob(id));
    if (job?.finishedOn !== undefined && job.failedReason === undefined) return job.returnvalue as WebhookTry; // as the worker wrote it
    if (job?.finishedOn !== undefined) throw toFailure(target, job.failedReason ?? "");
    await pause(LOOK_MS, undefined, { signal }).catch(() => {});
    signal?.throwIfAborted();
  }
  throw new FleetError("timeout", `no worker has sent it within ${timeoutMs} ms`, { facts: { target } });
}

/** A job keeps an error's text alone, which begins with the code. */
function toFailure(target: string, reason: string): FleetError {
  const [, word = "", text = reason] = /^([a-z_]+): (.*)$/s.exec(reason) ?? [];
  const code = word in POLICY ? (word as FleetErrorCode) : "webhook_failed"; // just checked
  return new FleetError(code, text, { facts: { target } });
}

function assertOperator({ team }: Parts): void {
  if (team === undefined) return;
  throw new FleetError("forbidden", `webhooks are for all teams: leave the team ${team} (FLEET_TEAM) out for this`, {
    facts: { team },
  });
}
