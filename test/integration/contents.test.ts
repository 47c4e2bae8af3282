/** Where uploads and downloads lie on their way: sealed, each piece in its place, within a bound, and by no one who lost. */
import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { newOperationId } from "../../shared/ids.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { type Ask, type ContentStore, createContentStore, PIECE_BYTES } from "../../shared/state/contents.ts";
import { createKeys, type Keys } from "../../shared/state/keys.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { failure } from "./fleet/harness.ts";

let server: RedisServer;
let redis: RedisConnection;
let keys: Keys;
let contents: ContentStore;
const key = randomBytes(32);
const LIMIT = 4 * PIECE_BYTES;
beforeAll(async () => {
  server = await startRedis();
  redis = connectRedis(server.url);
});
beforeEach(() => {
  keys = createKeys(`{c${randomBytes(4).toString("hex")}}`);
  contents = createContentStore(keys, [key], { limit: LIMIT });
});
afterAll(async () => {
  await closeRedis(redis);
  await server[Symbol.asyncDispose]();
});

const ask: Ask = (request) => request(redis);
async function put(content: Uint8Array, owner: string = newOperationId(), fence?: string): Promise<string> {
  const writer = contents.write(owner, { ask, ...(fence === undefined ? {} : { fence }) });
  await writer.add(content);
  await writer.end();
  return owner;
}
async function read(owner: string, from = contents): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of from.read(owner, ask)) pieces.push(piece);
  return Buffer.concat(pieces);
}
/** Shows less where a test fails. */
const lengthOf = async (content: Promise<Buffer>) => (await content).length;
const counted = async () => Number(await redis.hget(keys.contentBytes, "all"));

test("comes back as it was, whatever its length, and lies there unreadable", async () => {
  for (const bytes of [0, 1, PIECE_BYTES, PIECE_BYTES + 1]) {
    const content = Buffer.alloc(bytes, "planted in the content ");
    const owner = await put(content);
    expect(await read(owner)).toEqual(content);
    const lies = Object.values(await redis.hgetallBuffer(keys.content(owner)));
    expect(Buffer.concat(lies).includes("planted")).toBe(false);
    await contents.remove(owner, ask);
  }
  expect(await counted()).toBe(0);
});

test("a piece in another's place, another's content, a shortened or unended one: damaged or gone, never a part as the whole", async () => {
  const swapped = await put(randomBytes(3 * PIECE_BYTES));
  const [first, second] = await redis.hmgetBuffer(keys.content(swapped), "0", "1");
  await redis.hset(keys.content(swapped), { 0: second ?? "", 1: first ?? "" });
  await failure(lengthOf(read(swapped)), "content_damaged");
  await redis.rename(keys.content(swapped), keys.content("op_other"));
  await failure(lengthOf(read("op_other")), "content_damaged");
  const [shortened, unended] = [await put(randomBytes(PIECE_BYTES + 1)), newOperationId()];
  await redis.hdel(keys.content(shortened), "1");
  await failure(lengthOf(read(shortened)), "content_gone");
  await contents.write(unended, { ask }).add(randomBytes(PIECE_BYTES));
  await failure(lengthOf(read(unended)), "content_gone");
});

test("another key opens it after a rotation only", async () => {
  const owner = await put(Buffer.from("x"));
  const other = randomBytes(32);
  await failure(lengthOf(read(owner, createContentStore(keys, [other]))), "not_configured");
  expect((await read(owner, createContentStore(keys, [other, key]))).toString()).toBe("x");
});

test("all together have a bound: what was fetched goes first, what is on its way stays", async () => {
  const [oldest, next] = [await put(randomBytes(PIECE_BYTES)), await put(randomBytes(PIECE_BYTES))];
  // As ended downloads.
  await redis.zadd(keys.contents, 1, oldest, 2, next);
  const third = await put(randomBytes(2 * PIECE_BYTES));
  await failure(lengthOf(read(oldest)), "content_gone");
  expect([(await read(next)).length, (await read(third)).length]).toEqual([PIECE_BYTES, 2 * PIECE_BYTES]);
  const fourth = newOperationId();
  const { facts } = await failure(put(randomBytes(2 * PIECE_BYTES), fourth), "transfers_full");
  expect(facts["limit"]).toBe(LIMIT);
  await failure(lengthOf(read(next)), "content_gone");
  expect((await read(third)).length).toBe(2 * PIECE_BYTES);
  await contents.remove(third, ask);
  await put(randomBytes(2 * PIECE_BYTES), fourth);
  expect(await counted()).toBeLessThan(LIMIT);
  // Gone by itself, and found out by the next.
  await redis.del(keys.content(fourth));
  await contents.remove(await put(Buffer.alloc(0)), ask);
  expect(await counted()).toBe(0);
});

test("a run that has lost its operation adds nothing, the one that has it begins anew", async () => {
  const owner = newOperationId();
  await redis.hset(keys.operation(owner), "fence", "first");
  const stale = contents.write(owner, { ask, fence: "first" });
  await stale.add(randomBytes(PIECE_BYTES));
  await redis.hset(keys.operation(owner), "fence", "second");
  await put(Buffer.from("second"), owner, "second");
  await failure(stale.end(), "lock_lost");
  expect((await read(owner)).toString()).toBe("second");
});
