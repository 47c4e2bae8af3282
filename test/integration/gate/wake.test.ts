/** Requests to sandboxes that sleep: they wake them, once, and are served; what can't be woken says why. */
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TeamId } from "../../../shared/ids.ts";
import { createApiKeyStore } from "../../../shared/state/api-keys.ts";
import { readEvents } from "../../../shared/state/events.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { type Bed, failure, provisionOne, run, startBed, until } from "../fleet/harness.ts";
import { type Asked, askGate, seen, startEcho, upgradeAt } from "./rig.ts";

const DOMAIN = "sandbox.test";
const PORT = 8_000;
const BROWSER = { accept: "text/html,*/*;q=0.8" };

let bed: Bed;
let gate: Gate;
/** In another process of the same fleet, it could be. */
let other: Gate;
/** One whose clients wait for a second only. */
let impatient: Gate;
let box: Awaited<ReturnType<typeof provisionOne>>;
let guest: AsyncDisposable;

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1, templates: [{ name: "cmux-base" }, { name: "deaf", guest: { ignoresShutdown: true } }] },
    ssh: { guard: { first: 20_000, last: 29_999 } },
    env: {
      PVE_PUBLIC_DOMAIN: DOMAIN,
      GATE_PORT: "0",
      GATE_WAKE_SECONDS: "60",
      GATE_PROXY_SECRET: "p".repeat(32),
    },
  });
  const { context } = await bed.startWorkers({ FLEET_ROLES: "gate", REDIS_URL: bed.redisServer.urlFor("gate") });
  gate = await startGate(context);
  other = await startGate(context);
  impatient = await startGate({ ...context, config: bed.config({ GATE_WAKE_SECONDS: "1" }) });
  box = await provisionOne(bed.fleet, {
    wakeOnHttp: true,
    services: [
      { name: "web", port: PORT, auth: "api_key" },
      { name: "open", port: PORT, auth: "none" },
    ],
  });
  guest = await startEcho(box.address, PORT);
});
afterAll(async () => {
  await impatient?.[Symbol.asyncDispose]();
  await other?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await guest?.[Symbol.asyncDispose]();
  await bed?.close();
});

const power = (action: "pause" | "start" | "stop" | "resume" | "shutdown", sandboxId = box.sandboxId) =>
  run(bed.fleet, "power", { sandboxId, action });
const stateOf = async (sandboxId = box.sandboxId) => (await bed.fleet.sandboxes.get(sandboxId)).state;
const hostOf = (service = "open", { vmid } = box) => `${service}-${vmid}.${DOMAIN}`;
const ask = (asked: Asked = {}, host = hostOf()) => askGate(gate, host, asked);

/** Power operations of a sandbox so far. */
async function powersOf(sandboxId = box.sandboxId): Promise<string[]> {
  const { events } = await readEvents(bed.redis, bed.keys, "0-0", 0);
  return events.flatMap((one) =>
    one.type === "operation.accepted" && one.sandbox === sandboxId && one.data.kind === "power" ? [one.operation] : [],
  );
}

/** Lets the node refuse every command of the fleet. */
async function refusing<T>(work: () => Promise<T>): Promise<T> {
  const guard = join(bed.ssh?.folder ?? "", "pve1", "guard");
  const script = readFileSync(guard, "utf8");
  writeFileSync(guard, script.replace("case $asked in", "refuse 'not today'\n$&"));
  try {
    return await work();
  } finally {
    writeFileSync(guard, script);
  }
}

test("many requests at once, at several gates, wake it once; each is served", async () => {
  await power("pause");
  const before = (await powersOf()).length;
  const asked = Array.from({ length: 50 }, (_, at) =>
    askGate(at % 2 === 0 ? gate : other, hostOf(), { method: "POST", body: `${at} ${"x".repeat(50_000)}` }),
  );
  const replies = await Promise.all(asked);
  expect(replies.map(({ status }) => status)).toEqual(replies.map(() => 200));
  replies.forEach((reply, at) => {
    expect(seen(reply).body).toBe(`${at} ${"x".repeat(50_000)}`);
  });
  expect((await powersOf()).length - before).toBe(1);
});

test("a frozen one answers within 300 ms", async () => {
  const took = async (work: () => Promise<unknown>) => {
    await power("pause");
    const begun = performance.now();
    await work();
    return performance.now() - begun;
  };
  const [wake, resume] = [[] as number[], [] as number[]];
  for (let round = 0; round < 3; round++) {
    wake.push(await took(async () => expect((await ask()).status).toBe(200)));
    resume.push(await took(() => power("resume")));
  }
  // On a machine that is busy with something else a resume alone may take as long.
  expect(Math.min(...wake), `${wake} ${resume}`).toBeLessThan(Math.max(300, 4 * Math.min(...resume)));
});

test("a stopped one is started, its late service waited for, and the body that was held back comes whole", async () => {
  await power("stop");
  await guest[Symbol.asyncDispose]();
  const body = "y".repeat(3_000_000);
  const asked = ask({ method: "PUT", body, headers: { expect: "100-continue" } });
  await until(async () => (await stateOf()) === "running", "the start");
  const page = await askGate(other, hostOf(), { headers: BROWSER });
  expect([page.status, page.headers["retry-after"]]).toEqual([503, "1"]);
  expect(page.text).toMatch(/^<!doctype html>.*http-equiv="refresh" content="1"/);
  const { address = "" } = await bed.fleet.sandboxes.get(box.sandboxId);
  guest = await startEcho(address, PORT);
  const reply = await asked;
  expect(reply.status).toBe(200);
  expect(seen(reply).body).toBe(body);
});

test("an upgraded connection wakes it, and so does a proxy's question", async () => {
  await power("pause");
  const { socket, status } = await upgradeAt(gate, hostOf(), {});
  expect(status).toBe(101);
  socket.destroy();
  await power("pause");
  const told = await ask({ headers: { "x-fleet-proxy-secret": "p".repeat(32), "x-forwarded-uri": "/" } });
  expect([told.status, told.headers["x-fleet-upstream"]]).toEqual([200, expect.stringMatching(/:8000$/)]);
});

test("without credentials nobody wakes it, nor too often where none are needed", async () => {
  await power("pause");
  expect((await ask({}, hostOf("web"))).status).toBe(401);
  expect(await stateOf()).toBe("paused");
  const limited = await until(async () => {
    const reply = await ask();
    if (reply.status === 200) await power("pause");
    return reply.status === 200 ? null : reply;
  }, "the limit");
  expect([limited.status, limited.headers["retry-after"]]).toEqual([429, "60"]);
  await power("resume");
});

test("what only sleeps says so, as page, JSON and text", async () => {
  const sandbox = await provisionOne(bed.fleet, { services: [{ name: "open", port: PORT, auth: "none" }] });
  await power("stop", sandbox.sandboxId);
  const host = hostOf("open", sandbox);
  const text = "the sandbox is stopped, and requests do not wake it; whoever runs it can resume it";
  expect(await ask({}, host)).toMatchObject({ status: 503, text: `${text}\n`, headers: { "retry-after": "5" } });
  expect(JSON.parse((await ask({ headers: { accept: "application/json" } }, host)).text)).toEqual({
    status: 503,
    message: text,
  });
  const page = await ask({ headers: BROWSER }, host);
  expect(page.text).toContain(`<p>${text}</p>`);
  expect(page.text).not.toContain("refresh");
});

test("one that is just being put to sleep is let fall asleep, then woken", async () => {
  const sandbox = await provisionOne(bed.fleet, {
    template: "deaf",
    wakeOnHttp: true,
    services: [{ name: "open", port: PORT, auth: "none" }],
  });
  await using _ = await startEcho(sandbox.address, PORT);
  const shutdown = await bed.fleet.power({ sandboxId: sandbox.sandboxId, action: "shutdown", graceSec: 1 });
  await until(async () => (await shutdown.status()).step === "shutdown", "the shutdown's begin");
  expect((await ask({}, hostOf("open", sandbox))).status).toBe(200);
  expect(await shutdown.result()).toEqual({ state: "stopped", changed: true });
  expect(await powersOf(sandbox.sandboxId)).toHaveLength(2);
});

test("a wake that fails is told, and not begun again at once but later; one that takes long is told, too", async () => {
  const sandbox = await provisionOne(bed.fleet, {
    wakeOnHttp: true,
    services: [{ name: "open", port: PORT, auth: "none" }],
  });
  await using _ = await startEcho(sandbox.address, PORT);
  const host = hostOf("open", sandbox);
  await power("pause", sandbox.sandboxId);
  await refusing(async () => {
    const failed = await ask({}, host);
    expect([failed.status, failed.text]).toEqual([503, expect.stringContaining("ssh_refused")]);
    expect((await askGate(other, host)).status).toBe(503);
  });
  const powers = await powersOf(sandbox.sandboxId);
  expect(powers).toHaveLength(2);
  await bed.redis.hincrby(bed.keys.operation(powers[1] ?? ""), "endedAt", -10_000);
  expect((await ask({}, host)).status).toBe(200);
  // Nor does one that takes its time keep people or programs waiting.
  await power("pause", sandbox.sandboxId);
  bed.ssh?.node("pve1").hang();
  try {
    const [page, reply] = await Promise.all([ask({ headers: BROWSER }, host), askGate(impatient, host)]);
    expect([page.status, page.headers["retry-after"]]).toEqual([503, "1"]);
    expect(page.headers["content-security-policy"]).toMatch(/^default-src 'none'; style-src 'sha256-/);
    expect([reply.status, reply.headers["retry-after"]]).toEqual([503, "1"]);
  } finally {
    bed.ssh?.node("pve1").resume();
  }
  await until(async () => (await ask({}, host)).status === 200, "the service");
});

/** As if the last use had been more than an hour ago. */
const age = () => bed.redis.hset(bed.keys.uses, box.sandboxId, Date.now() - 3_601_000);
/** Lets the clockwork look at its next turn. */
const look = () => bed.redis.zadd(bed.keys.idle, "XX", Date.now() - 1, box.sandboxId);

describe("a sandbox that nobody uses", () => {
  const becomes = (state: string) => until(async () => (await stateOf()) === state, `the state ${state}`);
  /** As if nobody had used it for long; the gate writes the last uses of before down a while later. */
  const sleeps = (state: string) =>
    until(async () => {
      await age();
      await look();
      return (await stateOf()) === state;
    }, `the state ${state}`);
  const usedAt = async () => Number(await bed.redis.hget(bed.keys.uses, box.sandboxId));
  const isWatched = async () => (await bed.redis.zscore(bed.keys.idle, box.sandboxId)) !== null;
  /** Until the clockwork has looked at it and has let it be. */
  const looked = () =>
    until(async () => Number(await bed.redis.zscore(bed.keys.idle, box.sandboxId)) > Date.now(), "the look");
  const web = async () => {
    const { text } = await createApiKeyStore(bed.redis, bed.keys).create({
      team: TeamId.parse("default"),
      name: "test",
    });
    return { headers: { authorization: `Bearer ${text}` } };
  };

  test("is paused or stopped as its policy says, and is watched again once a request has woken it", async () => {
    const key = await web();
    await run(bed.fleet, "update", { sandboxId: box.sandboxId, idleSeconds: 3_600 });
    await sleeps("paused");
    expect(await isWatched()).toBe(false);
    expect(await ask(key, hostOf("web"))).toMatchObject({ status: 200 });
    expect(await isWatched()).toBe(true);
    await run(bed.fleet, "update", { sandboxId: box.sandboxId, idleAction: "stop" });
    await guest[Symbol.asyncDispose]();
    await sleeps("stopped");
    await power("start");
    await run(bed.fleet, "update", { sandboxId: box.sandboxId, idleAction: "pause" });
    guest = await startEcho((await bed.fleet.sandboxes.get(box.sandboxId)).address ?? "", PORT);
  });

  test("is used by requests, commands and what flows over open connections; these outlast a pause and wake it", async () => {
    const key = await web();
    const { sandboxId } = box;
    await run(bed.fleet, "update", { sandboxId, ttlSeconds: 900, ttlExtendOnUse: true });
    await bed.redis.hset(bed.keys.sandbox(sandboxId), "expiresAt", Date.now() + 60_000);
    await age();
    const before = Date.now();
    await ask(key, hostOf("web"));
    await until(async () => (await usedAt()) >= before, "the use");
    expect((await bed.fleet.sandboxes.get(sandboxId)).expiresAt).toBeGreaterThanOrEqual(before + 900_000);
    await run(bed.fleet, "update", { sandboxId, ttlSeconds: null, ttlExtendOnUse: false });
    await age();
    const command = await bed.fleet.exec({ sandboxId: box.sandboxId, command: "sleep 30" });
    await age();
    await look();
    await looked();
    expect(await stateOf()).toBe("running");
    const canceledAt = Date.now();
    await command.cancel();
    await failure(command.result(), "canceled");
    expect(await usedAt()).toBeGreaterThanOrEqual(canceledAt);
    const pause = { sandboxId: box.sandboxId, action: "pause", ifIdleSeconds: 3_600 } as const;
    expect(await run(bed.fleet, "power", pause)).toEqual({ state: "running", changed: false });

    const { socket } = await upgradeAt(gate, hostOf("web"), key.headers);
    await age();
    const sentAt = Date.now();
    socket.write("hello");
    await until(async () => (await usedAt()) >= sentAt, "the use");
    await power("pause");
    const heard = once(socket, "data");
    socket.write("again");
    await becomes("running");
    expect(String((await heard)[0])).toContain("again");
    socket.destroy();
  });
});
