/** The interface that the cmux backend codes against, on a whole fleet. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type CmuxClient, type CmuxInstance, createCmuxClient } from "../../../producers/cmux/index.ts";
import { CHILD_ENV } from "../../child-env.ts";
import { type Bed, containerOf, failure, provisionOne, startBed, until } from "../fleet/harness.ts";

let bed: Bed;
let client: CmuxClient;
let box: CmuxInstance;
const MANIFEST = {
  presets: [
    {
      presetId: "4vcpu_6gb_32gb",
      label: "Standard",
      cpu: "4 vCPU",
      memory: "6 GB",
      disk: "32 GB",
      versions: [{ version: 1, snapshotId: "snapshot_3c251d7c", templateVmid: 9_001, capturedAt: "2026-01-01" }],
    },
  ],
};
const START = {
  snapshotId: "snapshot_3c251d7c",
  instanceId: "pvelxc-1a2b3c4d",
  ttlSeconds: 3_600,
  metadata: { app: "cmux", teamId: "t1", userId: undefined },
};

const createClient = (more: object = {}) => createCmuxClient({ env: bed.env, snapshots: MANIFEST, ...more });

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: "s.example.com", PVE_URL_PATTERN: "port-{port}-{id}.{domain}" },
  });
  // A backend does not have what workers are set to.
  client = createClient({
    env: { REDIS_URL: bed.redisServer.urlFor("producer"), FLEET_PREFIX: bed.env["FLEET_PREFIX"] },
  });
  box = await client.instances.start(START);
});
afterAll(async () => {
  await client.close();
  await bed.close();
});

const urlOf = (port: number, id = START.instanceId) => `https://port-${port}-${id}.s.example.com`;

test("start gives a running instance with four services, its name as host name and in its URLs", async () => {
  expect(box).toMatchObject({
    id: START.instanceId,
    status: "running",
    metadata: { app: "cmux", teamId: "t1" },
    networking: {
      hostname: START.instanceId,
      fqdn: `${START.instanceId}.lan`,
      httpServices: expect.arrayContaining([
        { name: "vscode", port: 39_378, url: urlOf(39_378) },
        { name: "worker", port: 39_376, url: urlOf(39_376) },
        { name: "vnc", port: 39_380, url: urlOf(39_380) },
        { name: "xterm", port: 39_383, url: urlOf(39_383) },
      ]),
    },
  });
  expect(box.networking.httpServices).toHaveLength(4);
  expect(containerOf(bed, box.vmid)?.config["hostname"]).toBe(START.instanceId);
  expect(await bed.fleet.sandboxes.get(box.sandboxId)).toMatchObject({ template: "9001", ttlAction: "stop" });
  expect(await box.exec('echo out; echo "$HOME" >&2; exit 3')).toEqual({
    exit_code: 3,
    stdout: "out",
    stderr: "/root",
  });
  expect(await box.exec("sleep 60", { timeoutMs: 200 })).toMatchObject({ exit_code: 124 });
  const line = "head -c 600000 /dev/zero | tr '\\0' x; echo";
  expect(await box.exec(line)).toEqual({ exit_code: 0, stdout: "x".repeat(600_000), stderr: "" });
  expect(await box.exec(`${line}; ${line}`)).toMatchObject({ exit_code: 0, truncated: true });
});

test("the same start again is the same instance, by however the name is written; another is refused", async () => {
  const again = await client.instances.start({ ...START, instanceId: " PVELXC_1a2b3c4d" });
  expect(again).toMatchObject({ id: box.id, vmid: box.vmid, sandboxId: box.sandboxId });
  await failure(client.instances.start({ ...START, templateVmid: 9_002 }), "idempotency_conflict");
  const lost = await failure(client.instances.start({ snapshotId: "snapshot_ffffffff" }), "invalid_input");
  expect(lost.text).toBe(
    "snapshotId: snapshot_ffffffff is not in the manifest of snapshots; add it there, or give templateVmid",
  );
  // What a database has nothing for.
  const nothing = { instanceId: undefined } as unknown as { instanceId: string };
  expect((await failure(client.instances.get(nothing), "invalid_input")).text).toMatch(/^instanceId: is missing/);
  await failure(client.instances.start({ ...START, instanceId: "" }), "invalid_input");
});

function spawnProcess(what: "start" | "use", instanceId: string): ChildProcess {
  const main = fileURLToPath(new URL("./client-process.ts", import.meta.url));
  const { FLEET_PREFIX } = bed.env;
  const REDIS_URL = bed.redisServer.urlFor("producer");
  const env = { ...CHILD_ENV, REDIS_URL, FLEET_PREFIX };
  return spawn(process.execPath, [main, what, instanceId], { env, stdio: ["ignore", "pipe", "inherit"] });
}

test("an instance that one process started works in another after the first was killed, and that one ends by itself", async () => {
  const first = spawnProcess("start", "pvelxc-ffff0000");
  const [line] = await once(createInterface(first.stdout ?? expect.fail()), "line");
  const { vmid } = JSON.parse(String(line));
  first.kill("SIGKILL");
  await once(first, "exit");
  expect(await client.execInContainer(vmid, "echo kept > left.txt")).toMatchObject({ exit_code: 0 });
  const second = spawnProcess("use", "pvelxc-ffff0000");
  const [out, [code]] = await Promise.all([text(second.stdout ?? expect.fail()), once(second, "exit")]);
  expect(code).toBe(0);
  expect(JSON.parse(out)).toMatchObject({
    id: "pvelxc-ffff0000",
    vmid,
    status: "running",
    stdout: "kept",
    networking: { httpServices: expect.arrayContaining([expect.objectContaining({ name: "web", port: 8_080 })]) },
  });
});

describe("an instance's", () => {
  test("services are exposed and hidden, for every holder", async () => {
    expect(await box.exposeHttpService("web", 8_000)).toEqual({ name: "web", port: 8_000, url: urlOf(8_000) });
    const other = await client.instances.get({ instanceId: box.id });
    expect(other.networking.httpServices).toHaveLength(5);
    await other.hideHttpService("web");
    expect(other.networking.httpServices).toHaveLength(4);
    await box.refresh();
    expect(box.networking).toEqual(other.networking);
  });

  test("services let everybody in, or those with a link", async () => {
    const authOf = async (name: string) =>
      (await bed.fleet.sandboxes.get(box.sandboxId)).services.find((one) => one.name === name)?.auth;
    expect(await authOf("vscode")).toBe("none");
    await using careful = createClient({ auth: "link" });
    const same = await careful.instances.get({ instanceId: box.id });
    await same.exposeHttpService("app", 3_000);
    await same.exposeHttpService("api", 3_001, "api_key");
    expect([await authOf("app"), await authOf("api")]).toEqual(["link", "api_key"]);
    expect(await same.link("app", { path: "/?folder=%2Froot", ttlSeconds: 60 })).toMatch(urlOf(3_000));
    for (const name of ["app", "api"]) await same.hideHttpService(name);
  });

  test("power changes say what it came to; a pause without SSH is a stop, and says so", async () => {
    const statuses: string[] = [];
    for (const act of ["stop", "start", "shutdown", "resume"] as const) {
      await box[act]();
      statuses.push(box.status);
    }
    expect(statuses).toEqual(["stopped", "running", "stopped", "running"]);
    expect(await box.pause()).toEqual({ status: "stopped", memoryKept: false });
    expect([box.status, containerOf(bed, box.vmid)?.status]).toEqual(["stopped", "stopped"]);
    await failure(box.exec("true"), "not_running");
    await box.resume();
    expect(await box.exec("echo up")).toMatchObject({ stdout: "up" });
  });

  test("wake-on is kept for HTTP, and unsupported for SSH, which changes nothing", async () => {
    const wakes = async () => (await bed.fleet.sandboxes.get(box.sandboxId)).wakeOnHttp;
    await box.setWakeOn(true, false);
    expect(await wakes()).toBe(true);
    await failure(box.setWakeOn(false, true), "unsupported");
    expect(await wakes()).toBe(true);
  });

  test("snapshot starts another", async () => {
    await box.exec("echo snapped > snap.txt");
    const { id } = await box.snapshot();
    const copy = await client.instances.start({ snapshotId: id });
    expect(copy.id).toBe(copy.sandboxId);
    expect(copy.networking.httpServices[0]?.url).toContain(copy.sandboxId.replace("_", "-"));
    expect(await copy.exec("cat snap.txt")).toMatchObject({ stdout: "snapped" });
    expect(await client.instances.get({ instanceId: copy.id })).toMatchObject({ vmid: copy.vmid });
    await copy.delete();
    expect(copy).toMatchObject({ status: "unknown", networking: { httpServices: [] } });
    await failure(client.instances.get({ instanceId: copy.id }), "sandbox_gone");
  });
});

describe("a branch", () => {
  const snapshots = () => containerOf(bed, box.vmid)?.snapshots;

  test("is so many copies of it as it is now, each an instance with its metadata, services and TTL", async () => {
    const before = snapshots();
    await box.exec("echo branched > branch.txt");
    const copies = await box.branch(2);
    expect(copies).toHaveLength(2);
    expect(copies.instances).toEqual([...copies]);
    const [first, second] = copies;
    expect(first?.vmid).not.toBe(second?.vmid);
    for (const copy of copies) {
      expect(copy).toMatchObject({ status: "running", metadata: box.metadata });
      expect(copy.networking.httpServices.map(({ name }) => name).sort()).toEqual(["vnc", "vscode", "worker", "xterm"]);
      expect(await copy.exec("cat branch.txt")).toMatchObject({ stdout: "branched" });
      expect(await bed.fleet.sandboxes.get(copy.sandboxId)).toMatchObject({ ttlSeconds: 3_600, ttlAction: "stop" });
    }
    await until(() => isDeepStrictEqual(snapshots(), before), "the end of its snapshot");
    await Promise.all(copies.map((copy) => copy.delete()));
  });

  test("is all of it or nothing: what was made goes, and so does the snapshot", async () => {
    const before = { containers: bed.pve.containers().length, snapshots: snapshots() };
    const { sandboxes } = (await bed.fleet.quotas.get("default")).used;
    await bed.fleet.quotas.set("default", { sandboxes: sandboxes + 1 });
    await failure(box.branch(2), "quota_exceeded");
    await bed.fleet.quotas.remove("default");
    const now = () => ({ containers: bed.pve.containers().length, snapshots: snapshots() });
    await until(() => isDeepStrictEqual(now(), before), "nothing of it");
    await failure(box.branch(0), "invalid_input");
  });
});

test("a template is saved, started from and deleted; one whose maker never heard of it is an orphan", async () => {
  await box.exec("echo saved > saved.txt");
  const saved = await client.createTemplateFromContainer(box.id);
  expect(containerOf(bed, saved.templateVmid)?.config["template"]).toBe("1");
  const copy = await client.instances.start({ snapshotId: saved.snapshotId });
  expect(await copy.exec("cat saved.txt")).toMatchObject({ stdout: "saved" });
  await copy.delete();
  await failure(client.instances.get({ instanceId: saved.snapshotId }), "sandbox_not_found");
  await failure(client.deleteTemplate(box.vmid), "template_not_found");
  await failure(client.deleteTemplate(9_001), "template_not_found");

  await using hasty = createClient({ waitMs: 1 });
  await failure(hasty.createTemplateFromContainer(box.id), "timeout");
  await failure(hasty.execInContainer(box.vmid, "sleep 0.2"), "timeout");
  const templates = () => bed.fleet.sandboxes.list({ state: "template" });
  const lost = await until(
    async () => (await templates()).find(({ vmid }) => vmid !== saved.templateVmid),
    "the template",
  );
  expect(await client.listOrphanedTemplates()).toEqual([]);
  // An hour passes.
  const key = bed.keys.templates(lost.team);
  for (const { id } of await templates()) {
    const template = JSON.parse((await bed.redis.hget(key, id)) ?? "{}");
    await bed.redis.hset(key, id, JSON.stringify({ ...template, createdAt: Date.now() - 3_600_000 }));
  }
  const [orphan, ...others] = await client.listOrphanedTemplates();
  expect(others).toEqual([]);
  expect(orphan).toEqual({ vmid: lost.vmid, hostname: expect.stringMatching(/^cmux-template-/) });
  const versions = [{ ...MANIFEST.presets[0]?.versions[0], templateVmid: lost.vmid }];
  await using named = createClient({ snapshots: { presets: [{ ...MANIFEST.presets[0], versions }] } });
  expect(await named.listOrphanedTemplates()).toEqual([]);
  await client.deleteTemplate(lost.vmid ?? 0);
  await client.deleteTemplate(saved.templateVmid);
  expect(await templates()).toEqual([]);
});

test("instances are listed by metadata, and found by name, VMID or host name, but never by another's number", async () => {
  const older = await provisionOne(bed.fleet, { hostname: "cmux-old", metadata: { app: "old" } });
  const ids = async (metadata?: Record<string, string>) =>
    (await client.instances.list(metadata && { metadata })).map(({ vmid }) => vmid);
  expect(await ids({ app: "cmux", teamId: "t1" })).toEqual([box.vmid]);
  expect(await ids()).toEqual(expect.arrayContaining([box.vmid, older.vmid]));
  const { get } = client.instances;
  const found = { id: "cmux-old", vmid: older.vmid, sandboxId: older.sandboxId };
  expect(await get({ instanceId: "cmux-old" })).toMatchObject(found);
  expect(await get({ instanceId: "from-a-database", vmid: older.vmid })).toMatchObject({ vmid: older.vmid });
  expect(await get({ instanceId: "from-a-database", hostname: "cmux-old" })).toMatchObject({ vmid: older.vmid });
  await failure(get({ instanceId: "pvelxc-00000000", vmid: box.vmid }), "sandbox_not_found");
  await failure(get({ instanceId: "pvelxc-00000000", vmid: older.vmid, hostname: "other" }), "sandbox_not_found");
  await failure(client.execInContainer(box.vmid, "true", { instanceId: "pvelxc-00000000" }), "sandbox_not_found");
  expect(await client.execInContainer(box.vmid, "true", { instanceId: box.id })).toMatchObject({ exit_code: 0 });
  await failure(client.execInContainer(999, "true"), "sandbox_not_found");
});

test("an instance that is being made is got once it is made", async () => {
  const { sandboxId } = await bed.fleet.provision({ template: "cmux-base", instanceId: "pvelxc-early" });
  const instance = await client.instances.get({ instanceId: "pvelxc-early" });
  expect(instance).toMatchObject({ sandboxId, status: "running" });
});

test("the same start is the same instance also when the record of what made it has gone", async () => {
  const { operation } = await bed.fleet.sandboxes.get(box.sandboxId);
  await bed.redis.del(bed.keys.operation(operation));
  expect(await client.instances.start(START)).toMatchObject({ id: box.id, vmid: box.vmid, status: "running" });
});

test("health tells of Redis, workers and PVE, and never throws; public URLs are as the workers make them", async () => {
  await using fresh = createClient();
  expect(fresh.getPublicServiceUrl(39_378, box.id)).toBe(urlOf(39_378));
  await using other = createClient({ env: { ...bed.env, PVE_PUBLIC_DOMAIN: "", PVE_URL_PATTERN: "" } });
  expect(other.getPublicServiceUrl(39_378, box.id)).toBeNull();
  expect(await other.healthCheck()).toMatchObject({
    healthy: true,
    redis: { ok: true },
    workers: { ok: true, seenMsAgo: expect.any(Number) },
    pve: { ok: true, readMsAgo: expect.any(Number), nodes: { online: 1, total: 1 } },
  });
  expect(other.getPublicServiceUrl(39_378, box.id)).toBe(urlOf(39_378));
  await using away = createCmuxClient({ redis: "redis://127.0.0.1:1", requestTimeoutMs: 100 });
  expect(await away.healthCheck()).toMatchObject({
    healthy: false,
    redis: { ok: false, error: expect.stringContaining("redis_unavailable") },
  });
  await away.close();
  expect(await away.healthCheck()).toMatchObject({ healthy: false });
});
