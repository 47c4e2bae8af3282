/** Templates built from a specification: of an archive over SSH, of another template through execd; whole, or nothing of them. */
import { existsSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { loadBuildSpec } from "../../../producers/cli/build-spec.ts";
import type { Fleet, JobInput, OutputChunk } from "../../../producers/index.ts";
import { all, type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

const PATIENCE = { timeoutMs: 30_000 };
const ARCHIVE = "local:vztmpl/debian-12-minbase_12.1_amd64.tar.zst";

let bed: Bed;
let red: Fleet;
beforeAll(async () => {
  bed = await startBed({ rights: "least", ssh: { guard: { first: 20_000, last: 29_999 } }, pve: { nodes: 1 } });
  red = bed.client({ team: "red" });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const diskOf = (vmid: number, path: string) => join(containerOf(bed, vmid)?.root ?? "", "..", path);
const containersOf = (id: string) =>
  bed.pve.containers().filter(({ config }) => config["description"]?.includes(`"sandbox":"${id}"`));
const toText = (chunks: readonly OutputChunk[]) => chunks.map((one) => ("text" in one ? one.text : "")).join("");

const SPEC = {
  name: "app",
  version: "1",
  from: { archive: ARCHIVE },
  memoryMib: 768,
  files: [{ path: "/etc/app.conf", content: Buffer.from("a\0b").toString("base64"), mode: "0600" }],
  env: { WORD: "sealed-word" },
  setup: ["echo of $WORD; echo warned >&2", 'echo made > "$FLEET_GUEST_ROOT/workspace/made.txt"'],
  test: 'test -s "$FLEET_GUEST_ROOT/workspace/made.txt"',
} satisfies JobInput<"build">;

test("of an archive: created, filled, tested, clean and a template that is provisioned by name, version and tag", async () => {
  const handle = await red.build(SPEC);
  const output = toText(await all(handle.output(PATIENCE)));
  const made = await handle.result(PATIENCE);
  for (const text of ["==> file 1 of 1", "==> setup 1 of 2", "of sealed-word", "warned", "==> test"])
    expect(output).toContain(text);
  const { config = {}, template } = containerOf(bed, made.vmid) ?? {};
  expect(template).toBe(true);
  expect(config).toMatchObject({ hostname: "app", tags: "app-1", memory: "768", unprivileged: "1" });
  expect(await readFile(diskOf(made.vmid, "etc/app.conf"), "latin1")).toBe("a\0b");
  expect(statSync(diskOf(made.vmid, "etc/app.conf")).mode & 0o777).toBe(0o600);
  expect(existsSync(diskOf(made.vmid, "root/.worker-auth-token"))).toBe(false);
  expect(JSON.stringify(await bed.redis.hgetall(bed.keys.operation(handle.id)))).not.toContain("sealed-word");
  for (const wanted of ["app", "app:1", "app-1", made.snapshotId]) {
    const { sandboxId, vmid } = await provisionOne(red, { template: wanted, waitFor: "address" });
    expect(await readFile(diskOf(vmid, "etc/app.conf"), "latin1")).toBe("a\0b");
    await run(red, "destroy", { sandboxId });
  }
  await failure(provisionOne(red, { template: "app:2" }), "template_not_found");
  await failure(provisionOne(bed.client({ team: "blue" }), { template: "app:1" }), "template_not_found");
});

test("the same version again is refused before anything is touched, or takes its place; old versions go", async () => {
  const before = bed.pve.tasks().length;
  await failure(run(red, "build", SPEC), "template_exists");
  expect(bed.pve.tasks().length).toBe(before);
  const small = { name: "app", from: { archive: ARCHIVE } } as const;
  const first = (await red.sandboxes.list({ state: "template" }))[0]?.id ?? "";
  const again = await run(red, "build", { ...small, version: "1", replace: true });
  await until(() => containersOf(first).length === 0, "the end of the one that was replaced");
  const newer = await run(red, "build", { ...small, version: "2", keepVersions: 1 });
  await until(() => containersOf(again.templateId).length === 0, "the end of the old version");
  expect(await red.sandboxes.list({ state: "template" })).toMatchObject([{ id: newer.templateId, version: "2" }]);
});

test("a build that fails leaves nothing, and says where", async () => {
  const handle = await red.build({ ...SPEC, version: "3", test: "echo not so >&2; exit 3" });
  const output = toText(await all(handle.output(PATIENCE)));
  const error = await failure(handle.result(PATIENCE), "build_failed");
  expect(error.facts).toMatchObject({ step: "test", exitCode: 3, undone: ["container"] });
  expect(error.message).not.toContain("not so");
  expect(output).toContain("not so");
  expect(containersOf(handle.sandboxId)).toEqual([]);
  const slow = await red.build({ ...SPEC, version: "3", test: "sleep 100", timeoutSeconds: 1 });
  const { text, facts } = await failure(slow.result(PATIENCE), "build_failed");
  expect([text, facts["undone"]]).toEqual(["test took more than 1 s", ["container"]]);
  expect(containersOf(slow.sandboxId)).toEqual([]);
  await failure(red.build({ name: "x", from: { archive: "nope:vztmpl/a.tar" } }), "template_not_found");
  await failure(run(red, "build", { name: "x", from: { archive: "local:vztmpl/a.tar" } }), "template_not_found");
  await failure(run(red, "build", { name: "x", from: { archive: ARCHIVE }, storage: "nope" }), "storage_not_found");
});

test("lost replies and a task that fails once: healed, with one container", async () => {
  bed.pve.faults.request({ method: "POST", path: "/lxc$", kind: "lose-reply", as: 596 });
  bed.pve.faults.task({ type: "vzstart", text: "startup failed" });
  const made = await run(red, "build", { name: "weather", from: { archive: ARCHIVE }, setup: ["true"] });
  expect(containersOf(made.templateId)).toMatchObject([{ template: true, vmid: made.vmid }]);
});

test("the example: of a template, through its exec daemon, without SSH", async () => {
  const spec = await loadBuildSpec(join(import.meta.dirname, "../../../examples/template.yaml"));
  const long = `: ${"x".repeat(200_000)}`; // than an argument may be
  const made = await run(red, "build", { ...spec, setup: [...(spec.setup ?? []), long] });
  const copy = await provisionOne(red, { template: "my-app:1" });
  expect(await readFile(diskOf(copy.vmid, "etc/my-app.conf"), "utf8")).toBe("mode = sandbox\n");
  expect(await run(red, "exec", { sandboxId: copy.sandboxId, command: "true" })).toMatchObject({ exitCode: 0 });
  expect(JSON.stringify(containerOf(bed, made.vmid)?.config)).not.toContain("auth-token");
  await run(red, "destroy", { sandboxId: copy.sandboxId });
  // It is a full copy: what it was made of is not held by it.
  expect(await run(red, "destroy", { sandboxId: made.templateId })).toMatchObject({ existed: true });
});
