/** Sandboxes that nobody has used for their `idleSeconds` are paused or stopped, by an operation like any other. */
import { SandboxId } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import { runScript } from "../../shared/redis/script.ts";
import type { WorkerContext } from "../context.ts";
import { unusedSince } from "../sandbox/idle.ts";
import { ASK_AGAIN_MS, ask, PAGE, POSTPONE } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

export async function restIdle(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys } = context;
  const due = await redis.zrangebyscore(keys.idle, "-inf", now(), "WITHSCORES", "LIMIT", 0, PAGE);
  const entries = due.flatMap((id, at) => (at % 2 === 0 ? [{ id, lookAt: due[at + 1] ?? "" }] : []));
  await forEachRecord(context, entries, async ({ id, lookAt }) => {
    let next: number | null = now() + ASK_AGAIN_MS;
    try {
      next = await rest(context, id, { lookAt, now: now() });
    } finally {
      if (next === null) await redis.zrem(keys.idle, id);
      else await runScript(redis, POSTPONE, [keys.idle], [id, lookAt, next]);
    }
  });
}

/** When to look again; null: there is nothing to look for. */
async function rest(
  context: WorkerContext,
  id: string,
  { lookAt, now }: { lookAt: string; now: number },
): Promise<number | null> {
  const { redis, keys, store } = context;
  const sandbox = await store.loadSandbox(SandboxId.parse(id));
  const { idleSeconds: seconds, state } = sandbox ?? {};
  if (!sandbox || seconds === undefined || state !== "running") return null;
  const since = (await redis.llen(keys.changes(sandbox.id))) > 0 ? null : await unusedSince(context, sandbox);
  const dueAt = (since ?? now) + seconds * 1_000;
  if (dueAt > now) return dueAt;
  const { idleAction: action } = sandbox;
  const input = parseInput("power", { sandboxId: id, action, allowStop: true, ifIdleSeconds: seconds });
  const why = `nobody has used it for ${seconds} s`;
  await ask(context, sandbox, { kind: "power", input, idempotencyKey: `idle ${id} ${lookAt}`, why });
  return now + Math.min(ASK_AGAIN_MS, seconds * 1_000);
}
