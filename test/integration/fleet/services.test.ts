/** expose and hide: names and URLs of a sandbox's ports. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Bed, failure, provisionOne, run, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
});
afterAll(() => bed.close());

const namesOf = async (sandboxId: string) =>
  (await bed.fleet.sandboxes.get(sandboxId)).services.map(({ name }) => name).sort();

test("exposes a port under a name; the same name again moves it; hide takes it away", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { services: [{ name: "web", port: 80 }] });
  const api = await run(bed.fleet, "expose", { sandboxId, name: "api", port: 9_000 });
  expect(api).toMatchObject({ name: "api", port: 9_000, url: expect.stringMatching(/^http:\/\/.*:9000$/) });
  expect(await namesOf(sandboxId)).toEqual(["api", "web"]);
  const moved = await run(bed.fleet, "expose", { sandboxId, name: "api", port: 9_001 });
  expect(moved.url).toMatch(/:9001$/);
  expect((await bed.fleet.sandboxes.get(sandboxId)).services).toContainEqual(moved);
  expect(await run(bed.fleet, "hide", { sandboxId, name: "api" })).toEqual({ name: "api", hidden: true });
  expect(await run(bed.fleet, "hide", { sandboxId, name: "api" })).toEqual({ name: "api", hidden: false });
  expect(await namesOf(sandboxId)).toEqual(["web"]);
});

test("many at once on one sandbox lose none", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  const names = Array.from({ length: 12 }, (_, index) => `s${index}`);
  await Promise.all(names.map((name, index) => run(bed.fleet, "expose", { sandboxId, name, port: 1_000 + index })));
  expect(await namesOf(sandboxId)).toEqual([...names].sort());
});

test("exposed before the sandbox runs, it is answered when it does", async () => {
  const provision = await bed.fleet.provision({ template: "cmux-base" });
  const early = await bed.fleet.expose({ sandboxId: provision.sandboxId, name: "web", port: 80 });
  expect((await early.result({ timeoutMs: 60_000 })).url).toMatch(/^http:/);
});

describe("refused", () => {
  test("expose on what is not running, gone or unknown", async () => {
    const { sandboxId } = await provisionOne(bed.fleet, { services: [{ name: "web", port: 80 }] });
    await run(bed.fleet, "power", { sandboxId, action: "stop" });
    await failure(run(bed.fleet, "expose", { sandboxId, name: "api", port: 81 }), "not_running");
    // A URL can be taken away in any state.
    expect(await run(bed.fleet, "hide", { sandboxId, name: "web" })).toEqual({ name: "web", hidden: true });
    await run(bed.fleet, "destroy", { sandboxId });
    for (const sandbox of [sandboxId, "sbx_0000000000000000"] as const) {
      const code = sandbox === sandboxId ? "sandbox_gone" : "sandbox_not_found";
      await failure(bed.fleet.expose({ sandboxId: sandbox, name: "web", port: 80 }), code);
      await failure(bed.fleet.hide({ sandboxId: sandbox, name: "web" }), code);
    }
  });

  test("canceled while they wait for a sandbox that is not up", async () => {
    bed.pve.faults.lock(9_001, "backup");
    const provision = await bed.fleet.provision({ template: "cmux-base" });
    const { sandboxId } = provision;
    const waiting = [
      await bed.fleet.expose({ sandboxId, name: "web", port: 80 }),
      await bed.fleet.hide({ sandboxId, name: "web" }),
    ];
    for (const handle of waiting) {
      expect(await handle.cancel()).toBe(true);
      await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
    }
    await provision.cancel();
    await failure(provision.result({ timeoutMs: 60_000 }), "canceled");
    bed.pve.faults.lock(9_001, null);
  });
});

test("with a public domain the URL is the public one", async () => {
  const here = await startBed({ pve: { nodes: 1 }, env: { PVE_PUBLIC_DOMAIN: "sandbox.example.com" } });
  const { services, vmid } = await provisionOne(here.fleet, { services: [{ name: "web", port: 80 }] });
  expect(services).toEqual([
    {
      name: "web",
      port: 80,
      url: `https://web-${vmid}.sandbox.example.com`,
      level: "public",
      auth: "link",
      epoch: expect.any(String),
    },
  ]);
  await here.close();
});
