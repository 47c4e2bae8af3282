import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline/promises";
import { Redis } from "ioredis";
import { describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { type RedisServer, startRedis } from "../redis.ts";

function connectTo(server: RedisServer): Redis {
  const redis = new Redis(server.url, { maxRetriesPerRequest: null, retryStrategy: () => 20 });
  redis.on("error", () => undefined); // it reconnects, and the tests look at replies
  onTestFinished(() => redis.disconnect());
  return redis;
}

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

test("the run's shared server answers and never evicts", async () => {
  const redis = new Redis(inject("redisUrl"));
  onTestFinished(() => redis.disconnect());
  expect(await redis.config("GET", "maxmemory-policy")).toEqual(["maxmemory-policy", "noeviction"]);
});

describe("a server process", () => {
  test("is durable, and gone with its folder when disposed", async () => {
    let pid: number | undefined;
    let folder = "";
    {
      await using server = await startRedis({ engine: "process" });
      ({ pid, dataDir: folder = "" } = server);
      const redis = connectTo(server);
      expect(await redis.config("GET", "appendonly")).toEqual(["appendonly", "yes"]);
      expect(await redis.config("GET", "maxmemory-policy")).toEqual(["maxmemory-policy", "noeviction"]);
      expect(existsSync(folder)).toBe(true);
    }
    expect(pid && isAlive(pid)).toBe(false);
    expect(existsSync(folder)).toBe(false);
  });

  test("keeps acknowledged writes through SIGKILL and answers at the same address after", async () => {
    await using server = await startRedis({ engine: "process", appendfsync: "always" });
    const { url, pid } = server;
    const redis = connectTo(server);
    await redis.set("kept", "yes");
    await server.kill("SIGKILL");
    expect(server.pid).toBeUndefined();
    await server.restart();
    expect(await redis.get("kept")).toBe("yes");
    expect(server.url).toBe(url);
    expect(server.pid).not.toBe(pid);
  });

  test("restarts while it runs, and is disposed of while it is stopped", async () => {
    await using server = await startRedis({ engine: "process" });
    const redis = connectTo(server);
    await redis.set("kept", "yes");
    await server.restart();
    expect(await redis.get("kept")).toBe("yes");
    await server.kill("SIGSTOP");
  });

  test("leaves a folder alone that was given to it, and reads it again", async () => {
    const dataDir = await mkdtemp(join(tmpdir(), "fleet-redis-test-"));
    onTestFinished(() => rm(dataDir, { recursive: true }));
    for (const expected of [null, "yes"]) {
      await using server = await startRedis({ engine: "process", appendfsync: "always", dataDir });
      const redis = connectTo(server);
      expect(await redis.getset("kept", "yes")).toBe(expected);
    }
  });

  test("says so when the port is taken", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    onTestFinished(() => void other.close());
    const address = other.address();
    const port = typeof address === "object" ? address?.port : undefined;
    await expect(startRedis({ engine: "process", ...(port && { port }) })).rejects.toThrow("Address already in use");
  });

  test("is never silently missing", async () => {
    vi.stubEnv("PATH", "/nonexistent");
    onTestFinished(() => void vi.unstubAllEnvs());
    await expect(startRedis()).rejects.toThrow(/no Redis server: .*npm run setup/);
  });

  test.each(["SIGINT", "SIGTERM", "SIGKILL"] as const)("does not outlive an owner that ends by %s", async (signal) => {
    const owner = spawnOwner();
    const [pid, folder] = await firstLine(owner);
    owner.kill(signal);
    await once(owner, "exit");
    await vi.waitFor(
      () => {
        expect(existsSync(folder)).toBe(false);
        // A zombie is dead too: some containers have an init that never reaps.
        expect(isAlive(pid) && !isZombie(pid)).toBe(false);
      },
      { timeout: 30_000 },
    );
  });
});

function spawnOwner(): ChildProcess {
  const script = `import { startRedis } from ${JSON.stringify(new URL("../redis.ts", import.meta.url).href)};
    const server = await startRedis({ engine: "process" });
    console.log(server.pid, server.dataDir);`;
  return spawn(process.execPath, ["--input-type=module", "--eval", script], { stdio: ["ignore", "pipe", "inherit"] });
}

async function firstLine(child: ChildProcess): Promise<[pid: number, folder: string]> {
  if (child.stdout === null) throw new Error("the owner has no output");
  for await (const line of createInterface(child.stdout)) {
    const [pid = "", folder = ""] = line.split(" ");
    return [Number(pid), folder];
  }
  throw new Error("the owner ended without a word");
}

function isZombie(pid: number): boolean {
  try {
    return / Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}
