/** `fleet batch` and `fleet provision --count`: the worker's side is played through the store. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { BatchId, type OperationId } from "../../../shared/ids.ts";
import { createBatchStore } from "../../../shared/state/batches.ts";
import { CHILD_ENV } from "../../child-env.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { createRig, type Rig, SECRET_KEY, toProvisioned } from "./rig.ts";

let server: RedisServer;
let folder: string;
beforeAll(async () => {
  server = await startRedis();
  folder = await mkdtemp(join(tmpdir(), "fleet-batch-"));
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

const MAIN = new URL("../../../producers/cli/main.ts", import.meta.url).pathname;

function start(rig: Rig, words: string[]) {
  const child = spawn(process.execPath, [MAIN, ...words], {
    env: { ...CHILD_ENV, REDIS_URL: server.urlFor("producer"), FLEET_PREFIX: rig.prefix, FLEET_SECRET_KEY: SECRET_KEY },
    stdio: ["pipe", "pipe", "pipe"],
  });
  const ended = Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]).then(([out, err]) => ({
    code: child.exitCode,
    out,
    err,
  }));
  return { child, ended };
}

const open = (rig: Rig, count: number) =>
  vi.waitFor(
    async () => {
      const ids = await rig.redis.zrange(rig.keys.open, "0", "-1");
      expect(ids).toHaveLength(count);
      return ids as OperationId[];
    },
    { interval: 10, timeout: 30_000 },
  );

async function succeed(rig: Rig, id: OperationId) {
  await rig.succeed(id, toProvisioned(id, (await rig.store.load(id))?.sandbox ?? ""));
}

const linesOf = (out: string) => out.trimEnd().split("\n");

test("a file of jobs: bad lines fail alone and are named; the same id again does nothing twice", async () => {
  await using rig = createRig(server);
  const file = join(folder, "jobs.jsonl");
  const provision = `{"kind":"provision","input":{"template":"base"}}`;
  const marked = `\uFEFF${provision}\r`; // as Windows writes it
  const dance = `{"kind":"dance","input":{},"key":1}`;
  const lines = [marked, "", "not json", dance, `{"kind":"provision","input":{}}`, "[1]"];
  await writeFile(file, `${lines.join("\n")}\n${provision}`);
  const words = ["batch", file, "--id", "nightly", "--policy", "keep"];
  const people = start(rig, words);
  const [first, second] = await open(rig, 2);
  if (!first || !second) throw new Error("unreachable");
  await succeed(rig, first);
  await rig.fail(second, new FleetError("storage_full", "local is full"));
  const { code, out, err } = await people.ended;
  expect({ code, out }).toEqual({ code: 1, out: "" });
  const told = linesOf(err).filter((line) => line.startsWith("fleet: line"));
  expect(told.sort()).toEqual([
    expect.stringMatching(/^fleet: line 3: invalid_input: is no JSON; must be a JSON object such as /),
    expect.stringMatching(
      /^fleet: line 4: invalid_input: kind: must be one of .*provision.*; key: job has no such field$/,
    ),
    expect.stringMatching(/^fleet: line 5: invalid_input: template: must be/),
    expect.stringMatching(/^fleet: line 6: invalid_input: must be a JSON object such as /),
    "fleet: line 7: storage_full: local is full",
  ]);
  expect(linesOf(err).at(-1)).toMatch(
    /^fleet: batch nightly: 1 of 6 succeeded, 5 failed \(.*4 invalid_input.*\), in [\d.]+s$/,
  );

  const again = await start(rig, [...words, "--json"]).ended;
  const results = linesOf(again.out).map((line) => JSON.parse(line));
  expect(results).toHaveLength(6);
  expect(results).toContainEqual(
    expect.objectContaining({ batch: "nightly", line: 1, ok: true, operationId: first, kind: "provision" }),
  );
  const error = { code: "storage_full", message: "local is full", facts: expect.anything() };
  expect(results).toContainEqual(expect.objectContaining({ line: 7, ok: false, error }));
  expect({ code: again.code, err: again.err }).toEqual({ code: 1, err: "" });
  expect(await rig.redis.zcard(rig.keys.open)).toBe(0);

  await writeFile(file, lines.toSpliced(2, 1, provision).join("\n"));
  const other = await start(rig, words).ended;
  expect(other.code).toBe(2);
  expect(other.err).toMatch(/^fleet: idempotency_conflict: line 3: .* had other input before/m);
});

test("jobs from a pipe are accepted as they come; Ctrl-C cancels what waits and says what was undone", async () => {
  await using rig = createRig(server);
  const { child, ended } = start(rig, ["batch", "-", "--policy", "undo"]);
  const line = `${JSON.stringify({ kind: "provision", input: { template: "base" } })}\n`;
  child.stdin.write(line.repeat(2));
  const [first, second] = await open(rig, 2);
  if (!first || !second) throw new Error("unreachable");
  child.stdin.write(line);
  const [, , third] = await open(rig, 3);
  await succeed(rig, first);
  child.kill("SIGINT");
  const id = await vi.waitFor(
    async () => {
      const [stopping] = await rig.redis.smembers(rig.keys.batchesStopping);
      expect(stopping).toBeDefined();
      return stopping ?? "";
    },
    { interval: 10, timeout: 30_000 },
  );
  const canceled = new FleetError("canceled", "its batch was canceled by its producer");
  for (const one of [second, third]) if (one) await rig.fail(one, canceled);
  // Its undo, which the workers do.
  const batches = createBatchStore(rig.redis, rig.keys, { retentionSec: 60 });
  await batches.noteUndo(BatchId.parse(id));
  const made = (await rig.store.load(first))?.sandbox;
  if (made) await batches.countUndone(BatchId.parse(id), "undone", [made]);
  const { code, err } = await ended;
  expect(code).toBe(130);
  expect(err).toContain(`fleet: canceling batch ${id}; Ctrl-C again leaves at once\n`);
  expect(err).not.toContain("line 2"); // of thousands one line is enough
  expect(linesOf(err).at(-1)).toMatch(
    /^fleet: canceled: batch \S+: 1 of 3 succeeded, 2 canceled and undone, 1 destroyed again, in /,
  );
});

test("provision --count: one batch, its sandboxes in a table, failures by reason; then ls, get and cancel", async () => {
  await using rig = createRig(server);
  const { ended } = start(rig, ["provision", "base", "--count", "4", "--id", "four", "--cores", "2"]);
  const [a, b, c, d] = await open(rig, 4);
  if (!a || !b || !c || !d) throw new Error("unreachable");
  const full = new FleetError("storage_full", "local is full", { facts: { node: "pve1" } });
  for (const id of [a, b]) await succeed(rig, id);
  for (const id of [c, d]) await rig.fail(id, full);
  const { code, out, err } = await ended;
  expect(code).toBe(1);
  expect(out).toMatch(/^SANDBOX +NODE .*\nsbx_\w{16} +pve1 .*\nsbx_\w{16} +pve1 .*\n$/);
  expect(err).toMatch(
    /fleet: 2 of 4: storage_full: local is full\nfleet: batch (four): 2 of 4 succeeded, 2 failed \(2 storage_full\), in .*\n$/,
  );
  const id = /batch (\S+):/.exec(err)?.[1] ?? "";

  const accepted = await start(rig, ["provision", "base", "--count", "1200", "--no-wait", "--json"]).ended;
  const view = JSON.parse(accepted.out);
  expect(view).toMatchObject({ status: "running", counts: { total: 1200, queued: 1200 } });
  const look = [["ls"], ["get", id], ["cancel", id, "--json"]].map((words) => start(rig, ["batch", ...words]).ended);
  const [listed, got, late] = await Promise.all(look);
  expect(linesOf(listed?.out ?? "").map((line) => line.split(/ +/).slice(0, 4))).toEqual([
    ["BATCH", "STATUS", "TEAM", "ITEMS"],
    [view.id, "running", "default", "1200"],
    [id, "ended", "default", "4"],
  ]);
  expect(got?.out).toMatch(/\n {2}failed +2\n.* {4}storage_full +2\n/s);
  expect(JSON.parse(late?.out ?? "")).toMatchObject({ id, status: "ended" });
});
