import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { NodeName, type OperationId, Vmid } from "../../../shared/ids.ts";
import { type Ask, createContentStore } from "../../../shared/state/contents.ts";
import { saveInventory } from "../../../shared/state/inventory.ts";
import { createSecretStore } from "../../../shared/state/secrets.ts";
import { CHILD_ENV } from "../../child-env.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { command as runHere } from "../command.ts";
import { createRig, type Rig, SECRET_KEY, toProvisioned } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

const MAIN = new URL("../../../producers/cli/main.ts", import.meta.url).pathname;
const exited = { exitCode: 0, stdout: "", stderr: "", truncated: false, stdoutBytes: 0, stderrBytes: 0, durationMs: 2 };

interface Ran {
  code: number | null;
  out: string;
  err: string;
}

const envOf = ({ prefix }: Rig) => ({
  REDIS_URL: server.urlFor("producer"),
  FLEET_PREFIX: prefix,
  FLEET_SECRET_KEY: SECRET_KEY,
});

function start(rig: Rig, words: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [MAIN, ...words], {
    env: { ...CHILD_ENV, ...envOf(rig), ...env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  return { child, ended: collect(child) };
}

async function collect(child: ChildProcess): Promise<Ran> {
  const { stdout, stderr } = child;
  if (!stdout || !stderr) throw new Error("unreachable");
  const [out, err] = await Promise.all([text(stdout), text(stderr), once(child, "close")]);
  return { code: child.exitCode, out, err };
}

function run(rig: Rig, words: string[], env?: Record<string, string>, stdin = ""): Promise<Ran> {
  const { child, ended } = start(rig, words, env);
  child.stdin.end(stdin);
  return ended;
}

/** Without a process of its own, where one would show nothing more: they take half a second each to start. */
const command = (rig: Rig, words: string[], env: Record<string, string> = {}): Promise<Ran> =>
  runHere({ ...envOf(rig), ...env }, ...words);

/** The operations that were accepted, as a worker would see them; resolves once there are that many. */
const open = (rig: Rig, count: number): Promise<OperationId[]> =>
  vi.waitFor(
    async () => {
      const ids = await rig.redis.zrange(rig.keys.open, "0", "-1");
      expect(ids).toHaveLength(count);
      return ids as OperationId[];
    },
    { interval: 10, timeout: 30_000 },
  );

/** Plays the worker for the next operation. */
async function answer(rig: Rig, result: unknown | FleetError): Promise<unknown> {
  const [id] = await open(rig, 1);
  if (id === undefined) throw new Error("unreachable");
  const input = (await rig.store.load(id))?.input;
  await (result instanceof FleetError ? rig.fail(id, result) : rig.succeed(id, result));
  return input;
}

async function answerProvisions(rig: Rig, count: number): Promise<void> {
  const ids = await open(rig, count);
  for (const [index, id] of ids.entries()) {
    const sandbox = (await rig.store.load(id))?.sandbox ?? "";
    await rig.succeed(id, toProvisioned(id, sandbox, 20_000 + index));
  }
}

describe("provision", () => {
  test("waits and prints a table", async () => {
    await using rig = createRig(server);
    const ran = run(rig, [
      "provision",
      "base",
      "--cores",
      "2",
      "--service",
      "web:80",
      "--metadata",
      "a=b=c",
      "-e",
      "K=v",
    ]);
    const [id] = await open(rig, 1);
    expect((await rig.store.load(id ?? ("" as OperationId)))?.input).toMatchObject({
      template: "base",
      cores: 2,
      services: [{ name: "web", port: 80 }],
      metadata: { a: "b=c" },
    });
    await answerProvisions(rig, 1);
    const { code, out, err } = await ran;
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(
      /^SANDBOX +NODE +VMID +HOSTNAME +ADDRESS +TOOK +SERVICES\nsbx_\w{16} +pve1 +20000 +cmux-20000 +10/,
    );
    expect(out).not.toContain("\u001b");
  });

  test("--json: an object, with --count a list", async () => {
    await using rig = createRig(server);
    const one = command(rig, ["provision", "9000", "--json"]);
    await answerProvisions(rig, 1);
    expect(JSON.parse((await one).out)).toMatchObject({ vmid: 20_000, node: "pve1" });
    const many = command(rig, ["--json", "provision", "--template", "base", "--count", "3"]);
    await answerProvisions(rig, 3);
    const vmids = JSON.parse((await many).out).map(({ vmid }: { vmid: number }) => vmid);
    expect(vmids.sort()).toEqual([20_000, 20_001, 20_002]);
  });

  test("what failed of many is told, and the rest is shown", async () => {
    await using rig = createRig(server);
    const ran = command(rig, ["provision", "base", "--count", "2", "--json"]);
    const [first, second] = await open(rig, 2);
    if (!first || !second) throw new Error("unreachable");
    await rig.fail(first, new FleetError("storage_full", "local is full", { facts: { node: "pve1" } }));
    await rig.succeed(second, toProvisioned(second, "sbx_0000000000000000"));
    const { code, out, err } = await ran;
    expect(code).toBe(1);
    const values: unknown[] = JSON.parse(out);
    expect(values).toContainEqual(expect.objectContaining({ vmid: 20_000 }));
    expect(values).toContainEqual({ error: expect.objectContaining({ code: "storage_full" }) });
    expect(JSON.parse(err)).toMatchObject({ error: { code: "storage_full", facts: { node: "pve1" } } });
  });

  test("--no-wait prints the operation; --wait-timeout ends with 124 and leaves it", async () => {
    await using rig = createRig(server);
    const accepted = await command(rig, ["provision", "base", "--no-wait", "--json", "--idempotency-key", "k"]);
    const [id] = await open(rig, 1);
    expect(JSON.parse(accepted.out)).toMatchObject({ operationId: id });
    const { code, err } = await command(rig, ["provision", "base", "--idempotency-key", "k", "--wait-timeout", "30ms"]);
    expect(code).toBe(124);
    expect(err).toBe(
      `fleet: timeout: operation ${id} has not ended within 30 ms; it goes on, ask again or cancel it\n`,
    );
    expect(await rig.redis.zcard(rig.keys.open)).toBe(1);
  });

  test("--input from stdin, with options over it", async () => {
    await using rig = createRig(server);
    const { child, ended } = start(rig, ["provision", "--input", "-", "--ip", "lease", "--no-wait"]);
    child.stdin?.end(JSON.stringify({ template: "base", network: { bridge: "vmbr1", ip: "dhcp" }, cores: 4 }));
    expect((await ended).code).toBe(0);
    const [id] = await open(rig, 1);
    expect((await rig.store.load(id ?? ("" as OperationId)))?.input).toMatchObject({
      template: "base",
      cores: 4,
      network: { bridge: "vmbr1", ip: "lease" },
    });
  });

  test.each([
    ["no template", ["provision"], /^fleet: invalid_input: template: /],
    ["a bad field", ["provision", "base", "--memory", "1"], /^fleet: invalid_input: --memory: /],
    ["a bad number", ["provision", "base", "--cores", "two"], /^fleet: usage: option '--cores <n>'.* Give a number/],
    ["a fixed address for many", ["provision", "base", "--count", "2", "--ip", "10.0.0.5/24"], /--ip: .* --ip lease/],
    ["a missing file", ["provision", "--input", "/nonexistent.json"], /^fleet: invalid_input: --input \/nonexistent/],
    [
      "a file of jobs that is missing",
      ["batch", "/nonexistent.jsonl"],
      /^fleet: invalid_input: \S+: is not there; give /,
    ],
    ["a folder in place of jobs", ["batch", "/"], /^fleet: invalid_input: \/: is a folder; give /],
    ["a state that there is not", ["ls", "--state", "asleep"], /'--state <state>' .*'asleep'.*running/],
    ["an event that there is not", ["events", "--type", "dance"], /'--type <type>' .*'dance'.*sandbox\.changed/],
    [
      "a command's own option",
      ["exec", "20000", "ls", "-la"],
      /^fleet: usage: unknown option '-la'; .* after --.* see --help$/m,
    ],
    [
      "a batch's id for one",
      ["provision", "base", "--id", "x"],
      /^fleet: invalid_input: --id: .*--count; .*--idempotency-key$/m,
    ],
    ["an unknown option", ["provision", "base", "--core", "2"], /^fleet: usage: unknown option '--core'.*--cores/],
  ])("%s is refused with 2 and one line, and nothing is stored", async (_, words, line) => {
    await using rig = createRig(server);
    const { code, out, err } = await command(rig, words);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(line);
    expect(err.split("\n")).toHaveLength(2);
    expect(await rig.redis.keys(`${rig.prefix}:*`)).toEqual([rig.keys.pulse]);
  });
});

describe("exec", () => {
  test("gives output and exit code of the command, and takes the sandbox by VMID", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const ran = run(rig, ["exec", "20000", "--env", "A=1", "--env", "HOME_TOWN", "--", "printf", "%s", "it's"], {
      HOME_TOWN: "Köln",
    });
    const input = await answer(rig, { ...exited, exitCode: 7, stdout: "out\n", stderr: "err\n" });
    expect(input).toEqual({
      sandboxId,
      command: `'printf' '%s' 'it'\\''s'`,
      exact: true,
      idempotent: false,
      timeoutMs: 300_000,
      outputLimitBytes: 262_144,
    });
    expect(await ran).toEqual({ code: 7, out: "out\n", err: "err\n" });
  });

  /** What its worker would write, once it is there. */
  const play = async (rig: Rig) => {
    const [id] = await open(rig, 1);
    if (id === undefined) throw new Error("unreachable");
    const writer = await rig.claim(id);
    const print = (end: number, stream: "stdout" | "stderr", text: string) =>
      rig.store.addOutput(writer, [{ end, pieces: [{ stream, text }] }]);
    return { id, writer, print, input: (await rig.store.load(id))?.input };
  };

  test("shows output while the command runs, and says what is missing of it; input is sealed", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const { child, ended } = start(rig, ["exec", sandboxId, "--user", "dev", "cat"]);
    child.stdin.end("piped in");
    const worker = await play(rig);
    expect(worker.input).toMatchObject({ command: "cat", user: "dev" });
    expect(JSON.stringify(await rig.redis.hgetall(rig.keys.operation(worker.id)))).not.toContain("piped");
    const secrets = createSecretStore(rig.redis, rig.keys, [Buffer.from(SECRET_KEY, "hex")]);
    expect(await secrets.get(worker.id)).toEqual({ stdin: Buffer.from("piped in").toString("base64") });
    await worker.print(4, "stdout", "one\n");
    expect(String((await once(child.stdout, "data"))[0])).toBe("one\n");
    await worker.print(8, "stderr", "two\n");
    await worker.print(108, "stdout", "end\n");
    await rig.store.end(worker.writer, { status: "succeeded", result: exited }, { output: [] });
    expect(await ended).toEqual({
      code: 1, // in place of 0, as it is not whole
      out: "one\nend\n",
      err: "two\nfleet: 96 bytes of output are missing here: it came too fast\n",
    });
  });

  test("what is shown to nobody any more is canceled", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const { child, ended } = start(rig, ["exec", sandboxId, "-n", "yes"]);
    ended.catch(() => {}); // its reader goes
    const worker = await play(rig);
    await worker.print(2, "stdout", "y\n");
    await once(child.stdout, "data");
    child.stdout.destroy();
    await worker.print(4, "stdout", "y\n");
    expect(await once(child, "exit")).toEqual([141, null]);
    expect(await rig.store.load(worker.id)).toMatchObject({ abort: { code: "canceled" } });
  });

  test("--json prints the result and keeps the exit code", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const ran = run(rig, ["exec", sandboxId, "--json", "--timeout", "2m", "a && b"]);
    expect(await answer(rig, { ...exited, exitCode: 124 })).toMatchObject({ command: "a && b", timeoutMs: 120_000 });
    const { code, out } = await ran;
    expect(code).toBe(124);
    expect(JSON.parse(out)).toEqual({ ...exited, exitCode: 124 });
    const killed = command(rig, ["exec", sandboxId, "-n", "kill -9 $$"]);
    await answer(rig, { ...exited, exitCode: -1 });
    expect(await killed).toEqual({ code: 137, out: "", err: "fleet: a signal ended the command\n" });
  });

  test("the fleet's own failure is one line on stderr", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const ran = run(rig, ["exec", sandboxId, "true"]);
    await answer(rig, new FleetError("execd_unreachable", "no answer\u001b[2J\nat all"));
    expect(await ran).toEqual({ code: 1, out: "", err: "fleet: execd_unreachable: no answer [2J at all\n" });
    const missing = await run(rig, ["exec", "no-such-host", "true", "--json"]);
    expect(missing.code).toBe(1);
    expect(JSON.parse(missing.err)).toMatchObject({ error: { code: "sandbox_not_found" } });
    expect((await run(rig, ["exec", sandboxId])).code).toBe(2);
  });
});

test("where no worker is there a command says so, and goes on waiting", async () => {
  await using rig = createRig(server);
  await rig.redis.del(rig.keys.pulse);
  const [one, many] = [start(rig, ["destroy", await rig.running()]), start(rig, ["provision", "base", "--count", "2"])];
  const heard = await Promise.all([one, many].map(({ child }) => once(child.stderr, "data")));
  for (const [at, { child }] of [one, many].entries()) {
    expect(String(heard[at])).toMatch(/^fleet: no worker has been seen here; .*REDIS_URL and FLEET_PREFIX/);
    expect(child.exitCode).toBeNull();
    child.kill("SIGKILL");
  }
  await Promise.all([one.ended, many.ended]);
});

test("while Redis is away a command says so, and goes on once it is back", async () => {
  await using own = await startRedis({ appendfsync: "always" });
  await using rig = createRig(own);
  const { child, ended } = start(rig, ["provision", "base"], { REDIS_URL: own.urlFor("producer") });
  const [id] = await open(rig, 1);
  await rig.readers(1);
  await own.kill("SIGKILL");
  expect(String((await once(child.stderr, "data"))[0])).toBe(
    "fleet: Redis does not answer; this waits until it does\n",
  );
  await own.restart();
  expect(String((await once(child.stderr, "data"))[0])).toBe("fleet: a worker is there again; this goes on\n");
  await rig.fail(id ?? ("" as OperationId), new FleetError("setup_failed", "as it happens"));
  expect(await ended).toMatchObject({ code: 1, err: expect.stringContaining("setup_failed") });
});

describe("Ctrl-C", () => {
  test("cancels what runs, waits for its end and exits with 130", async () => {
    await using rig = createRig(server);
    const { child, ended } = start(rig, ["provision", "base"]);
    const [id] = await open(rig, 1);
    await rig.readers(1);
    child.kill("SIGINT");
    await vi.waitFor(async () => expect(await rig.redis.smembers(rig.keys.aborting)).toEqual([id]), {
      interval: 10,
      timeout: 30_000,
    });
    await rig.fail(id ?? ("" as OperationId), new FleetError("canceled", "canceled by its producer"));
    expect(await ended).toEqual({
      code: 130,
      out: "",
      err: "fleet: canceling the operation; Ctrl-C again leaves at once\nfleet: canceled: canceled the operation\n",
    });
  });

  test("twice leaves at once", async () => {
    await using rig = createRig(server);
    const { child, ended } = start(rig, ["provision", "base", "--count", "2"]);
    await open(rig, 2);
    await rig.readers(1);
    child.kill("SIGINT");
    await vi.waitFor(async () => expect(await rig.redis.scard(rig.keys.batchesStopping)).toBe(1), {
      interval: 10,
      timeout: 30_000,
    });
    // Once more right away is the same press, passed on by a parent; so this asks until it is heard.
    await vi.waitFor(
      () => {
        child.kill("SIGINT");
        expect(child.exitCode).toBe(130);
      },
      { interval: 50, timeout: 30_000 },
    );
    expect(await ended).toMatchObject({
      code: 130,
      err: expect.stringMatching(/^fleet: canceling batch \S+; Ctrl-C again leaves at once\n$/),
    });
  });

  test("of a request that hangs just ends it", async () => {
    await using rig = createRig(server);
    // Takes the connection and never says a word.
    const mute = createServer().listen(0, "127.0.0.1");
    await once(mute, "listening");
    const address = mute.address();
    const port = typeof address === "object" ? address?.port : undefined;
    const { child, ended } = start(rig, ["ls"], { REDIS_URL: `redis://127.0.0.1:${port}` });
    const [socket] = await once(mute, "connection");
    child.kill("SIGINT");
    expect(await ended).toEqual({ code: 130, out: "", err: "fleet: canceled: interrupted\n" });
    socket.destroy();
    mute.close();
  });
});

describe("looking", () => {
  test("ls, get, status, cancel and nodes, for people and machines", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running({ metadata: { app: "web" } });
    const { id } = await rig.fleet.power({ sandboxId, action: "stop" });
    const facts = { online: true, cores: 8, memoryBytes: 2 ** 36, memoryUsedBytes: 2 ** 34, cgroup: 2 as const };
    const node = { name: NodeName.parse("pve1"), ...facts, storages: [], foreignMemoryBytes: 0 };
    await saveInventory(rig.redis, rig.keys, { at: 1, version: "8.4.1", nodes: [node], replicas: [] });

    const [ls, quiet, none, get, byName, status, cancel, nodes] = await Promise.all([
      command(rig, ["ls"]),
      command(rig, ["ls", "-q", "--metadata", "app=web", "--state", "running"]),
      command(rig, ["ls", "--state", "stopped", "--json"]),
      command(rig, ["get", sandboxId]),
      command(rig, ["get", "cmux-20000", "--json"]),
      command(rig, ["status", id]),
      command(rig, ["cancel", id, "--json"]),
      command(rig, ["nodes"]),
    ]);
    expect(ls?.out).toMatch(
      new RegExp(`^SANDBOX .*\n${sandboxId}  running  pve1  20000  cmux-20000  base +default .*\n$`),
    );
    expect(quiet?.out).toBe(`${sandboxId}\n`);
    expect(JSON.parse(none?.out ?? "")).toEqual([]);
    expect(get?.out).toContain("metadata app  web\n");
    expect(JSON.parse(byName?.out ?? "")).toMatchObject({ id: sandboxId, vmid: 20_000 });
    expect(status?.out).toContain(`operation    ${id} (power)\n`);
    expect(JSON.parse(cancel?.out ?? "")).toEqual({ operationId: id, canceling: true });
    expect(nodes?.out).toMatch(/^NODE .*\npve1 {2}online {2}8 +16\.0 GiB of 64\.0 GiB {2}0 +0 +0\/1 +0\/0 +-\n$/);
    expect((await command(rig, ["status", "op_0000000000000000"])).code).toBe(1);
  });

  test("of another team there is nothing to see", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const asRed = (...words: string[]) => command(rig, [...words, "--json"], { FLEET_TEAM: "red" });
    expect(JSON.parse((await asRed("ls")).out)).toEqual([]);
    expect(JSON.parse((await asRed("get", sandboxId)).err)).toMatchObject({ error: { code: "sandbox_not_found" } });
    expect(JSON.parse((await asRed("destroy", sandboxId)).err)).toMatchObject({ error: { code: "sandbox_not_found" } });
  });

  test("events: once, in lines of JSON, and following until the reader goes", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const all = await run(rig, [
      "events",
      "--once",
      "--json",
      "--type",
      "operation.succeeded",
      "--type",
      "sandbox.changed",
    ]);
    const lines = all.out.trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { type: "sandbox.changed", sandbox: sandboxId, data: { state: "running" } },
      { type: "operation.succeeded", sandbox: sandboxId },
    ]);
    const { child, ended } = start(rig, ["events", "--after", "0"]);
    ended.catch(() => {}); // its stdout is taken away below
    const { stdout } = child;
    if (!stdout) throw new Error("unreachable");
    const [first] = await once(stdout, "data");
    expect(String(first)).toContain("operation.accepted  provision");
    await rig.readers(1);
    stdout.destroy();
    await rig.fleet.provision({ template: "base" });
    expect(await once(child, "exit")).toEqual([141, null]);
  });

  test("events: the groups that share them", async () => {
    await using rig = createRig(server);
    const red = rig.client({ team: "red" });
    await rig.running({}, red);
    const refuse = () => {
      throw new Error("no");
    };
    const stop = new AbortController();
    await red.consume("billing", refuse, { after: "0", attempts: 1, signal: stop.signal, onDead: () => stop.abort() });
    expect((await command(rig, ["events", "groups"])).out).toMatch(/^GROUP .*\nred\/billing +2 +0 +1 +0 /);
    expect((await command(rig, ["events", "dead", "red/billing"])).out).toContain("operation.accepted  provision");
    expect((await command(rig, ["events", "forget", "billing"], { FLEET_TEAM: "red" })).out).toBe(
      "billing is forgotten\n",
    );
  });

  test("nothing that could be read is no crash: Redis away is one line", async () => {
    await using rig = createRig(server);
    const { code, err } = await run(rig, ["ls"], { REDIS_URL: "" });
    expect({ code, err }).toEqual({
      code: 2,
      err: "fleet: not_configured: REDIS_URL is missing; give redis://host:6379, or rediss:// for TLS\n",
    });
  });
});

test("adopt --dry-run tells of each container what will become of it, and of nodes whose containers can't be seen", async () => {
  await using rig = createRig(server);
  const names = ["pve1", "pve2"].map((name) => NodeName.parse(name));
  const [node, down] = names;
  if (!node || !down) throw new Error("unreachable");
  const facts = { cores: 8, memoryBytes: 2 ** 36, memoryUsedBytes: 0, cgroup: 2 as const, storages: [] };
  const nodes = names.map((name) => ({ name, online: name === node, foreignMemoryBytes: 0, ...facts }));
  const make = (vmid: number, name: string) => ({ node, vmid: Vmid.parse(vmid), name, status: "running" });
  const containers = [
    make(101, "cmux-a"),
    make(102, "cmux-b"),
    make(103, "cmux-b"),
    make(104, "cmux-C"),
    { ...make(105, "cmux-e"), lock: "backup" },
  ];
  const adoptable = { prefixes: ["cmux-"], containers };
  await saveInventory(rig.redis, rig.keys, { at: 1, version: "8.4.1", nodes, replicas: [], adoptable });
  const { code, out, err } = await command(rig, ["adopt", "--prefix", "cmux-", "--dry-run"]);
  expect({ code, err }).toEqual({
    code: 0,
    err: "fleet: node_unreachable: what stands on pve2 is not all listed: it is offline; ask again afterwards\n",
  });
  expect(out.split("\n").map((line) => line.replaceAll(/ {2,}/g, " | "))).toEqual([
    "NODE | VMID | NAME | STATUS | OUTCOME | SANDBOX | EXEC | WHY",
    "pve1 | 101 | cmux-a | running | to adopt | - | - | -",
    "pve1 | 102 | cmux-b | running | to adopt | - | - | no instance id: others have its name",
    "pve1 | 103 | cmux-b | running | to adopt | - | - | no instance id: others have its name",
    "pve1 | 104 | cmux-C | running | to adopt | - | - | no instance id: its name can be none",
    "pve1 | 105 | cmux-e | running | left | - | - | container_locked: is locked (backup)",
    "4 to adopt, 1 left",
    "",
  ]);
  expect(await rig.redis.zcard(rig.keys.open)).toBe(0);
});

describe("changing", () => {
  test("a snapshot is known by its name, too", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const missing = await run(rig, ["snapshot", "restore", sandboxId, "before"]);
    expect(missing.err).toContain("has no snapshot before; it has none");
    const id = "snap_0000000000000000";
    const record = {
      id,
      sandbox: sandboxId,
      team: "default",
      node: "pve1",
      vmid: 20_000,
      name: "before",
      createdAt: 1,
    };
    await rig.redis.hset(rig.keys.snapshot(id), record);
    await rig.redis.sadd(rig.keys.sandboxSnapshots(sandboxId), id);
    const { code } = await run(rig, ["snapshot", "rm", sandboxId, "before", "--no-wait"]);
    expect(code).toBe(0);
    const [operation = ""] = await rig.redis.lrange(rig.keys.changes(sandboxId), 0, -1);
    expect(await rig.redis.hget(rig.keys.operation(operation), "input")).toContain(id);
  });

  test("each command asks for its kind", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const cases: [string[], unknown, unknown, string][] = [
      [
        ["expose", sandboxId, "web", "8080"],
        { name: "web", port: 8080, url: "https://web-20000.example.com", level: "public" },
        { sandboxId, name: "web", port: 8080, readyTimeoutMs: 30_000 },
        "https://web-20000.example.com\n",
      ],
      [["hide", sandboxId, "web"], { name: "web", hidden: true }, { sandboxId, name: "web" }, "hid web\n"],
      [
        ["snapshot", "create", sandboxId, "before", "--description", "d", "--keep-last", "3", "--max-age", "1h"],
        { snapshotId: "snap_0000000000000000", name: "before", node: "pve1", vmid: 20_000 },
        { sandboxId, name: "before", description: "d", keepLast: 3, maxAgeSeconds: 3_600 },
        "snap_0000000000000000\n",
      ],
      [
        ["snapshot", "restore", sandboxId, "snap_0000000000000000"],
        { snapshotId: "snap_0000000000000000", name: "before", node: "pve1", vmid: 20_000, state: "running" },
        { sandboxId, snapshotId: "snap_0000000000000000" },
        "went back to before, running\n",
      ],
      [
        ["power", sandboxId, "shutdown", "--grace", "1m", "--no-force"],
        { state: "stopped", changed: true },
        { sandboxId, action: "shutdown", graceSec: 60, force: false, allowStop: false },
        "stopped\n",
      ],
      [
        ["configure", sandboxId, "--cores", "4", "--no-onboot"],
        { applied: { cores: 4, onboot: false }, pendingUntilReboot: ["swap"] },
        { sandboxId, cores: 4, onboot: false },
        "cores=4 onboot=false (swap at the next start)\n",
      ],
      [
        ["update", sandboxId, "--metadata", "a=1", "--remove-metadata", "b", "--extend", "1m", "--wake-on-http"],
        { metadata: { a: "1" }, ttlAction: "stop", expiresAt: 0, wakeOnHttp: true },
        {
          sandboxId,
          metadata: { a: "1", b: null },
          replaceMetadata: false,
          ttlSeconds: 60,
          extend: true,
          wakeOnHttp: true,
        },
        "updated; stop at 1970-01-01T00:00:00.000Z\n",
      ],
      [
        ["update", sandboxId, "--no-ttl"],
        { metadata: {}, ttlAction: "destroy", expiresAt: null, wakeOnHttp: false },
        { sandboxId, replaceMetadata: false, ttlSeconds: null, extend: false },
        "updated\n",
      ],
    ];
    for (const [words, result, input, out] of cases) {
      const ran = command(rig, words);
      expect(await answer(rig, result)).toEqual(input);
      expect(await ran).toEqual({ code: 0, out, err: "" });
    }
  });

  test("extend is at once, without a worker", async () => {
    await using rig = createRig(server);
    const id = await rig.running({ ttlSeconds: 60 });
    const { code, out } = await command(rig, ["extend", "20000", "2h"]);
    const { expiresAt = 0 } = await rig.fleet.sandboxes.get(id);
    expect({ code, out }).toEqual({ code: 0, out: `its time is up at ${new Date(expiresAt).toISOString()}\n` });
    expect(expiresAt).toBeGreaterThan(Date.now() + 7_100_000);
  });

  test("destroy takes several, and nothing when one is not known", async () => {
    await using rig = createRig(server);
    const ids = [await rig.running(), await rig.running()];
    const typo = await command(rig, ["destroy", "20000", "20009"]);
    expect(typo).toEqual({
      code: 1,
      out: "",
      err: "fleet: sandbox_not_found: there is no sandbox with the id, VMID or hostname 20009; see fleet ls\n",
    });
    expect(await rig.redis.zcard(rig.keys.open)).toBe(0);
    const ran = command(rig, ["destroy", "20000", ids[1] ?? "", "--json"]);
    for (const id of await open(rig, 2)) await rig.succeed(id, { destroyed: true, existed: true });
    const { code, out } = await ran;
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject(ids.map((sandboxId) => ({ sandboxId, destroyed: true })));
  });
});

describe("node ssh-guard", () => {
  const guard = (words: string[], env: Record<string, string> = {}) => runHere(env, "node", "ssh-guard", ...words);

  test("prints a script, without Redis; the range is the option's, the environment's or the default", async () => {
    const { code, out, err } = await guard([]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toMatch(
      /^#!\/bin\/sh\n.*on CTs 20000 to 29999.*command="\/usr\/local\/sbin\/fleet-ssh-guard",restrict,pty ssh-/s,
    );
    expect((await guard([], { PVE_VMID_RANGE: "300-399" })).out).toContain("\nfirst=300\nlast=399\n");
    const json = await guard(["--range", "500-600", "--json"], { PVE_VMID_RANGE: "300-399" });
    expect(JSON.parse(json.out).script).toContain("\nfirst=500\nlast=600\n");
  });

  test.each([
    [["--range", "1-2; id"], /--range must be FIRST-LAST/],
    [["--range", "99-200"], /--range must lie between 100/],
    [["--path", "bin"], /--path must be absolute/],
    [["--key", "/nonexistent.pub"], /--key must be a file with one public key/],
    [["--key", MAIN], /--key must be a file with one public key/],
  ])("%j is refused with 2 and one line", async (words, line) => {
    const { code, out, err } = await guard(words);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(line);
    expect(err.split("\n")).toHaveLength(2);
  });
});

test("quotas: set, listed, looked at and taken back; a team changes none", async () => {
  await using rig = createRig(server);
  expect(await command(rig, ["quota", "set", "red", "--provisions", "0", "--rate", "none"])).toEqual({
    code: 0,
    out: "TEAM  SANDBOXES  PROVISIONS  EXECS  RATE\nred   -          0           -      none\n",
    err: "",
  });
  const [refused, waits, foreign, nothing] = await Promise.all([
    command(rig, ["provision", "base"], { FLEET_TEAM: "red" }),
    command(rig, ["provision", "base", "--on-quota", "wait", "--no-wait", "--json"], { FLEET_TEAM: "red" }),
    command(rig, ["quota", "set", "red", "--provisions", "9"], { FLEET_TEAM: "red" }),
    command(rig, ["quota", "set", "red"]),
  ]);
  expect(refused).toMatchObject({
    code: 1,
    err: expect.stringContaining("quota_exceeded: team red has 0 of 0 provisions"),
  });
  expect(foreign).toMatchObject({ code: 1, err: expect.stringContaining("forbidden: quotas are set for teams") });
  expect(nothing).toMatchObject({ code: 2, err: expect.stringContaining("nothing to set; give --sandboxes") });
  const { operationId } = JSON.parse(waits.out) as { operationId: string };
  const [status, got, ls, rm] = await Promise.all([
    command(rig, ["status", operationId]),
    command(rig, ["quota", "get", "red"], { FLEET_TEAM: "red" }),
    command(rig, ["quota", "ls", "--json"]),
    command(rig, ["quota", "rm", "blue"]),
  ]);
  expect(status.out).toMatch(/^waiting for +quota provisions of team red: 0 of 0$/m);
  expect(got.out).toMatch(/^provisions {2}0 {5}0$/m);
  expect(got.out).toMatch(/^waiting {5}1 {5}-$/m);
  expect(JSON.parse(ls.out)).toEqual([{ team: "red", limits: { provisions: 0, rate: null } }]);
  expect(rm.out).toBe("blue had no limits\n");
});

describe("cp", () => {
  const keyring = [Buffer.from(SECRET_KEY, "hex")];
  const contentsOf = (rig: Rig) => createContentStore(rig.keys, keyring);
  const ask =
    (rig: Rig): Ask =>
    (request) =>
      request(rig.redis);

  /** Plays the worker for an upload: what its input and its content are. */
  async function takeUpload(rig: Rig) {
    const [id] = await open(rig, 1);
    if (id === undefined) throw new Error("unreachable");
    const pieces: Buffer[] = [];
    for await (const piece of contentsOf(rig).read(id, ask(rig))) pieces.push(piece);
    const content = Buffer.concat(pieces);
    const input = await answer(rig, { path: "/there", bytes: content.length });
    return { input, content };
  }

  async function giveDownload(rig: Rig, content: Uint8Array) {
    const [id] = await open(rig, 1);
    if (id === undefined) throw new Error("unreachable");
    const writer = await rig.claim(id);
    const output = contentsOf(rig).write(id, { ask: ask(rig), fence: writer.fence });
    await output.add(content);
    await output.end();
    const input = (await rig.store.load(id))?.input;
    await rig.store.end(writer, { status: "succeeded", result: { path: "/from", bytes: content.length, mode: 0o640 } });
    return input;
  }
  const folder = mkdtempSync(join(tmpdir(), "cp-"));
  afterAll(() => rm(folder, { recursive: true }));
  const here = (...names: string[]) => join(folder, ...names);

  test("files go in under their own name and rights, from stdin too", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    await writeFile(here("run.sh"), "#!/bin/sh\n", { mode: 0o750 });
    const file = run(rig, ["cp", here("run.sh"), `${sandboxId}:/workspace/`, "--owner", "dev"]);
    const { input, content } = await takeUpload(rig);
    expect(input).toEqual({ sandboxId, path: "/workspace/run.sh", format: "file", mode: 0o750, owner: "dev" });
    expect(content.toString()).toBe("#!/bin/sh\n");
    expect(await file).toEqual({ code: 0, out: "", err: "" });
    const { child, ended } = start(rig, ["cp", "-", "20000:/etc/x", "--mode", "600", "--json"]);
    child.stdin?.end("from stdin");
    expect(await takeUpload(rig)).toMatchObject({ input: { mode: 0o600 }, content: Buffer.from("from stdin") });
    expect(JSON.parse((await ended).out)).toEqual({ path: "/there", bytes: 10 });
  });

  test("files come out whole, under the name there is, to stdout too", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const file = run(rig, ["cp", `${sandboxId}:/var/log/app.log`, folder]);
    expect(await giveDownload(rig, Buffer.from([0, 255, 10]))).toMatchObject({ path: "/var/log/app.log" });
    expect(await file).toEqual({ code: 0, out: "", err: "" });
    expect(await readFile(here("app.log"))).toEqual(Buffer.from([0, 255, 10]));
    expect((await stat(here("app.log"))).mode & 0o777).toBe(0o640);
    const out = run(rig, ["cp", `${sandboxId}:/etc/motd`, "-"]);
    await giveDownload(rig, Buffer.from("hello"));
    expect(await out).toEqual({ code: 0, out: "hello", err: "" });
    const failed = run(rig, ["cp", `${sandboxId}:/none`, here("none")]);
    await answer(rig, new FleetError("file_not_found", "/none: there is no such file or folder"));
    expect(await failed).toMatchObject({ code: 1, err: expect.stringContaining("file_not_found") });
    expect((await readdir(folder)).filter((name) => name.includes("none") || name.includes("part"))).toEqual([]);
  });

  test("a folder goes in and comes out with all in it", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    await mkdir(here("src/deep"), { recursive: true });
    await writeFile(here("src/deep/.file"), "content");
    const up = run(rig, ["cp", "-r", here("src"), `${sandboxId}:/workspace/`]);
    const { input, content } = await takeUpload(rig);
    expect(input).toEqual({ sandboxId, path: "/workspace/src", format: "tar" });
    expect(await up).toMatchObject({ code: 0, err: "" });
    const down = run(rig, ["cp", "-r", `${sandboxId}:/workspace/src`, here("copy")]);
    await giveDownload(rig, content);
    expect(await down).toMatchObject({ code: 0, err: "" });
    expect(await readFile(here("copy/deep/.file"), "utf8")).toBe("content");
  });

  test("what can't be copied is told before anything is sent", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const lines = [
      [folder, `${sandboxId}:/x`],
      [here("nothing"), `${sandboxId}:/x`],
      ["a", "b"],
    ];
    const ran = await Promise.all(lines.map((words) => run(rig, ["cp", ...words])));
    expect(ran.map(({ code }) => code)).toEqual([2, 2, 2]);
    expect(ran.map(({ err }) => err).join("")).toMatch(/add --recursive.*is not there.*SANDBOX:PATH/s);
    expect(await rig.redis.keys(`${rig.keys.content("")}*`)).toEqual([]);
  });
});
