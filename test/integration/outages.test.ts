/** What Redis may do to its clients in an outage: nothing of it ends their process, as an unhandled rejection does. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { expect, inject, test, vi } from "vitest";
import { createLink } from "../../producers/link.ts";
import { Channels } from "../../shared/redis/channels.ts";
import { connectRedis } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { startWake } from "../../workers/wake.ts";

interface Wire extends AsyncDisposable {
  url: string;
  /** Resolves when something is subscribed to. */
  subscribed(): Promise<void>;
  /** Breaks all connections; what is subscribed to next gets no answer. */
  breakOff(): void;
  /** The same, with connections that stay. */
  silence(): void;
}

/** A way to Redis. */
async function startWire(): Promise<Wire> {
  const { hostname, port } = new URL(inject("redisUrl"));
  const sockets = new Set<Socket>();
  let onSubscribe = Promise.withResolvers<void>();
  let isSilent = false;
  const server = createServer((socket) => {
    const other = connect(Number(port), hostname);
    for (const one of [socket, other]) sockets.add(one.on("error", () => {}));
    socket.on("data", (data) => {
      const subscribes = /\r\nsubscribe\r\n/i.test(data.toString("latin1"));
      if (subscribes) onSubscribe.resolve();
      if (!subscribes || !isSilent) other.write(data);
    });
    other.on("data", (data) => socket.write(data));
    socket.once("close", () => other.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  return {
    url: `redis://127.0.0.1:${typeof address === "object" ? address?.port : 0}`,
    subscribed: () => onSubscribe.promise,
    silence() {
      isSilent = true;
    },
    breakOff() {
      isSilent = true;
      onSubscribe = Promise.withResolvers();
      for (const socket of sockets) socket.destroy();
    },
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
}

test("a client that listens closes while Redis, just back, says nothing", async () => {
  await using wire = await startWire();
  const link = createLink(wire.url, 1_000);
  const channels = new Channels(() => link.openBlocking());
  // The second is told at the answer.
  for (let turn = 0; turn < 2; turn++) await new Promise<void>((told) => channels.listen("{outages}", () => told()));
  wire.breakOff();
  await wire.subscribed();
  await channels.close();
  await link.close();
});

test("so does a worker", async () => {
  await using wire = await startWire();
  const wake = await startWake(
    connectRedis(wire.url).on("error", () => {}),
    createKeys("{outages}"),
  );
  wire.breakOff();
  await wire.subscribed();
  await wake[Symbol.asyncDispose]();
});

test("a connection that does not answer is replaced once, however many wait for it", async () => {
  await using wire = await startWire();
  const warnings: string[] = [];
  const onWarning = ({ name }: Error) => void warnings.push(name);
  process.on("warning", onWarning);
  const link = createLink(wire.url, 500);
  await vi.waitFor(() => link.request((redis) => redis.ping()), { timeout: 30_000 });
  wire.silence();
  const asked = Array.from({ length: 20 }, () => link.request((redis) => redis.subscribe("{outages}")));
  for (const one of await Promise.allSettled(asked))
    expect(one).toMatchObject({ reason: { code: "redis_unavailable" } });
  await link.close();
  process.off("warning", onWarning);
  expect(warnings).toEqual([]);
});
