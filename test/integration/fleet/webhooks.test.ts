/** Webhooks: delivered at least once to those who are listed and to nobody else, whatever the receivers do. */

import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { verifyWebhook } from "../../../producers/webhooks.ts";
import { createQueues, type Queues } from "../../../shared/queues.ts";
import { loadTargets, publishTargets } from "../../../shared/state/webhooks.ts";
import { startOps } from "../../../workers/ops/server.ts";
import { deliver } from "../../../workers/webhooks/deliver.ts";
import { createAgent } from "../../../workers/webhooks/reach.ts";
import { retireWebhooks } from "../../../workers/webhooks/retire.ts";
import { command } from "../command.ts";
import { dump } from "./dump.ts";
import { type Bed, failure, startBed, until } from "./harness.ts";

interface Delivery {
  path: string;
  headers: IncomingHttpHeaders;
  body: string;
}

const newSecret = () => `whsec_${randomBytes(32).toString("base64")}`;
const SECRETS = { old: newSecret(), next: newSecret() };
const LOOPBACK = ["127.0.0.0/8", "::1/128"];

interface Answer {
  status: number;
  headers?: Record<string, string>;
}

/** What each path answers to a message, by how often it came. */
const ANSWERS: Record<string, (times: number) => Answer | null> = {
  "/flaky": (times) => ({ status: times === 1 ? 500 : 204 }),
  "/busy": (times) => (times === 1 ? { status: 503, headers: { "retry-after": "2" } } : { status: 200 }),
  "/moved": () => ({ status: 302, headers: { location: "/good" } }),
  "/gone": () => ({ status: 410 }),
  "/silent": () => null,
  "/down": () => ({ status: isUp ? 200 : 500 }),
  "/held": (times) => (times === 1 ? null : { status: 200 }),
  "/retired": () => ({ status: 500 }),
};
let isUp = false;

const answerOf = (path: string, times: number): Answer | null => {
  const answer = ANSWERS[path];
  return answer === undefined ? { status: 200 } : answer(times);
};

let bed: Bed;
let server: Server;
let queues: Queues;
let origin: string;
/** The answer without end was. */
const cutOff = Promise.withResolvers<void>();
const deliveries: Delivery[] = [];
const of = (path: string) => deliveries.filter((one) => one.path === path);

beforeAll(async () => {
  server = createServer(async (request, response) => {
    const { url: path = "", headers } = request;
    const body = (await buffer(request)).toString("utf8");
    deliveries.push({ path, headers, body });
    const times = of(path).filter((one) => one.headers["webhook-id"] === headers["webhook-id"]).length;
    if (path === "/endless") {
      response.writeHead(200);
      const more = () => response.write("x".repeat(65_536), (error) => error ?? more());
      response.once("close", cutOff.resolve);
      more();
      return;
    }
    const answer = answerOf(path, times);
    if (answer !== null) response.writeHead(answer.status, answer.headers).end("ok");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  bed = await startBed({ pve: { nodes: 1 }, env: { ...only(...targets()), OPS_PORT: "0" } });
  queues = createQueues(bed.redis, bed.env["FLEET_PREFIX"] ?? "");
});

afterAll(async () => {
  server.closeAllConnections();
  server.close();
  await queues.close();
  await bed.close();
});

const target = (name: string, more: object = {}) => ({
  name,
  url: `${origin}/${name}`,
  secrets: [SECRETS.old],
  types: ["operation.failed"],
  allowPrivate: LOOPBACK,
  ...more,
});

const only = (...them: object[]) => ({ FLEET_WEBHOOKS: JSON.stringify(them) });

function targets() {
  const named = `http://localhost:${new URL(origin).port}/private`;
  return [
    target("good", { secrets: [SECRETS.next, SECRETS.old] }),
    target("red", { team: "red", types: undefined }),
    target("flaky"),
    target("busy"),
    target("moved", { attempts: 1 }),
    target("gone"),
    target("silent"),
    target("down", { attempts: 1 }),
    target("private", { url: named, allowPrivate: ["10.0.0.0/8"], attempts: 1 }),
  ];
}

/** An operation that fails at once; resolves with its id. */
async function failOne(team = "blue"): Promise<string> {
  const handle = await bed.client({ team }).provision({ template: "there-is-none" });
  await failure(handle.result({ timeoutMs: 60_000 }), "template_not_found");
  return handle.id;
}

const eventOf = ({ body }: Delivery) => JSON.parse(body).data;
const delivered = (path: string, operation: string, count = 1) =>
  until(() => {
    const found = of(path).filter((one) => eventOf(one).operation === operation);
    return found.length >= count && found;
  }, `${count} deliveries of ${operation} to ${path}`);
const dead = (target: string, operation: string) =>
  until(
    async () => (await queues.webhook(target).getFailed()).find(({ data }) => JSON.stringify(data).includes(operation)),
    `a dead letter of ${target}`,
  );

test("a message is signed so that a library and ours verify it, with each secret", async () => {
  const operation = await failOne();
  const [one] = await delivered("/good", operation);
  if (!one) throw new Error("unreachable");
  for (const secret of Object.values(SECRETS)) {
    const headers = one.headers as Record<string, string>; // none of these comes twice
    expect(new StandardWebhook(secret).verify(one.body, headers)).toMatchObject({ type: "operation.failed" });
    expect(verifyWebhook(one, secret)).toMatchObject({
      id: one.headers["webhook-id"],
      type: "operation.failed",
      event: { type: "operation.failed", operation, team: "blue", data: { code: "template_not_found" } },
    });
  }
  expect(() => verifyWebhook(one, newSecret())).toThrow("signature_invalid");
});

test("a target gets the team and the types that it asked for", async () => {
  const blue = await failOne("blue");
  const red = await failOne("red");
  await delivered("/red", red, 3);
  await delivered("/good", blue);
  const types = of("/red").map(({ body }) => JSON.parse(body).type);
  expect(new Set(types)).toEqual(new Set(["operation.accepted", "sandbox.changed", "operation.failed"]));
  expect(of("/red").every((one) => eventOf(one).team === "red")).toBe(true);
});

describe("a receiver that does not take a message", () => {
  test("gets it again by the same id, no sooner than it wants", async () => {
    const begun = performance.now();
    const operation = await failOne();
    const [first, second] = await delivered("/flaky", operation, 2);
    expect(second?.headers["webhook-id"]).toBe(first?.headers["webhook-id"]);
    await delivered("/busy", operation, 2);
    expect(performance.now() - begun).toBeGreaterThan(2_000);
  });

  test("is not followed where it redirects to", async () => {
    const operation = await failOne();
    expect((await dead("moved", operation)).failedReason).toBe(
      "webhook_failed: answered 302; redirects are not followed",
    );
    expect(of("/good").filter((one) => eventOf(one).operation === operation)).toHaveLength(1); // its own
  });

  test("gets it no more when it says that it is gone", async () => {
    const operation = await failOne();
    expect((await dead("gone", operation)).attemptsMade).toBe(1);
  });

  test("is not waited for without end, nor for all that it has to say", { timeout: 8_000 }, async () => {
    const { FLEET_WEBHOOKS: [silent, endless] = [] } = bed.config(only(target("silent"), target("endless")));
    if (!silent || !endless) throw new Error("unreachable");
    const agent = createAgent(endless);
    const job = { id: "test_1", message: { type: "webhook.test", timestamp: "", data: {} } } as const;
    await failure(deliver(silent, agent, job, { timeoutMs: 100 }), "timeout");
    expect(await deliver(endless, agent, job)).toMatchObject({ status: 200 });
    await cutOff.promise;
    await agent.destroy();
  });

  test("keeps nobody else waiting", async () => {
    await Promise.all(Array.from({ length: 12 }, () => failOne()));
    const operation = await failOne();
    await delivered("/good", operation);
    expect(of("/silent").length).toBeGreaterThan(0);
  });
});

/** A command line of an operator. */
const cli = (...words: string[]) => {
  const { FLEET_PREFIX } = bed.env;
  const REDIS_URL = bed.redisServer.urlFor("producer");
  return command({ REDIS_URL, FLEET_PREFIX }, ...words);
};

test("the command shows, tries and sends again, with Redis alone", async () => {
  const operation = await failOne();
  await dead("down", operation);
  const [ls, letters] = await Promise.all([cli("webhooks", "ls"), cli("webhooks", "dead", "down", "--json")]);
  expect(ls.out).toMatch(/^TARGET +HOST .*\n(.*\n)*down +127\.0\.0\.1:\d+ +- +operation\.failed +0 +0 +[1-9]/);
  const [letter] = JSON.parse(letters.out).filter((one: { operation: string }) => one.operation === operation);
  expect(letter).toMatchObject({ type: "operation.failed", attempts: 1, reason: "webhook_failed: answered 500" });
  const [failed, unknown] = await Promise.all([cli("webhooks", "test", "down"), cli("webhooks", "test", "nobody")]);
  expect(failed).toMatchObject({ code: 1, err: "fleet: webhook_failed: answered 500\n" });
  expect(unknown).toMatchObject({ code: 1, err: expect.stringMatching(/webhook_not_found.*there are busy, down/) });
  isUp = true;
  expect(await cli("webhooks", "retry", "down", letter.id)).toMatchObject({ code: 0, out: "1 sent again\n" });
  expect((await cli("webhooks", "retry", "down", letter.id)).err).toMatch(
    /^fleet: 1 of 1 are no dead messages of down;/,
  );
  const [first, again] = await delivered("/down", operation, 2);
  expect(again?.headers["webhook-id"]).toBe(first?.headers["webhook-id"]);
  expect((await cli("webhooks", "test", "down")).out).toMatch(/^down answered 200 after /);
  expect(verifyWebhook(of("/down").at(-1) as Delivery, SECRETS.old)).toMatchObject({
    type: "webhook.test",
    event: null,
  });
  const reason = new Error("enough");
  await expect(bed.fleet.webhooks.test("down", { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  await failure(bed.client({ team: "red" }).webhooks.list(), "forbidden");
});

test("the board shows each target's queue", async () => {
  if (!bed.workers) throw new Error("unreachable");
  await using ops = await startOps(bed.workers.context);
  const reply = await fetch(`${ops.url}/board/api/queues`);
  const shown = (await reply.json()) as { queues: { name: string }[] };
  expect(shown.queues.map(({ name }) => name)).toEqual(
    expect.arrayContaining(["place", "webhooks:webhook-good", "webhooks:webhook-down"]),
  );
});

test("a worker that dies before it has written that it delivered: again, by the same id; secrets are nowhere", async () => {
  const doomed = await bed.startProcess({ ...only(target("held")), LOG_LEVEL: "trace" });
  const operation = await failOne();
  await delivered("/held", operation);
  await doomed.end("SIGKILL");
  await bed.startWorkers(only(target("held")));
  const [first, again] = await delivered("/held", operation, 2);
  expect(again?.headers["webhook-id"]).toBe(first?.headers["webhook-id"]);
  await until(async () => (await queues.webhook("held").getCompletedCount()) === 1, "the record of it");
  const written = [await dump(bed.redis), doomed.output()].join("\n");
  for (const secret of Object.values(SECRETS)) {
    expect(written).not.toContain(secret.slice("whsec_".length));
    expect(written).not.toContain(Buffer.from(secret.slice("whsec_".length), "base64").toString("hex"));
  }
  expect(written).not.toContain("/held"); // a URL's path may be a secret, too
});

test("what waits for a target that is configured no more is given up, and stays in sight", async () => {
  const before = await bed.startWorkers(only(target("retired")));
  const operation = await failOne();
  await delivered("/retired", operation);
  await until(async () => (await queues.webhook("retired").getDelayedCount()) === 1, "its next try");
  await before.close();
  const published = await loadTargets(bed.redis, bed.keys);
  const old = published.filter(({ name }) => name === "retired").map((one) => ({ ...one, at: Date.now() - 601_000 }));
  await publishTargets(bed.redis, bed.keys, old);
  if (!bed.workers) throw new Error("unreachable");
  await retireWebhooks(bed.workers.context, AbortSignal.timeout(60_000));
  expect(await bed.fleet.webhooks.dead("retired")).toMatchObject([
    { operation, reason: "webhook_not_found: the target is not configured any more" },
  ]);
  await failure(bed.fleet.webhooks.retry("retired"), "webhook_not_found");
  expect(await bed.redis.xinfo("GROUPS", bed.keys.events)).not.toContainEqual(
    expect.arrayContaining([":webhook:retired"]),
  );
  await queues.webhook("retired").clean(0, 10, "failed");
  await retireWebhooks(bed.workers.context, AbortSignal.timeout(60_000));
  expect((await bed.fleet.webhooks.list()).map(({ name }) => name)).not.toContain("retired");
});

test("a name that leads to a private address which is not listed is not connected to", async () => {
  const operation = await failOne();
  const { failedReason } = await dead("private", operation);
  expect(failedReason).toMatch(/^address_refused: localhost leads to (127\.0\.0\.1|::1), which allowPrivate does not/);
  expect(of("/private")).toEqual([]);
});

test("a target that is too far behind is told so", async () => {
  const late = await bed.startWorkers(only(target("late")));
  await late.close();
  await failOne();
  const last = await failOne();
  await until(async () => {
    const behind = (await bed.fleet.webhooks.list()).filter(({ behind }) => behind > 0);
    return behind.length === 1 && behind[0]?.name === "late";
  }, "the others to have all");
  await bed.redis.xtrim(bed.keys.events, "MAXLEN", 1);
  await bed.startWorkers(only(target("late")));
  await delivered("/late", last);
  const [missed] = of("/late").map((one) => verifyWebhook(one, SECRETS.old));
  expect(missed).toMatchObject({
    type: "webhook.missed",
    data: { after: expect.any(String), oldest: expect.any(String) },
  });
});
