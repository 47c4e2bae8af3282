/** Turns of teams with the real placer: counted by the sandboxes whose clone begins. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { FleetEvent, Handle } from "../../../producers/index.ts";
import { type Bed, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 }, env: { FLEET_NODE_SLOTS: "2" } });
});
afterAll(() => bed.close());

const PATIENCE = { timeoutMs: 30_000 };
const ITEMS = 400;
const NEWCOMERS = 6;

const isTurn = (event: FleetEvent) => event.type === "sandbox.changed" && event.data.state === "cloning";

test("beside a long batch a single provision is second, and the batch goes on while newcomers keep coming", async () => {
  const handles: Handle<"provision">[] = [];
  const arrive = async (team: string, priority: "interactive" | "batch" = "interactive") => {
    handles.push(await bed.client({ team }).provision({ template: "cmux-base", priority }));
  };
  const held = bed.pve.faults.request({ method: "POST", path: "/status/start$", kind: "hang", times: 2 });
  const events = bed.fleet.events({ after: "$" });
  const turns: string[] = [];
  const next = async () => {
    while (true) {
      const { value, done } = await events.next();
      if (done) throw new Error("no more events");
      if (isTurn(value)) return turns.push(value.team);
    }
  };
  const asked = bed.client({ team: "backlog" }).batch({ count: ITEMS, template: "cmux-base" });
  await next();
  await next();
  const batch = await asked;
  await until(() => held.hits === 2, "two that are at work, and hold all slots");
  await arrive("single", "batch");
  await arrive("newcomer0");
  held.release();
  for (let newcomer = 1; turns.length < 4 + 2 * NEWCOMERS; newcomer++) {
    await next();
    if (newcomer < NEWCOMERS) await arrive(`newcomer${newcomer}`);
  }
  // One of the batch may have been next already.
  expect(turns.slice(2, 5)).toContain("single");
  expect(turns.slice(2, 4)).toContain("newcomer0");
  expect(new Set(turns).size).toBe(2 + NEWCOMERS);
  const others = turns
    .join(" ")
    .split("backlog")
    .map((between) => between.split(" ").filter(Boolean).length);
  // Teams with something to do: the batch's, single and two newcomers at most.
  expect(Math.max(...others)).toBeLessThanOrEqual(5);
  await events.return?.();
  await batch.cancel({ undo: true });
  const sandboxes = await Promise.all(handles.map((one) => one.result(PATIENCE)));
  const destroyed = sandboxes.map(async ({ sandboxId }) => (await bed.fleet.destroy({ sandboxId })).result(PATIENCE));
  await Promise.all(destroyed);
  const { counts, undone } = await batch.result(PATIENCE);
  expect(counts).toMatchObject({ total: ITEMS, failed: 0, queued: 0, running: 0 });
  expect(undone).toBe(counts.succeeded);
});
