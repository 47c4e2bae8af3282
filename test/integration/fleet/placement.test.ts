/** Who waits for a node, and who is not kept waiting by them. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { NodeName } from "../../../shared/ids.ts";
import { execQueue, nodeQueue } from "../../../shared/queues.ts";
import { saveInventory } from "../../../shared/state/inventory.ts";
import { type Bed, failure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: {
      nodes: [{ name: "pve1" }, { name: "pve2" }, { name: "pve3", online: false }],
      templates: [
        { name: "cmux-base", node: "pve1", vmid: 9_001 },
        { name: "only-two", node: "pve2", vmid: 9_002 },
        { name: "only-three", node: "pve3", vmid: 9_003, tags: "third" },
      ],
      timings: { unreachableDelay: 30 },
    },
  });
});
afterAll(() => bed.close());
afterEach(async () => {
  for (const node of ["pve1", "pve2"]) bed.pve.faults.node(node, "online");
  await seen("pve2", true);
});

/** Waits until the workers know whether a node is up. */
async function seen(node: string, online: boolean): Promise<void> {
  await until(
    async () => {
      const inventory = await bed.workers?.context.inventory.refresh(within());
      return inventory?.nodes.find(({ name }) => name === node)?.online === online;
    },
    `${node} to be seen ${online ? "online" : "offline"}`,
  );
}

const waiting = (handle: { status(): Promise<{ waitingFor?: string | undefined }> }, what: RegExp) =>
  until(async () => what.test((await handle.status()).waitingFor ?? ""), `an operation that waits for ${what}`);

test("a request that fits nowhere is refused, and the next one is placed", async () => {
  const giant = await bed.fleet.provision({ template: "cmux-base", memoryMib: 8_388_608 });
  const next = await bed.fleet.provision({ template: "cmux-base" });
  const error = await failure(giant.result({ timeoutMs: 60_000 }), "invalid_input");
  expect(error.facts["fields"]).toEqual(["memoryMib"]);
  expect(error.text).toMatch(/the most is \d+$/);
  await run(bed.fleet, "destroy", { sandboxId: (await next.result({ timeoutMs: 60_000 })).sandboxId });
});

test("one that finds no room now lets others pass, and is placed when there is room", async () => {
  // Somebody's sandbox that has all memory of the node.
  const memory = bed.workers?.context.inventory.current().nodes.find(({ name }) => name === "pve1")?.memoryBytes ?? 0;
  const all = Math.floor((memory / 1_048_576) * 1.5);
  await bed.redis.hset(bed.keys.reserved("pve1"), "sbx_0000000000000000", `${all - 600} 0`);
  const large = await bed.fleet.provision({ template: "cmux-base", memoryMib: 1_024 });
  await waiting(large, /no memory left for 1024 MiB/);
  await provisionOne(bed.fleet, { memoryMib: 512 });
  expect((await large.status()).status).toBe("queued");
  await bed.redis.hdel(bed.keys.reserved("pve1"), "sbx_0000000000000000");
  await large.result({ timeoutMs: 60_000 });
});

test("a template on a node that is down is waited for, though nobody has seen it yet; others pass", async () => {
  const byId = await bed.fleet.provision({ template: 9_003 });
  await waiting(byId, /the template's node is offline/);
  const byTag = await bed.fleet.provision({ template: "third" });
  await waiting(byTag, /the template's node is offline/);
  await provisionOne(bed.fleet);
  bed.pve.faults.node("pve3", "online");
  await seen("pve3", true);
  expect(await byId.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve3" });
  expect(await byTag.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve3" });
});

test("a template that was seen is known by name while its node is down, also to a worker that starts then", async () => {
  await seen("pve2", true);
  bed.pve.faults.node("pve2", "unreachable");
  await seen("pve2", false);
  const before = bed.workers?.context.inventory.current().nodes.find(({ name }) => name === "pve2");
  expect(before?.memoryBytes).toBeGreaterThan(0);
  const started = await bed.startWorkers();
  const known = started.context.inventory.current().replicas.find(({ vmid }) => vmid === 9_002);
  expect(known).toMatchObject({ name: "only-two", storage: "local-lvm", online: false });
  await started.close();
  const handle = await bed.fleet.provision({ template: "only-two" });
  await waiting(handle, /pve2: the template's node is offline/);
  bed.pve.faults.node("pve2", "online");
  await seen("pve2", true);
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve2" });
});

test("what waits for a sandbox whose provision is canceled in the line ends", async () => {
  bed.pve.faults.node("pve2", "unreachable");
  await seen("pve2", false);
  const provision = await bed.fleet.provision({ template: "only-two" });
  const { sandboxId } = provision;
  const exec = await bed.fleet.exec({ sandboxId, command: "true" });
  const expose = await bed.fleet.expose({ sandboxId, name: "web", port: 80 });
  const hide = await bed.fleet.hide({ sandboxId, name: "web" });
  await waiting(provision, /offline/);
  expect(await provision.cancel()).toBe(true);
  await failure(provision.result({ timeoutMs: 60_000 }), "canceled");
  await failure(exec.result({ timeoutMs: 60_000 }), "sandbox_gone");
  await failure(expose.result({ timeoutMs: 60_000 }), "sandbox_gone");
  expect(await hide.result({ timeoutMs: 60_000 })).toEqual({ name: "web", hidden: false });
});

test("a cluster that can't be read fails nobody", async () => {
  const unread = bed.pve.faults.request({ method: "GET", path: "/cluster/resources", kind: "hang", times: 100 });
  const context = bed.workers?.context;
  // Until the last reading is too old to answer for a template that it doesn't hold.
  await until(() => Date.now() - (context?.inventory.current().at ?? 0) > 2_000, "an old reading");
  const handle = await bed.fleet.provision({ template: "late" });
  await waiting(handle, /the cluster can't be read just now/);
  await provisionOne(bed.fleet);
  bed.pve.addTemplate({ name: "late", node: "pve1" });
  unread.release();
  await handle.result({ timeoutMs: 60_000 });
});

test("labels, limits and groups decide on the node, and capacity says how many more fit", async () => {
  const { fleet } = bed;
  bed.pve.addTemplate({ name: "everywhere", node: "pve1" });
  bed.pve.addTemplate({ name: "everywhere", node: "pve2" });
  await until(async () => {
    const latest = await bed.workers?.context.inventory.refresh(within());
    return latest?.replicas.filter(({ name }) => name === "everywhere").length === 2;
  }, "both templates");
  await fleet.nodes.set("pve2", { labels: ["ssd"] });
  expect(await provisionOne(fleet, { template: "everywhere", nodeLabels: ["ssd"] })).toMatchObject({ node: "pve2" });
  const nowhere = await fleet.provision({ template: "everywhere", nodeLabels: ["gpu"] });
  expect((await failure(nowhere.result(), "invalid_input")).facts["fields"]).toEqual(["nodeLabels"]);

  const alone = await fleet.provision({ template: "everywhere", antiAffinity: {} });
  expect((await failure(alone.result(), "invalid_input")).facts["fields"]).toEqual(["antiAffinity.group"]);
  const apart = { template: "everywhere", antiAffinity: { mode: "require" as const }, metadata: { kept: "apart" } };
  const batch = await fleet.batch({ count: 3, ...apart });
  const items = async () => {
    const own = await fleet.sandboxes.list({ metadata: { kept: "apart" } });
    return Promise.all(own.map(async ({ operation }) => (await fleet.operation(operation)).status()));
  };
  const third = await until(
    async () => (await items()).find(({ waitingFor }) => waitingFor?.includes("it has one of the same group")),
    "a third that finds both nodes taken",
  );
  expect(third.status).toBe("queued");
  const nodes = (await items()).map(({ sandbox }) => sandbox.node).filter((node) => node !== undefined);
  expect(nodes.toSorted()).toEqual(["pve1", "pve2"]);
  await batch.cancel();

  const before = await fleet.capacity({ template: "everywhere" });
  const { sandboxes = 0 } = (await fleet.nodes.list()).find(({ name }) => name === "pve1") ?? {};
  await fleet.nodes.set("pve1", { maxSandboxes: sandboxes + 1 });
  const room = await fleet.capacity({ template: "everywhere" });
  expect(room.nodes).toContainEqual({ node: "pve1", more: 1, limit: "number of sandboxes" });
  expect(room.more).toBeLessThan(before.more);
  expect(await fleet.nodes.set("pve1", { maxSandboxes: null })).toEqual({});
  const unknown = fleet.capacity({ template: "nowhere" });
  await expect(unknown).rejects.toMatchObject({ code: "template_not_found" });
});

test("the queues of a node that joins get their limits with its first worker", async () => {
  const context = bed.workers?.context;
  const latest = context?.inventory.current();
  const [node] = latest?.nodes ?? [];
  if (!context || !latest || !node) throw new Error("no workers");
  const nodes = [...latest.nodes, { ...node, name: NodeName.parse("pve9") }];
  // As another worker would, that has seen the node first.
  await saveInventory(bed.redis, bed.keys, { ...latest, at: Date.now(), nodes });
  const limitOf = (queue: string) => context.queues.get(queue).getGlobalConcurrency();
  await until(async () => (await limitOf(nodeQueue("pve9"))) === 4, "a limit of the node's queue");
  expect(await until(() => limitOf(execQueue("pve9")), "a limit of its exec queue")).toBe(64);
});
