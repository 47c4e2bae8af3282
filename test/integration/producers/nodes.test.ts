/** Nodes taken out of use from the command line, with workers that heed it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { CHILD_ENV } from "../../child-env.ts";
import { command } from "../command.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "../fleet/harness.ts";

const MAIN = new URL("../../../producers/cli/main.ts", import.meta.url).pathname;

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 2 } });
});
afterAll(() => bed.close());
afterEach(() => bed.fleet.nodes.uncordon("pve2"));

const envOf = () => ({ REDIS_URL: bed.redisServer.urlFor("producer"), FLEET_PREFIX: bed.env["FLEET_PREFIX"] });

function start(words: string[], env: Record<string, string> = {}): ChildProcess {
  return spawn(process.execPath, [MAIN, ...words], {
    env: { ...CHILD_ENV, ...envOf(), ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
}

async function ended(child: ChildProcess) {
  const { stdout, stderr } = child;
  if (!stdout || !stderr) throw new Error("unreachable");
  const [out, err] = await Promise.all([text(stdout), text(stderr), once(child, "close")]);
  return { code: child.exitCode, out, err };
}

const fleet = (...words: string[]) => command(envOf(), ...words);

test("cordon and uncordon: said where nodes are listed and where an operation waits", async () => {
  expect(await fleet("node", "cordon", "pve2", "--reason", "new disk")).toEqual({
    code: 0,
    out: "pve2 is cordoned\n",
    err: "",
  });
  expect((await fleet("node", "cordon", "pve2", "--reason", "new RAM")).out).toBe("pve2 was cordoned already\n");
  expect((await fleet("node", "ls")).out).toMatch(
    /^pve1 {2}online {2,}16[\s\S]*^pve2 {2}online, cordoned by \S+@\S+: new RAM /m,
  );
  const handle = await bed.fleet.provision({ template: "cmux-base", node: "pve2" });
  await until(async () => (await handle.status()).waitingFor === "pve2: cordoned (new RAM)", "the reason");
  expect(JSON.parse((await fleet("node", "uncordon", "pve2", "--json")).out)).toEqual({
    node: "pve2",
    cordoned: false,
    changed: true,
  });
  const { sandboxId } = await handle.result({ timeoutMs: 60_000 });
  expect((await fleet("node", "uncordon", "pve2")).out).toBe("pve2 was not cordoned\n");
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a node that there is not is told with those that there are; a team's client takes none out of use", async () => {
  const refused = await Promise.all(["cordon", "uncordon", "drain"].map((verb) => fleet("node", verb, "pve9")));
  for (const { code, err } of refused) {
    expect({ code, err }).toEqual({
      code: 2,
      err: "fleet: invalid_input: NODE: there is no node pve9; nodes are pve1, pve2\n",
    });
  }
  const team = bed.client({ team: "acme" });
  expect(await team.nodes.list()).toHaveLength(2);
  await failure(team.nodes.cordon("pve2", { by: "acme" }), "forbidden");
  await failure(team.nodes.drain("pve2", { by: "acme", destroy: true }), "forbidden");
  expect((await bed.fleet.nodes.list()).map(({ cordon }) => cordon)).toEqual([undefined, undefined]);
});

test("drain lists who lives there, tells what is left, and ends when all have", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { node: "pve2" });
  const late = await fleet("node", "drain", "pve2", "--timeout", "100ms", "--json");
  expect(late.code).toBe(124);
  expect(JSON.parse(late.err)).toMatchObject({ error: { code: "timeout", facts: { sandboxes: [sandboxId] } } });
  const listed = JSON.parse((await fleet("node", "drain", "pve2", "--no-wait", "--json")).out);
  expect(listed).toMatchObject({ drained: false, operations: 0, sandboxes: [{ id: sandboxId }] });
  const child = start(["node", "drain", "pve2"]);
  let told = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    told += chunk.toString();
  });
  const done = ended(child);
  await until(() => told.includes("pve2: 1 sandbox and 0 operations left\n"), "what is left");
  expect(told).toMatch(new RegExp(`^SANDBOX .*\n${sandboxId}  running  pve2 `));
  // New ones go elsewhere meanwhile.
  expect((await provisionOne(bed.fleet)).node).toBe("pve1");
  await run(bed.fleet, "destroy", { sandboxId });
  expect(await done).toMatchObject({ code: 0, out: "pve2 is drained\n" });
  expect((await bed.fleet.nodes.list()).find(({ name }) => name === "pve2")?.cordon).toBeDefined();
});

test("drain --destroy asks first, then destroys what lives there, and says what it could not", async () => {
  const made = await Promise.all([
    provisionOne(bed.fleet, { node: "pve2" }),
    provisionOne(bed.fleet, { node: "pve2" }),
  ]);
  const [first, second] = made;
  const asked = await fleet("node", "drain", "pve2", "--destroy");
  expect(asked).toMatchObject({ code: 2, out: "" });
  expect(asked.err).toContain("give --yes to have its 2 sandboxes destroyed");
  expect(made.map(({ vmid }) => containerOf(bed, vmid)?.status)).toEqual(["running", "running"]);
  bed.pve.faults.edit(first?.vmid ?? 0, { protection: "1" });
  const hindered = await fleet("node", "drain", "pve2", "--destroy", "--yes", "--json");
  expect(hindered.code).toBe(1);
  expect(JSON.parse(hindered.err)).toMatchObject({
    error: { code: "protected", facts: { sandboxes: [first?.sandboxId] } },
  });
  expect(containerOf(bed, second?.vmid ?? 0)).toBeUndefined();
  bed.pve.faults.edit(first?.vmid ?? 0, { protection: null });
  const done = await fleet("node", "drain", "pve2", "--destroy", "--yes");
  expect(done).toMatchObject({ code: 0, out: "pve2 is drained\n" });
  expect(await bed.fleet.sandboxes.get(first?.sandboxId ?? "")).toMatchObject({ state: "destroyed" });
});
