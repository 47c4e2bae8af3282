/** The fleet on a Redis Cluster, behind Sentinel and over TLS: the same steps, another kind of connection. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { expect, test } from "vitest";
import { createFleet } from "../../../producers/index.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { closeRedis, connectRedis } from "../../../shared/redis/connect.ts";
import { startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { makeCertificate } from "../../pve/certificate.ts";
import { startPve } from "../../pve/index.ts";
import { findServer, startRedis } from "../../redis.ts";
import { FAST } from "./harness.ts";

test("a Redis Cluster", async () => {
  // A node that has met no other does not know its own address.
  await using node = await startServer((port, dir) =>
    `--port ${port} --dir ${dir} --cluster-enabled yes --cluster-announce-ip 127.0.0.1`.split(" "),
  );
  await node.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383");
  await node.until(async () => String(await node.ask("CLUSTER", "INFO")).includes("cluster_state:ok"));
  await runMainJob(`redis-cluster://127.0.0.1:${node.port}`);
});

test("Sentinel", async () => {
  await using master = await startRedis({ engine: "process" });
  const { port } = new URL(master.url);
  await using sentinel = await startServer(async (own, dir) => {
    const file = join(dir, "sentinel.conf");
    await writeFile(file, `port ${own}\ndir ${dir}\nsentinel monitor fleet 127.0.0.1 ${port} 1\n`);
    return [file, "--sentinel"];
  });
  await runMainJob(`redis-sentinel://127.0.0.1:${sentinel.port}/0?master=fleet`);
});

/** One that trusts and shows its own certificate, and asks clients for it. */
const withTls = (port: number, dir: string) =>
  `port 0\ntls-port ${port}\ndir ${dir}\ntls-ca-cert-file ${dir}/cert\ntls-cert-file ${dir}/cert\ntls-key-file ${dir}/key\ntls-replication yes\n`;

test("TLS both ways, to Sentinel and its master too; who is not trusted or shows nothing gets nowhere", async () => {
  const certificate = await makeCertificate();
  const tls = { ca: certificate.cert, cert: certificate.cert, key: certificate.key };
  const start = (more: (dir: string) => string, ...args: string[]) =>
    startServer(async (port, dir) => {
      await writeFile(join(dir, "cert"), certificate.cert);
      await writeFile(join(dir, "key"), certificate.key);
      await writeFile(join(dir, "conf"), withTls(port, dir) + more(dir));
      return [join(dir, "conf"), ...args];
    }, tls);
  await using master = await start(() => "");
  await using sentinel = await start(() => `sentinel monitor fleet 127.0.0.1 ${master.port} 1\n`, "--sentinel");
  const [ca, cert, key] = [`ca=${master.dir}/cert`, `cert=${master.dir}/cert`, `key=${master.dir}/key`];
  await runMainJob(`rediss-sentinel://127.0.0.1:${sentinel.port}/0?master=fleet&${ca}&${cert}&${key}`);
  const direct = connectRedis(`rediss://127.0.0.1:${master.port}?${ca}&${cert}&${key}`);
  expect(await direct.ping()).toBe("PONG");
  await closeRedis(direct);
  const refusal = async (url: string) => {
    const redis = connectRedis(url);
    const [error]: unknown[] = await once(redis, "error");
    await closeRedis(redis);
    return String(error);
  };
  expect(await refusal(`rediss://127.0.0.1:${master.port}?${cert}&${key}`)).toMatch(/self-signed certificate/);
  expect(await refusal(`rediss://127.0.0.1:${master.port}?${ca}`)).toMatch(/certificate required|ECONNRESET/); // the alert, or the end that follows it
});

/** Provision, exec, snapshot, destroy, and the events of it. */
async function runMainJob(url: string): Promise<void> {
  await using pve = await startPve({ nodes: 1, timings: FAST });
  const secretKey = randomBytes(32).toString("hex");
  const config = loadWorkerConfig({
    REDIS_URL: url,
    PVE_API_URL: pve.url,
    PVE_API_TOKEN: pve.token,
    PVE_TLS_FINGERPRINT: pve.fingerprint,
    FLEET_SECRET_KEY: secretKey,
    SANDBOX_CIDRS: "127.0.0.0/8",
  });
  await using _workers = await startFleetWorkers(config, createLogger("silent"));
  await using fleet = createFleet({ redis: url, secretKey });
  const wait = { timeoutMs: 20_000 };
  const { sandboxId } = await (await fleet.provision({ template: "cmux-base", env: { GREETING: "hi" } })).result(wait);
  const ran = await (await fleet.exec({ sandboxId, command: "echo $GREETING" })).result(wait);
  expect(ran.stdout).toBe("hi\n");
  await (await fleet.snapshot({ sandboxId })).result(wait);
  expect(await (await fleet.destroy({ sandboxId })).result(wait)).toEqual({ destroyed: true, existed: true });
  const states: string[] = [];
  for await (const event of fleet.events({ after: "0", follow: false })) {
    if (event.type === "sandbox.changed") states.push(event.data.state);
  }
  expect(states).toEqual(["cloning", "configuring", "starting", "readying", "running", "destroying", "destroyed"]);
}

interface Server extends AsyncDisposable {
  port: number;
  dir: string;
  ask(command: string, ...args: string[]): Promise<unknown>;
  until(holds: () => Promise<boolean>): Promise<void>;
}

async function startServer(
  toArgs: (port: number, dir: string) => string[] | Promise<string[]>,
  tls?: { ca: string; cert: string; key: string },
): Promise<Server> {
  const dir = await mkdtemp(join(tmpdir(), "fleet-redis-kind-"));
  const port = await freePort();
  const child: ChildProcess = spawn(findServer() ?? "redis-server", await toArgs(port, dir), { stdio: "ignore" });
  const redis = new Redis({ port, ...(tls && { tls }), maxRetriesPerRequest: null, retryStrategy: () => 20 });
  redis.on("error", () => {}); // it is not up yet
  await redis.ping();
  return {
    port,
    dir,
    ask: (command, ...args) => redis.call(command, ...args),
    async until(holds) {
      while (!(await holds())) await redis.ping();
    },
    async [Symbol.asyncDispose]() {
      redis.disconnect();
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}
