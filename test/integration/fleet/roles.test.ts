/**
 * What a user of `deploy/redis/users.conf` is refused. That each can do its whole job all other tests show: workers, ops
 * pages, gates and producers are these users there, too.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { closeRedis, connectRedis } from "../../../shared/redis/connect.ts";
import type { Role } from "../../redis.ts";
import { all, type Bed, provisionOne, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
});
afterAll(() => bed.close());

/** `refused`, or what came of it. */
async function tryAs(role: Role, ...[command = "", ...words]: string[]): Promise<string> {
  const redis = connectRedis(bed.redisServer.urlFor(role));
  try {
    await redis.call(command, ...words);
    return "ok";
  } catch (error) {
    return /NOPERM|ACL failure in script|user executing the script can't access/.test(String(error))
      ? "refused"
      : String(error);
  } finally {
    await closeRedis(redis);
  }
}

const SERVER = [
  "FLUSHALL",
  "FLUSHDB",
  "CONFIG GET maxmemory-policy",
  "CONFIG SET maxmemory-policy allkeys-lru",
  "KEYS *",
  "SCAN 0",
  "RANDOMKEY",
  "MONITOR",
  "ACL LIST",
  "SCRIPT FLUSH",
  "FUNCTION FLUSH",
  "CLIENT KILL TYPE normal",
  "REPLICAOF 127.0.0.1 1",
  "BGREWRITEAOF",
  "SHUTDOWN NOSAVE",
  "SWAPDB 0 1",
  "GET other",
  "SET other 1",
  "PUBLISH other hello",
  "EVAL redis.call('DEL','other') 0",
  "FUNCTION STATS",
].map((line) => line.split(" "));

test.each(["worker", "producer", "ops", "gate", "viewer"] as const)(
  "a %s is refused what is the server's or another's",
  async (role) => {
    const outcomes = await Promise.all(SERVER.map(async (words) => [words.join(" "), await tryAs(role, ...words)]));
    expect(outcomes.filter(([, outcome]) => outcome !== "refused")).toEqual([]);
  },
);

test("sealed secrets: producers and ops hand them in, and none but workers gets them", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { env: { PLANTED: "secret" } });
  const key = bed.keys.secret(sandboxId);
  expect(await bed.redis.exists(key)).toBe(1);
  expect(await tryAs("worker", "GET", key)).toBe("ok");
  for (const role of ["producer", "ops", "gate", "viewer"] as const)
    for (const words of [
      ["GET", key],
      ["DUMP", key],
      ["COPY", key, `${bed.keys.prefix}:x`],
      ["RENAME", key, `${bed.keys.prefix}:x`],
    ])
      expect(await tryAs(role, ...words), `${role}: ${words}`).toBe("refused");
  // Nor are other keys taken for secret ones.
  for (const role of ["producer", "ops", "gate", "viewer"] as const)
    for (const name of ["second", "secrets", "secretary:1", "sea", "s1", "open"])
      expect(await tryAs(role, "GET", `${bed.keys.prefix}:${name}-not-there`), `${role}: ${name}`).toBe("ok");
});

test("a viewer sees sandboxes, operations and events, and changes nothing", async () => {
  const { sandboxId, operationId } = await provisionOne(bed.fleet);
  const viewer = bed.client({ redis: bed.redisServer.urlFor("viewer") });
  expect((await viewer.sandboxes.list()).map(({ id }) => id)).toContain(sandboxId);
  expect((await (await viewer.operation(operationId)).status()).status).toBe("succeeded");
  expect((await all(viewer.events({ after: "0", follow: false }))).length).toBeGreaterThan(3);
  await expect(viewer.destroy({ sandboxId })).rejects.toThrow();
  await expect(viewer.provision({ template: "cmux-base" })).rejects.toThrow();
  for (const words of [
    ["SET", "x", "1"],
    ["DEL", "open"],
    ["HSET", "quotas", "*", "{}"],
    ["PUBLISH", "wake", "node pve1"],
  ])
    expect(await tryAs("viewer", words[0] ?? "", `${bed.keys.prefix}:${words[1]}`, ...words.slice(2))).toBe("refused");
});
