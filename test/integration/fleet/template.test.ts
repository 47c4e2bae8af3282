/** Templates made of sandboxes: whole, clean, their team's own; and the sandbox stays as it is. */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Fleet, JobOutput } from "../../../producers/index.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { type FleetWorkers, startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { parseNet } from "../../../workers/pve/config-format.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until, useUpAttempts } from "./harness.ts";

const PATIENCE = { timeoutMs: 30_000 };

let bed: Bed;
let workers: FleetWorkers;
let team: Fleet;
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  bed = await startBed({
    rights: "least",
    ssh: { guard: { first: 20_000, last: 29_999 } },
    workers: "none",
    pve: {
      nodes: 1,
      templates: [
        { name: "cmux-base", storage: "ceph" },
        { name: "on-dir", storage: "local" },
      ],
    },
  });
  workers = await bed.startWorkers();
  team = bed.client({ team: "red" });
  box = await provisionOne(team);
  await prepare(box.sandboxId);
});
afterAll(async () => {
  await workers.close();
  await bed.close();
});
afterEach(() => bed.pve.faults.clear());

/** Gives a sandbox what only one machine may have. */
async function prepare(sandboxId: string, fleet = team) {
  const command = `cd "$FLEET_GUEST_ROOT" && mkdir -p etc/ssh usr/bin etc/systemd/system && echo kept > workspace/kept.txt
    echo key | tee etc/ssh/ssh_host_ed25519_key > etc/ssh/ssh_host_ed25519_key.pub
    echo 0123 > etc/machine-id; ln -s /bin/true usr/bin/ssh-keygen; test -s root/.worker-auth-token`;
  expect(await run(fleet, "exec", { sandboxId, command })).toMatchObject({ exitCode: 0 });
}

const diskOf = (vmid: number) => join(containerOf(bed, vmid)?.root ?? "", "..");

async function expectClean(disk: string) {
  expect(existsSync(join(disk, "root/.worker-auth-token"))).toBe(false);
  expect(existsSync(join(disk, "etc/ssh/ssh_host_ed25519_key"))).toBe(false);
  expect(await readFile(join(disk, "etc/machine-id"), "utf8")).toBe("");
  const unit = join(disk, "etc/systemd/system/multi-user.target.wants/fleet-ssh-host-keys.service");
  expect(await readFile(unit, "utf8")).toContain("ssh-keygen -A");
}

/** Its source as it was: it runs, with its own files, no snapshot and no lock. */
async function expectIntact({ sandboxId, vmid }: { sandboxId: string; vmid: number }) {
  expect(containerOf(bed, vmid)).toMatchObject({ status: "running", snapshots: [] });
  expect(containerOf(bed, vmid)?.lock).toBeUndefined();
  const command = 'cd "$FLEET_GUEST_ROOT" && cat etc/machine-id && test -s root/.worker-auth-token';
  expect(await run(team, "exec", { sandboxId, command })).toMatchObject({ stdout: "0123\n", exitCode: 0 });
}

describe("of a running sandbox", () => {
  let made: JobOutput<"template">;
  beforeAll(async () => {
    const handle = await team.template({ sandboxId: box.sandboxId, name: "app", version: "1.2", description: "ready" });
    made = await handle.result(PATIENCE);
    expect(made).toMatchObject({ templateId: handle.sandboxId, name: "app", version: "1.2", node: "pve1" });
  });

  test("is clean, and its source runs on untouched", async () => {
    const { config = {}, template, snapshots } = containerOf(bed, made.vmid) ?? {};
    expect({ template, snapshots }).toEqual({ template: true, snapshots: [] });
    expect(config).toMatchObject({ hostname: "app", tags: "app-1.2" });
    expect(config["description"]).toContain("ready");
    expect(config["description"]).not.toContain("cmux-execd-auth-token");
    expect(parseNet(config["net0"] ?? "")).toMatchObject({ ip: "dhcp" });
    expect(config["net0"]).not.toContain("link_down");
    await expectClean(diskOf(made.vmid));
    await expectIntact(box);
  });

  test("never had a network while it carried its source's identity", () => {
    const own = bed.pve.log().filter(({ path }) => path.includes(`/lxc/${made.vmid}/`));
    const start = own.findIndex(({ path }) => path.endsWith("/status/start"));
    const before = own.slice(0, start).find(({ method }) => method === "PUT");
    expect(before?.params["net0"]).toMatch(/ip=manual.*link_down=1|link_down=1.*ip=manual/);
  });

  test("is provisioned at once by its id, name, tag and VMID", async () => {
    const templates = [made.templateId, "app", "app-1.2", made.vmid];
    const copies = await Promise.all(templates.map((template) => provisionOne(team, { template })));
    for (const { sandboxId } of copies) {
      const { stdout } = await run(team, "exec", { sandboxId, command: "cat $SANDBOX_WORKSPACE/kept.txt" });
      expect(stdout).toBe("kept\n");
    }
    await Promise.all(copies.map(({ sandboxId }) => run(team, "destroy", { sandboxId })));
  });

  test("is its team's own", async () => {
    const blue = bed.client({ team: "blue" });
    for (const template of [made.vmid, "app", "app-1.2"])
      await failure(provisionOne(blue, { template }), "template_not_found");
    await failure(blue.provision({ template: made.templateId }), "template_not_found");
    await failure(blue.template({ sandboxId: box.sandboxId, name: "stolen" }), "sandbox_not_found");
    await failure(blue.destroy({ sandboxId: made.templateId }), "sandbox_not_found");
  });

  test("is that team's also where an operator of all teams makes it", async () => {
    const { templateId } = await run(bed.fleet, "template", { sandboxId: box.sandboxId, name: "by-operator" });
    expect(await bed.fleet.sandboxes.get(templateId)).toMatchObject({ team: "red" });
    const copy = await provisionOne(team, { template: templateId });
    for (const sandboxId of [copy.sandboxId, templateId]) await run(team, "destroy", { sandboxId });
  });

  test("takes nothing but a provision and a destroy", async () => {
    const sandboxId = made.templateId;
    await failure(run(team, "exec", { sandboxId, command: "true" }), "is_template");
    await failure(run(team, "expose", { sandboxId, name: "web", port: 80 }), "is_template");
    await failure(run(team, "power", { sandboxId, action: "start" }), "is_template");
    await failure(run(team, "template", { sandboxId, name: "again" }), "is_template");
    expect(await team.sandboxes.list()).not.toContainEqual(expect.objectContaining({ id: sandboxId }));
    expect(await team.sandboxes.list({ state: "template" })).toMatchObject([{ id: sandboxId, version: "1.2" }]);
  });

  test("a newer one of its name takes its place; it goes when no linked clone is left", async () => {
    const copy = await provisionOne(team, { template: "app" });
    const newer = await run(team, "template", { sandboxId: copy.sandboxId, name: "app" });
    const next = await provisionOne(team, { template: "app" });
    const clone = bed.pve.log().find(({ params }) => params["newid"] === String(next.vmid));
    expect(clone?.path).toContain(`/lxc/${newer.vmid}/clone`);
    await run(team, "destroy", { sandboxId: next.sandboxId });
    await run(team, "destroy", { sandboxId: newer.templateId });
    await failure(run(team, "destroy", { sandboxId: made.templateId }), "template_in_use");
    expect(await team.sandboxes.get(made.templateId)).toMatchObject({ state: "template" });
    await run(team, "destroy", { sandboxId: copy.sandboxId });
    expect(await run(team, "destroy", { sandboxId: made.templateId })).toMatchObject({ existed: true });
    expect(containerOf(bed, made.vmid)).toBeUndefined();
    await failure(provisionOne(team, { template: "app" }), "template_not_found");
  });
});

describe("of a sandbox whose storage has no snapshots", () => {
  test("is refused while it runs, before anything is touched, and made while it is stopped", async () => {
    const { sandboxId, vmid } = await provisionOne(team, { template: "on-dir", clone: "full" });
    const changes = () => bed.pve.log().filter(({ method, path }) => method !== "GET" && path.includes(`/lxc/${vmid}`));
    const before = changes().length;
    const handle = await team.template({ sandboxId, name: "dir" });
    await failure(handle.result(PATIENCE), "snapshot_unsupported");
    expect(changes()).toHaveLength(before);
    await run(team, "power", { sandboxId, action: "stop" });
    const { templateId } = await run(team, "template", { sandboxId, name: "dir" });
    expect(await team.sandboxes.get(sandboxId)).toMatchObject({ state: "stopped" });
    expect(containerOf(bed, vmid)).toMatchObject({ status: "stopped", snapshots: [] });
    await provisionOne(team, { template: templateId, clone: "full" });
  });
});

describe("bad weather", () => {
  test("a lost reply, of whichever request: healed, once", async () => {
    const sources = await Promise.all([1, 2, 3, 4].map(() => provisionOne(team)));
    const [one, two, three, four] = sources.map(({ vmid }) => vmid);
    const lost = { kind: "lose-reply", as: 596 } as const;
    bed.pve.faults.request({ ...lost, method: "POST", path: `/lxc/${one}/snapshot$` });
    bed.pve.faults.request({ ...lost, method: "POST", path: `/lxc/${two}/clone$` });
    bed.pve.faults.request({ ...lost, method: "DELETE", path: `/lxc/${three}/snapshot/` });
    bed.pve.faults.request({ ...lost, method: "POST", path: "/template$" });
    const handles = await Promise.all(sources.map(({ sandboxId }) => team.template({ sandboxId, name: "weather" })));
    const made = await Promise.all(handles.map((handle) => handle.result(PATIENCE)));
    const hits = bed.pve.log().filter(({ path, status }) => status === 596 && path.includes("/lxc/"));
    expect(hits.map(({ path }) => path.split("/")[5]?.replace(/\/.*/, "")).sort()).toEqual([
      "clone",
      "snapshot",
      "snapshot",
      "template",
    ]);
    for (const { templateId } of made) expect(containersOf(templateId)).toMatchObject([{ template: true }]);
    for (const vmid of [one, two, three, four])
      expect(containerOf(bed, vmid ?? 0)).toMatchObject({ status: "running", snapshots: [] });
  });

  test("a task that fails without end: nothing stays, and the source is intact", async () => {
    const sources = await Promise.all([1, 2].map(() => provisionOne(team)));
    const [one = box, two = box] = sources;
    const text = "lvcreate failed";
    bed.pve.faults.task({ type: "vzsnapshot", vmid: one.vmid, text, times: 9 });
    bed.pve.faults.task({ type: "vzclone", vmid: two.vmid, text, times: 9 });
    bed.pve.faults.task({ type: "vztemplate", text, times: 9 });
    await Promise.all(
      [one, two, box].map(async ({ sandboxId }) => {
        const handle = await team.template({ sandboxId, name: "never" });
        await useUpAttempts(bed, handle, 8);
        await failure(handle.result(PATIENCE), "task_failed");
        expect(containersOf(handle.sandboxId)).toEqual([]);
      }),
    );
    await expectIntact(box);
    for (const { vmid } of sources) expect(containerOf(bed, vmid)).toMatchObject({ status: "running", snapshots: [] });
  });

  test("a copy that can't be cleaned is no template", async () => {
    const { sandboxId } = await provisionOne(team);
    const command = 'cd "$FLEET_GUEST_ROOT" && mkdir -p etc/ssh/ssh_host_x_key';
    await run(team, "exec", { sandboxId, command });
    const handle = await team.template({ sandboxId, name: "unclean" });
    expect((await failure(handle.result(PATIENCE), "template_unclean")).facts).toMatchObject({ undone: ["container"] });
    expect(containersOf(handle.sandboxId)).toEqual([]);
  });
});

const containersOf = (id: string) =>
  bed.pve.containers().filter(({ config }) => config["description"]?.includes(`"sandbox":"${id}"`));

describe("in the line of its source", () => {
  test("what changes the source waits; a destroy of it ends the template first", async () => {
    const { sandboxId, vmid } = await provisionOne(team);
    const copying = bed.pve.faults.request({ method: "POST", path: `/lxc/${vmid}/clone`, kind: "hang" });
    const handle = await team.template({ sandboxId, name: "doomed" });
    const stop = await team.power({ sandboxId, action: "stop" });
    expect(await stop.status()).toMatchObject({ status: "queued", waitingFor: "an earlier operation of this sandbox" });
    const destroy = await team.destroy({ sandboxId });
    await until(async () => (await handle.status()).aborting, "its abort");
    copying.release();
    await failure(handle.result(PATIENCE), "canceled");
    await failure(stop.result(PATIENCE), "canceled");
    expect(await destroy.result(PATIENCE)).toMatchObject({ existed: true });
    expect(containersOf(handle.sandboxId)).toEqual([]);
  });

  test("a sandbox that is still being made is copied once it runs", async () => {
    const { sandboxId } = await team.provision({ template: "cmux-base" });
    const { templateId } = await run(team, "template", { sandboxId, name: "early" });
    expect(await team.sandboxes.get(templateId)).toMatchObject({ state: "template", source: sandboxId });
  });
});

test("a paused sandbox stays paused", async () => {
  const { sandboxId, vmid } = await provisionOne(team);
  await run(team, "power", { sandboxId, action: "pause" });
  await run(team, "template", { sandboxId, name: "paused" });
  expect(containerOf(bed, vmid)).toMatchObject({ frozen: true, snapshots: [] });
  expect(await team.sandboxes.get(sandboxId)).toMatchObject({ state: "paused" });
  await run(team, "destroy", { sandboxId });
});

describe("without SSH", () => {
  beforeAll(async () => {
    await workers.close();
    const env = Object.fromEntries(Object.entries(bed.env).filter(([name]) => !name.startsWith("FLEET_SSH")));
    const settings = loadWorkerConfig(env);
    workers = await startFleetWorkers(settings, createLogger(settings.LOG_LEVEL));
  });

  test("it is cleaned through execd, as a machine with a token of its own", async () => {
    const { templateId, vmid } = await run(team, "template", { sandboxId: box.sandboxId, name: "by-execd" });
    await expectClean(diskOf(vmid));
    await expectIntact(box);
    expect(JSON.stringify(containerOf(bed, vmid)?.config)).not.toContain("auth-token");
    const { sandboxId } = await provisionOne(team, { template: templateId });
    expect(await run(team, "exec", { sandboxId, command: "true" })).toMatchObject({ exitCode: 0 });
  });

  test("without execd either it is refused before anything is touched", async () => {
    const { sandboxId, vmid } = await provisionOne(team, { waitFor: "address" });
    await failure(run(team, "template", { sandboxId, name: "never" }), "unsupported");
    const asked = bed.pve.log().filter(({ method, path }) => method === "POST" && path.includes(`/lxc/${vmid}/`));
    expect(asked.map(({ path }) => path.split("/").at(-1))).toEqual(["start"]);
  });
});
