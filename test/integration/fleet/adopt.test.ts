/** Containers that were there before the fleet: taken in as they are, once, and let go as they were. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Client } from "../../pve/client.ts";
import { command } from "../command.ts";
import {
  type Bed,
  containerOf,
  failure,
  provisionOne,
  run,
  startBed,
  until,
  useUpAttempts,
  within,
} from "./harness.ts";

const POOL = "sandboxes";
const TOKEN = "ab".repeat(32);
const NOTES = `cmux-execd-auth-token=${TOKEN}\nanna's, keep`;

let bed: Bed;
let pve: Client;
beforeAll(async () => {
  bed = await startBed({
    rights: "least",
    pve: { nodes: 1, timings: { resourcesLag: 0 } },
    env: { PVE_POOL: POOL, PVE_PUBLIC_DOMAIN: "sandbox.test", PVE_URL_PATTERN: "port-{port}-{id}.{domain}" },
  });
  pve = new Client(bed.pve);
  await pve.data("POST", "/pools", { poolid: POOL });
});
afterAll(async () => {
  await pve.close();
  await bed.close();
});
beforeEach(() => bed.pve.faults.clear());

/** As the client inside cmux's web process makes one. */
async function make(vmid: number, hostname: string, { description = NOTES, start = false, by = pve } = {}) {
  await by.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: vmid, hostname, description });
  if (start) await by.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
  return { node: "pve1", vmid };
}

const notesOf = (vmid: number) => containerOf(bed, vmid)?.config["description"] ?? "";

/** The command as people call it, once the workers have seen the containers. */
async function fleetAdopt(words: string[], seen: readonly number[]) {
  await until(async () => {
    const { adoptable } = (await bed.workers?.context.inventory.refresh(within())) ?? {};
    const strangers = adoptable?.containers ?? [];
    const isSeen = (vmid: number) => strangers.find((one) => one.vmid === vmid)?.lock === containerOf(bed, vmid)?.lock;
    return seen.every((vmid) => strangers.some((one) => one.vmid === vmid) && isSeen(vmid));
  }, "the containers in the inventory");
  const { code, out, err } = await command(bed.env, "adopt", "--json", ...words);
  const lines: { vmid: number; outcome: string; sandboxId: string }[] = out === "" ? [] : JSON.parse(out);
  return { code, err, lines, of: (vmid: number) => lines.find((line) => line.vmid === vmid) };
}

test("fleet adopt: what runs goes on and works as a sandbox, what is twice asked for is once done", async () => {
  await make(101, "pvelxc-1a2b3c4d", { start: true });
  await make(20_500, "cmux-20500", { description: "" });
  await make(103, "db");
  await make(104, "cmux-104");
  bed.pve.faults.lock(104, "backup");
  const before = containerOf(bed, 101);

  const dry = await fleetAdopt(["--prefix", "pvelxc-,cmux-", "--dry-run"], [101, 104, 20_500]);
  expect(dry).toMatchObject({ code: 0, err: "" });
  expect(dry.lines.map(({ vmid, outcome }) => [vmid, outcome])).toEqual([
    [101, "to adopt"],
    [104, "left"],
    [20_500, "to adopt"],
  ]);
  expect(containerOf(bed, 101)).toEqual(before);
  const foreign = await fleetAdopt(["--prefix", "d"], []);
  expect(foreign.code).toBe(2);
  expect(foreign.err).toContain("FLEET_ADOPT_PREFIXES");

  const done = await fleetAdopt(["--prefix", "pvelxc-,cmux-", "--auth", "none"], [101, 104, 20_500]);
  expect(done.code).toBe(1);
  expect(done.of(104)).toMatchObject({ outcome: "left", error: { code: "container_locked" } });
  const url = "https://port-39378-pvelxc-1a2b3c4d.sandbox.test";
  expect(done.of(101)).toMatchObject({ outcome: "adopted", result: { state: "running", exec: "execd" } });
  expect(done.of(20_500)).toMatchObject({ outcome: "adopted", result: { state: "stopped", exec: "none" } });
  expect(containerOf(bed, 101)).toMatchObject({ status: "running", pool: POOL, address: before?.address });
  expect(notesOf(101)).toMatch(/^sandbox-fleet \{.*"adopted":true,.*\}\n/);
  expect(notesOf(101).split("\n").slice(1).join("\n").trimEnd()).toBe(NOTES);
  expect(notesOf(103).trimEnd()).toBe(NOTES);
  const tasks = bed.pve.tasks().map(({ type }) => type);
  expect(tasks.filter((type) => type !== "vzclone")).toEqual(["vzstart"]);

  const sandbox = await bed.fleet.sandboxes.get("pvelxc-1a2b3c4d");
  expect(sandbox).toMatchObject({ state: "running", vmid: 101, hostname: "pvelxc-1a2b3c4d", template: "(adopted)" });
  expect(sandbox.services).toContainEqual(expect.objectContaining({ name: "vscode", url, auth: "none" }));
  const { id: sandboxId } = sandbox;
  expect(await run(bed.fleet, "exec", { sandboxId, command: "echo here" })).toMatchObject({ stdout: "here\n" });
  expect(await run(bed.fleet, "expose", { sandboxId, name: "web", port: 80 })).toMatchObject({ name: "web" });

  bed.pve.faults.lock(104, null);
  const again = await fleetAdopt(["--prefix", "pvelxc-,cmux-"], [104]);
  expect(again).toMatchObject({ code: 0, err: "" });
  expect(again.lines.map(({ vmid, outcome }) => [vmid, outcome])).toEqual([
    [101, "already adopted"],
    [104, "adopted"],
    [20_500, "already adopted"],
  ]);
  const error = await failure(run(bed.fleet, "adopt", { node: "pve1", vmid: 101 }), "already_adopted");
  expect(error.facts).toMatchObject({ sandbox: sandboxId });

  const stopped = done.of(20_500)?.sandboxId ?? "";
  await run(bed.fleet, "power", { sandboxId: stopped, action: "start" });
  await failure(run(bed.fleet, "exec", { sandboxId: stopped, command: "true" }), "not_configured");
  for (const id of [sandboxId, stopped, again.of(104)?.sandboxId ?? ""])
    expect(await run(bed.fleet, "destroy", { sandboxId: id })).toMatchObject({ existed: true });
  expect([101, 104, 20_500].map((vmid) => containerOf(bed, vmid))).toEqual([undefined, undefined, undefined]);
});

describe("is refused, and the container stays as it was", () => {
  test("a template, one that is gone, one of another name, another fleet's, a node that there is not", async () => {
    await failure(run(bed.fleet, "adopt", { node: "pve1", vmid: 103 }), "not_adoptable");
    await failure(run(bed.fleet, "adopt", { node: "pve1", vmid: 9_001 }), "is_template");
    await failure(run(bed.fleet, "adopt", { node: "pve1", vmid: 199 }), "not_adoptable");
    await failure(run(bed.fleet, "adopt", { node: "pve9", vmid: 101 }), "invalid_input");
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    const stamp = notesOf(vmid).split("\n")[0] ?? "";
    const foreign = stamp.replaceAll(bed.keys.prefix, "{other}").replace(`"vmid":${vmid}`, '"vmid":110');
    await make(110, "cmux-110", { description: foreign });
    const error = await failure(run(bed.fleet, "adopt", { node: "pve1", vmid: 110 }), "not_adoptable");
    expect(error.facts).toMatchObject({ fleet: "{other}" });
    expect(notesOf(110).trimEnd()).toBe(foreign);
    expect(await failure(run(bed.fleet, "adopt", { node: "pve1", vmid }), "already_adopted")).toMatchObject({
      facts: { sandbox: sandboxId },
    });
    bed.pve.faults.vanish(110); // its stamp would look like a leak
  });

  test("a locked one, once patience ends", async () => {
    await make(111, "cmux-111");
    bed.pve.faults.lock(111, "backup");
    const handle = await bed.fleet.adopt({ node: "pve1", vmid: 111 });
    await useUpAttempts(bed, handle, 5);
    await failure(handle.result({ timeoutMs: 60_000 }), "container_locked");
    expect(notesOf(111).trimEnd()).toBe(NOTES);
    expect(await bed.redis.hget(bed.keys.vmids, "111")).toBeNull();
  });

  test("without the right to its pool: the error names it, and the stamp is out again", async () => {
    const target = await make(112, "cmux-112");
    const text = `Permission check failed (/pool/${POOL}, Pool.Allocate)`;
    bed.pve.faults.request({ kind: "refuse", method: "PUT", path: "^/pools/", status: 403, text });
    const error = await failure(run(bed.fleet, "adopt", target), "forbidden");
    expect(error.facts).toMatchObject({ privilege: "Pool.Allocate", undone: ["stamp"] });
    expect(notesOf(112).trimEnd()).toBe(NOTES);
  });

  test("canceled in the middle, and the stamp was all there was", async () => {
    const target = await make(113, "cmux-113", { description: "" });
    const hang = bed.pve.faults.request({ kind: "lose-reply", as: 596, method: "PUT", path: "^/pools/" });
    const handle = await bed.fleet.adopt(target);
    await until(() => hang.hits === 1, "the pool");
    await handle.cancel();
    await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
    expect(containerOf(bed, 113)?.config).not.toHaveProperty("description");
    expect(containerOf(bed, 113)?.pool).toBeUndefined();
  });
});

test("what a human writes into the notes at the same moment is kept", async () => {
  const target = await make(114, "cmux-114");
  const conflict = "detected modified configuration - file changed by other user? Try again.";
  const put = { method: "PUT", path: "/lxc/114/config$" };
  const hang = bed.pve.faults.request({ kind: "hang", ...put });
  const handle = await bed.fleet.adopt(target);
  await until(() => hang.hits === 1, "the stamp's request");
  bed.pve.faults.edit(114, { description: "bert's now" });
  hang.release();
  await handle.result({ timeoutMs: 60_000 });
  expect(bed.pve.log().some(({ reason }) => reason?.includes(conflict.slice(0, 31)))).toBe(true);
  expect(notesOf(114).split("\n").slice(1).join("\n").trimEnd()).toBe("bert's now");
});

test("one whose record Redis lost is left where it is, and taken in again", async () => {
  const target = await make(20_600, "cmux-20600");
  const first = await run(bed.fleet, "adopt", target);
  const { redis, keys } = bed;
  const { team } = await bed.fleet.sandboxes.get(first.sandboxId);
  await redis.del(keys.sandbox(first.sandboxId), keys.operation(first.operationId), keys.secret(first.sandboxId));
  await redis.zrem(keys.sandboxes, first.sandboxId);
  await redis.zrem(keys.teamSandboxes(team), first.sandboxId);
  await redis.hdel(keys.reserved("pve1"), first.sandboxId);
  await redis.hdel(keys.vmids, "20600");
  const second = await run(bed.fleet, "adopt", target);
  expect(second.sandboxId).not.toBe(first.sandboxId);
  expect(notesOf(20_600).match(/sandbox-fleet /g)).toHaveLength(1);
});

test("a worker that dies with the stamp written: another one goes on", async () => {
  const target = await make(115, "cmux-115", { start: true });
  await bed.workers?.close();
  const first = await bed.startProcess();
  const hang = bed.pve.faults.request({ kind: "hang", method: "PUT", path: "^/pools/" });
  const handle = await bed.fleet.adopt(target);
  await until(() => hang.hits === 1, "the pool");
  await bed.startWorkers();
  await first.end("SIGKILL");
  hang.release();
  await bed.redis.del(`${bed.keys.prefix}:node-pve1:${handle.id}:lock`); // as it runs out six seconds later
  const { sandboxId, exec } = await handle.result({ timeoutMs: 60_000 });
  expect(exec).toBe("execd");
  expect(await run(bed.fleet, "exec", { sandboxId, command: "true" })).toMatchObject({ exitCode: 0 });
  expect(containerOf(bed, 115)).toMatchObject({ pool: POOL, status: "running" });
  expect(notesOf(115).match(/sandbox-fleet /g)).toHaveLength(1);
});
