/** update: what is kept of a sandbox beside its container; and TTLs that stop instead of destroying. */
import { isDeepStrictEqual } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { FleetEvent } from "../../../producers/index.ts";
import { newFence } from "../../../shared/ids.ts";
import { createOperationStore } from "../../../shared/state/operations.ts";
import { expireSandboxes } from "../../../workers/control/expire.ts";
import { parseStamp } from "../../../workers/sandbox/stamp.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
let sandboxId: string;
beforeAll(async () => {
  bed = await startBed({ rights: "least", pve: { nodes: 1 } });
  ({ sandboxId } = await provisionOne(bed.fleet, { metadata: { app: "web" } }));
});
afterAll(() => bed.close());

const update = (input: object) => run(bed.fleet, "update", { sandboxId, ...input });
const dueAt = async (id = sandboxId) => Number(await bed.redis.zscore(bed.keys.expiries, id));

/** Time passes until a TTL is over. */
async function timeIsUp(id: string): Promise<void> {
  await bed.redis.hset(bed.keys.sandbox(id), "expiresAt", Date.now() - 1);
  await bed.redis.zadd(bed.keys.expiries, Date.now() - 1, id);
}

/** The state that a sandbox comes to next. */
async function nextState(id: string, act: () => Promise<unknown>): Promise<string> {
  const events = bed.fleet.events({ sandbox: id, types: ["sandbox.changed"] });
  await act();
  for await (const event of events) if (event.type === "sandbox.changed") return event.data.state;
  throw new Error("unreachable");
}

test("metadata is merged entry by entry, also by many at once, or replaced", async () => {
  const many = Array.from({ length: 20 }, (_, at) => update({ metadata: { [`k${at}`]: String(at) } }));
  await Promise.all(many);
  const { metadata } = await update({ metadata: { app: null, k0: "new" } });
  expect(metadata).toEqual({
    ...Object.fromEntries(Array.from({ length: 20 }, (_, at) => [`k${at}`, `${at}`])),
    k0: "new",
  });
  expect((await bed.fleet.sandboxes.get(sandboxId)).metadata).toEqual(metadata);
  const entries = Object.fromEntries(Array.from({ length: 13 }, (_, at) => [`more${at}`, ""]));
  const full = await failure(update({ metadata: entries }), "invalid_input");
  expect(full).toMatchObject({ text: expect.stringContaining("at most 32"), facts: { fields: ["metadata"] } });
  expect(await update({ metadata: { "a/b": 'c "d" \u00fc' }, replaceMetadata: true })).toMatchObject({
    metadata: { "a/b": 'c "d" \u00fc' },
  });
  expect(await update({ metadata: {}, replaceMetadata: true })).toMatchObject({ metadata: {} });
  expect(await bed.fleet.sandboxes.list({ metadata: { app: "web" } })).toEqual([]);
});

test("a TTL is set, extended but never shortened so, and taken away", async () => {
  const before = Date.now();
  const { expiresAt } = await update({ ttlSeconds: 100 });
  expect(expiresAt).toBeGreaterThanOrEqual(before + 100_000);
  expect(await dueAt()).toBe(expiresAt);
  expect((await update({ ttlSeconds: 50, extend: true })).expiresAt).toBe(expiresAt);
  const later = await update({ ttlSeconds: 200, extend: true, ttlAction: "stop" });
  expect(later).toMatchObject({ ttlAction: "stop" });
  expect(later.expiresAt).toBeGreaterThan(expiresAt ?? 0);
  expect(await dueAt()).toBe(later.expiresAt);
  expect((await update({ ttlSeconds: 20 })).expiresAt).toBeLessThan(expiresAt ?? 0);
  expect(await update({ ttlSeconds: null })).toMatchObject({ expiresAt: null });
  expect(await bed.redis.zscore(bed.keys.expiries, sandboxId)).toBeNull();
  expect((await update({ ttlSeconds: 50, extend: true })).expiresAt).toBeNull();
});

test("legal in every live state; an event tells what changed; nothing is asked of PVE but the stamp", async () => {
  const seen: FleetEvent[] = [];
  const events = bed.fleet.events({ types: ["sandbox.updated"] });
  const provision = await bed.fleet.provision({ template: "cmux-base", wakeOnHttp: true });
  const early = await bed.fleet.update({ sandboxId: provision.sandboxId, metadata: { early: "1" } });
  expect(await early.result({ timeoutMs: 60_000 })).toMatchObject({ metadata: { early: "1" }, wakeOnHttp: true });
  await run(bed.fleet, "power", { sandboxId, action: "stop" });
  const asked = () => bed.pve.log().filter(({ path }) => path.includes("/lxc/") && !path.endsWith("/config")).length;
  const before = asked();
  expect(await update({ wakeOnHttp: true, ttlAction: "destroy" })).toMatchObject({ wakeOnHttp: true });
  expect(await update({ wakeOnHttp: false })).toMatchObject({ wakeOnHttp: false });
  expect(asked()).toBe(before);
  for await (const event of events) if (seen.push(event) === 3) break;
  expect(seen.map(({ data }) => data)).toEqual([
    { fields: ["metadata"] },
    { fields: ["ttl", "wakeOnHttp"] },
    { fields: ["wakeOnHttp"] },
  ]);
  await run(bed.fleet, "power", { sandboxId, action: "start" });
  await run(bed.fleet, "destroy", { sandboxId: provision.sandboxId });
  const { id: gone } = await bed.fleet.sandboxes.get(provision.sandboxId);
  await failure(bed.fleet.update({ sandboxId: gone, wakeOnHttp: true }), "sandbox_gone");
});

test("a run that has lost its claim changes nothing", async () => {
  const store = createOperationStore(bed.redis, bed.keys, { retentionSec: 60 });
  // Parked behind a provision that waits, so that no worker takes it.
  bed.pve.faults.lock(9_001, "backup");
  const provision = await bed.fleet.provision({ template: "cmux-base" });
  const handle = await bed.fleet.update({ sandboxId: provision.sandboxId, metadata: { mine: "1" } });
  const old = await store.claim(handle.id, newFence());
  await store.claim(handle.id, newFence());
  if (old.outcome !== "claimed") throw new Error("unreachable");
  const write = store.write(old.writer, { sandbox: {}, patch: { metadata: { stale: "1" }, fields: ["metadata"] } });
  await failure(write, "lock_lost");
  expect((await bed.fleet.sandboxes.get(provision.sandboxId)).metadata).toEqual({});
  await provision.cancel();
  await failure(provision.result({ timeoutMs: 60_000 }), "canceled");
  await failure(handle.result({ timeoutMs: 60_000 }), "sandbox_gone");
  bed.pve.faults.lock(9_001, null);
});

test("a TTL with stop, or pause where nothing can be frozen, stops the sandbox once, and is over then", async () => {
  const { context } = bed.workers ?? expect.fail();
  const stopOnce = async (ttlAction: "stop" | "pause") => {
    const { sandboxId: id, vmid } = await provisionOne(bed.fleet, { ttlSeconds: 3_600, ttlAction });
    expect(await nextState(id, () => timeIsUp(id))).toBe("stopped");
    expect(containerOf(bed, vmid)?.status).toBe("stopped");
    // In one step with the state.
    expect((await bed.fleet.sandboxes.get(id)).expiresAt).toBeUndefined();
    expect(await bed.redis.zscore(bed.keys.expiries, id)).toBeNull();
    await run(bed.fleet, "power", { sandboxId: id, action: "start" });
    // Who starts it again has it for as long as before.
    const { expiresAt = 0 } = await bed.fleet.sandboxes.get(id);
    expect(expiresAt).toBeGreaterThan(Date.now() + 3_590_000);
    await expireSandboxes(context, () => expiresAt - 1_000);
    expect((await bed.fleet.sandboxes.get(id)).state).toBe("running");
    return id;
  };
  const [id] = await Promise.all([stopOnce("stop"), stopOnce("pause")]);
  await run(bed.fleet, "update", { sandboxId: id, ttlSeconds: 3_600, ttlAction: "destroy" });
  expect(await nextState(id, () => timeIsUp(id))).toBe("destroying");
});

test("the stamp follows: services, TTL and metadata, below what people and the token's line have there", async () => {
  const provision = await provisionOne(bed.fleet, {
    description: "mine\nand more",
    services: [{ name: "web", port: 8_000 }],
    metadata: { app: "web" },
    ttlSeconds: 3_600,
  });
  const { sandboxId: id, vmid } = provision;
  const description = () => containerOf(bed, vmid)?.config["description"] ?? "";
  const facts = () => parseStamp(description(), vmid)?.facts;
  const follows = async (what: object) =>
    until(
      async () => {
        const { services, expiresAt, metadata } = await bed.fleet.sandboxes.get(id);
        expect({ services: services.map(({ name }) => String(name)), metadata }).toEqual(what);
        const now = { services: facts()?.services.map(({ name }) => String(name)), metadata: facts()?.metadata };
        return isDeepStrictEqual(now, what) && facts()?.expiresAt === expiresAt;
      },
      "the stamp to follow",
      10_000,
    );
  await follows({ services: ["web"], metadata: { app: "web" } });
  // A change while an operation is at work on the container waits for its end; one by somebody else is not lost.
  bed.pve.faults.edit(vmid, { description: `${description()}added by hand` });
  await Promise.all([
    run(bed.fleet, "update", { sandboxId: id, metadata: { app: null, more: "1" }, ttlSeconds: null }),
    run(bed.fleet, "expose", { sandboxId: id, name: "api", port: 9_000 }),
    run(bed.fleet, "hide", { sandboxId: id, name: "web" }),
    run(bed.fleet, "power", { sandboxId: id, action: "reboot" }),
  ]);
  await follows({ services: ["api"], metadata: { more: "1" } });
  const token = /^cmux-execd-auth-token=[a-f0-9]{64}$/;
  expect(description().split("\n").slice(1)).toEqual([
    expect.stringMatching(token),
    "mine",
    "and more",
    "added by hand",
    "",
  ]);
  const done = async () => (await bed.redis.exists(bed.keys.restamp, bed.keys.restamping)) === 0;
  await until(done, "no mark left");
});
