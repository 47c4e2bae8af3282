/** Queues share their owner's connection, and leave it to the owner to speak of its errors. */
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { createQueues } from "../../shared/queues.ts";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { type RedisServer, startRedis } from "../redis.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(() => server[Symbol.asyncDispose]());

test("an outage of Redis prints nothing", async () => {
  const printed = vi.spyOn(console, "error").mockImplementation(() => {});
  await using stack = new AsyncDisposableStack();
  stack.defer(() => printed.mockRestore());
  const redis = stack.adopt(connectRedis(server.url), closeRedis);
  const heard = vi.fn();
  redis.on("error", heard);
  const queues = createQueues(redis, "{queues}");
  stack.defer(() => queues.close());
  await queues.get("place").waitUntilReady();
  await server.kill("SIGKILL");
  await vi.waitFor(() => expect(heard).toHaveBeenCalled(), { timeout: 30_000 });
  await server.restart();
  await redis.ping();
  expect(printed).not.toHaveBeenCalled();
});
