/** What only the nodes themselves can do, over real SSH: pause and resume, commands past execd, stale locks. */

import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { userInfo } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { NodeName, newOperationId, Vmid } from "../../../shared/ids.ts";
import { EXECD_PORT } from "../../../shared/jobs/fields.ts";
import { createSecretStore } from "../../../shared/state/secrets.ts";
import { settleLocks } from "../../../workers/control/locks.ts";
import { createPveApi, type PveApi } from "../../../workers/pve/api.ts";
import { createPveHttp } from "../../../workers/pve/http.ts";
import { clearStaleLock } from "../../../workers/sandbox/stale-lock.ts";
import { Client } from "../../pve/client.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  bed = await startBed({
    pve: {
      nodes: 1,
      templates: [
        { name: "cmux-base", vmid: 9_001 },
        { name: "without-execd", guest: { execd: false } },
      ],
      timings: { cloneLinked: 5_000 },
    },
    ssh: { guard: { first: 20_000, last: 29_999 } },
    env: { FLEET_STRAY_GRACE_SECONDS: "1" },
  });
  box = await provisionOne(bed.fleet);
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const power = (action: "start" | "stop" | "shutdown" | "reboot" | "pause" | "resume") =>
  run(bed.fleet, "power", { sandboxId: box.sandboxId, action });
const exec = (command: string, more: object = {}) =>
  run(bed.fleet, "exec", { sandboxId: box.sandboxId, command, ...more });
const stateOf = async () => (await bed.fleet.sandboxes.get(box.sandboxId)).state;
const frozen = () => containerOf(bed, box.vmid)?.frozen;

test("pause keeps the processes and their memory; resume lets them go on", async () => {
  const pid = (await exec("sleep 1000 >/dev/null 2>&1 & echo $!")).stdout.trim();
  expect(await power("pause")).toEqual({ state: "paused", changed: true });
  expect([frozen(), await stateOf()]).toEqual([true, "paused"]);
  expect(await power("pause")).toEqual({ state: "paused", changed: false });
  const refused = await failure(exec("true"), "not_running");
  expect(refused.message).toContain("resume");
  expect(await power("resume")).toEqual({ state: "running", changed: true });
  expect(await power("resume")).toEqual({ state: "running", changed: false });
  expect([frozen(), await stateOf()]).toEqual([false, "running"]);
  expect(await exec(`kill ${pid}`)).toMatchObject({ exitCode: 0 });
  // Nothing was stopped or started for it.
  expect(bed.pve.tasks().filter(({ type }) => type !== "vzclone")).toHaveLength(1);
});

test("a paused one starts by going on, shuts down, stays paused over a snapshot and is destroyed", async () => {
  await power("pause");
  await run(bed.fleet, "snapshot", { sandboxId: box.sandboxId });
  expect([frozen(), await stateOf()]).toEqual([true, "paused"]);
  expect(await power("start")).toEqual({ state: "running", changed: true });
  await power("pause");
  expect(await power("shutdown")).toEqual({ state: "stopped", changed: true });
  await failure(power("pause"), "not_running");
  await power("start");
  const other = await provisionOne(bed.fleet);
  await run(bed.fleet, "power", { sandboxId: other.sandboxId, action: "pause" });
  await run(bed.fleet, "destroy", { sandboxId: other.sandboxId });
  expect(containerOf(bed, other.vmid)).toBeUndefined();
});

test("of adopted ones a frozen one is paused, and one without a token takes commands over SSH", async () => {
  await using pve = new Client(bed.pve);
  const make = async (vmid: number) => {
    await pve.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: vmid, hostname: `cmux-${vmid}` });
    await pve.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
    return { node: "pve1", vmid };
  };
  const [one, two] = [await make(20_700), await make(20_701)];
  bed.pve.faults.freeze(two.vmid);
  const open = await run(bed.fleet, "adopt", one);
  const frozen = await run(bed.fleet, "adopt", two);
  expect([open, frozen].map(({ state, exec }) => [state, exec])).toEqual([
    ["running", "ssh"],
    ["paused", "ssh"],
  ]);
  const { sandboxId } = open;
  expect(await run(bed.fleet, "exec", { sandboxId, command: "echo here" })).toMatchObject({ stdout: "here\n" });
  expect(await run(bed.fleet, "power", { sandboxId: frozen.sandboxId, action: "resume" })).toMatchObject({
    state: "running",
  });
  for (const { sandboxId } of [open, frozen]) await run(bed.fleet, "destroy", { sandboxId });
});

test("a TTL with pause freezes it, and is over then", async () => {
  const { sandboxId } = box;
  const { expiresAt } = await run(bed.fleet, "update", { sandboxId, ttlSeconds: 3_600, ttlAction: "pause" });
  const ago = (expiresAt ?? 0) - 3_601_000;
  await bed.redis.hset(bed.keys.sandbox(sandboxId), "expiresAt", ago);
  await bed.redis.zadd(bed.keys.expiries, ago, sandboxId);
  await until(async () => (await stateOf()) === "paused", "the pause");
  expect((await bed.fleet.sandboxes.get(sandboxId)).expiresAt).toBeUndefined();
  expect(frozen()).toBe(true);
  await power("resume");
});

test("a pause that the node refuses is a stop, where that is allowed", async () => {
  const guard = join(bed.ssh?.folder ?? "", "pve1", "guard");
  const script = readFileSync(guard, "utf8");
  writeFileSync(guard, script.replace("case $asked in", "refuse 'not today'\n$&"));
  try {
    await failure(power("pause"), "ssh_refused");
    const pausing = run(bed.fleet, "power", { sandboxId: box.sandboxId, action: "pause", allowStop: true });
    expect(await pausing).toEqual({ state: "stopped", changed: true });
  } finally {
    writeFileSync(guard, script);
  }
  expect(await power("start")).toEqual({ state: "running", changed: true });
});

test("a command runs on the node where there is no way to execd", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, {
    template: "without-execd",
    waitFor: "address",
    env: { WHO: "me" },
  });
  const command = 'printf "%s %s" "$WHO" "$PWD"; echo oops >&2; exit 3';
  expect(await run(bed.fleet, "exec", { sandboxId, command, cwd: "/tmp" })).toMatchObject({
    exitCode: 3,
    stdout: "me /tmp",
    stderr: "oops\n",
  });
  expect(await run(bed.fleet, "exec", { sandboxId, command: "sleep 60", timeoutMs: 300 })).toMatchObject({
    exitCode: 124,
  });
  const { username, uid } = userInfo();
  const user = uid === 0 ? "nobody" : username;
  expect(await run(bed.fleet, "exec", { sandboxId, command: "id -un; cat", user, stdin: "grüße" })).toMatchObject({
    stdout: `${user}\ngrüße`,
  });
  await failure(run(bed.fleet, "exec", { sandboxId, command: "true", user: "no-such" }), "user_not_found");
  // Bytes that a packet cut in two are one character all the same; and a cancel kills the whole group.
  const handle = await bed.fleet.exec({
    sandboxId,
    command: "printf '\\xc3'; sleep 0.1; printf '\\xa4\\n'; sleep 60 & echo $! $$; wait",
    user,
  });
  let heard = "";
  for await (const chunk of handle.output()) {
    if ("text" in chunk) heard += chunk.text;
    if (heard.split("\n").length === 3) await handle.cancel();
  }
  await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
  const [text, pids = ""] = heard.split("\n");
  expect(text).toBe("ä");
  for (const pid of pids.split(" ")) await until(() => !existsSync(`/proc/${pid}/cwd`) || null, `the end of ${pid}`);
  // Gone, or stopped, and the cause is told instead.
  bed.pve.faults.crash(vmid);
  await failure(run(bed.fleet, "exec", { sandboxId, command: "true" }), "not_running");
  await run(bed.fleet, "destroy", { sandboxId });
});

test("files go over the node where there is no way to execd, and leave nothing on the way", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "without-execd", waitFor: "address" });
  const path = join(containerOf(bed, vmid)?.root ?? "", "it's here");
  const content = randomBytes(1_000_000); // more than one command's input
  const upload = await bed.fleet.upload({ sandboxId, path }, content);
  expect(await upload.result({ timeoutMs: 60_000 })).toEqual({ path, bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
  const download = await bed.fleet.download({ sandboxId, path });
  expect((await download.content({ timeoutMs: 30_000 }).buffer()).equals(content)).toBe(true);
  await failure(run(bed.fleet, "download", { sandboxId, path: `${path}.not` }), "file_not_found");
  expect(readdirSync("/var/tmp").filter((name) => name.includes(upload.id))).toEqual([]);
  await run(bed.fleet, "destroy", { sandboxId });
});

test("and where something else has its port, unless that may have run it", async () => {
  const made = await provisionOne(bed.fleet, { template: "without-execd", waitFor: "address" });
  const { sandboxId, vmid, address } = made;
  const secrets = createSecretStore(bed.redis, bed.keys, [Buffer.from(String(bed.env["FLEET_SECRET_KEY"]), "hex")]);
  await secrets.put(sandboxId, { execToken: "a".repeat(64) }, { expiresInSec: 600 });
  let status = 404;
  const server = createServer((request, response) =>
    request.resume().once("end", () => response.writeHead(status).end()),
  );
  await once(server.listen(EXECD_PORT, address), "listening");
  expect(await run(bed.fleet, "exec", { sandboxId, command: "echo here" })).toMatchObject({ stdout: "here\n" });
  const path = join(containerOf(bed, vmid)?.root ?? "", "brought");
  await (await bed.fleet.upload({ sandboxId, path }, "content")).result({ timeoutMs: 60_000 });
  expect(readFileSync(path, "utf8")).toBe("content");
  status = 503;
  await failure(run(bed.fleet, "exec", { sandboxId, command: "echo here" }), "exec_interrupted");
  server.closeAllConnections();
  server.close();
  await run(bed.fleet, "destroy", { sandboxId });
});

test("what execd has run is not run again on the node, however it ended", async () => {
  expect(await exec("echo once >> ran; exit 7")).toMatchObject({ exitCode: 7 });
  expect(await exec("echo twice >> ran; sleep 60", { timeoutMs: 300 })).toMatchObject({ exitCode: 124 });
  expect((await exec("cat ran")).stdout.trim()).toBe("once\ntwice");
});

test("the locks of a clone that died hard: ours is removed, the template's is told, and the sandbox is made", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const clone = await until(
    () => bed.pve.tasks().find(({ type, endedAt }) => type === "vzclone" && endedAt === undefined),
    "the clone",
  );
  bed.pve.faults.killTask(clone.upid);
  await until(
    () => containerOf(bed, clone.target ?? 0) === undefined,
    "the removal of the half-made container",
    30_000,
  );
  expect(containerOf(bed, 9_001)?.lock).toBe("disk"); // not ours to touch
  bed.pve.faults.lock(9_001, null);
  const { vmid, sandboxId } = await handle.result({ timeoutMs: 60_000 });
  expect(containerOf(bed, vmid)).toMatchObject({ status: "running" });
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a lock that a human or a backup set stays", async () => {
  bed.pve.faults.lock(box.vmid, "backup");
  const handle = await bed.fleet.snapshot({ sandboxId: box.sandboxId });
  await until(async () => (await handle.status()).attempts > 1, "two attempts", 30_000);
  expect(containerOf(bed, box.vmid)?.lock).toBe("backup");
  bed.pve.faults.lock(box.vmid, null);
  await handle.result({ timeoutMs: 60_000 });
});

test("a token that can't see other people's tasks removes no lock", async () => {
  const { workers, pve } = bed;
  if (!workers) throw new Error("no workers");
  const role = ["VM.Audit", "VM.Snapshot"];
  const token = pve.addToken({ user: "fleet@pve", id: "limited", privileges: { "/": role } });
  const tls = { verify: true, fingerprint: pve.fingerprint };
  await using http = createPveHttp({ hosts: [pve.url], token, tls });
  pve.faults.lock(box.vmid, "snapshot");
  const place = { node: NodeName.parse(box.node), vmid: Vmid.parse(box.vmid) };
  const clear = (api: PveApi) =>
    clearStaleLock(
      { ...workers.context, pve: api },
      { place, lock: "snapshot", owner: newOperationId() },
      { signal: AbortSignal.timeout(60_000) },
    );
  expect(await clear(createPveApi(http))).toBe(false);
  expect(containerOf(bed, box.vmid)?.lock).toBe("snapshot");
  // Nor does a round give advice that would be wrong while a backup runs.
  const limited = { ...workers.context, pve: createPveApi(http) };
  const seen = { node: box.node, lock: "snapshot", since: 1, lookAt: 0, looks: 1 };
  await bed.redis.hset(bed.keys.locks, String(box.vmid), JSON.stringify(seen));
  const guests = [{ id: `lxc/${box.vmid}`, type: "lxc", ...place, lock: "snapshot" }];
  const round = { dryRun: true, removeOrphans: false, now: Date.now(), guests, signal: AbortSignal.timeout(60_000) };
  const standing = { id: box.sandboxId, state: "running" as const, ...place };
  const [found] = await settleLocks(limited, round, [
    { ...standing, hostname: undefined, memoryMib: undefined, diskGib: undefined, cores: undefined },
  ]);
  expect(found).toMatchObject({
    done: "left",
    text: expect.stringMatching(/without Sys.Audit .* if no backup .* pct unlock/),
  });
  expect(await clear(workers.context.pve)).toBe(true);
  expect(containerOf(bed, box.vmid)?.lock).toBeUndefined();
});

test("a snapshot that died hard: its lock is removed before the next attempt", async () => {
  bed.pve.faults.lock(box.vmid, "snapshot");
  await run(bed.fleet, "snapshot", { sandboxId: box.sandboxId });
  expect(containerOf(bed, box.vmid)?.lock).toBeUndefined();
});
