/** Bad input is refused before anything is stored; the same key asks for the same thing once. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FleetError, type JobInput, type JobName } from "../../../producers/index.ts";
import { toFleetError } from "../../../shared/errors.ts";
import { type Bed, failure, provisionOne, startBed } from "./harness.ts";

let bed: Bed;
let sandboxId: string;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: "sandbox.test", FLEET_ADOPT_PREFIXES: "human-" },
  });
  ({ sandboxId } = await provisionOne(bed.fleet));
});
afterAll(() => bed.close());

const stored = async () => {
  const all = await bed.redis.keys(`${bed.keys.prefix}:*`);
  return all.filter((key) => /:(op|sbx|secret|idem|changes|waiting):/.test(key)).sort();
};

type Send = (input: unknown, options?: { idempotencyKey?: string }) => Promise<{ id: string }>;
/** As a caller without types sends it. */
const send = (kind: JobName): Send =>
  kind === "upload"
    ? (input, options) => bed.fleet.upload(input as never, "content", options)
    : (bed.fleet[kind] as unknown as Send);

const TEMPLATE = { template: "cmux-base" };
const BAD: [JobName, string, object, string[]][] = [
  ["provision", "no template", {}, ["template"]],
  ["provision", "a template with a slash", { template: "local:vztmpl/debian" }, ["template"]],
  ["provision", "an unknown field", { ...TEMPLATE, memory: 512 }, ["memory"]],
  ["provision", "ranges", { ...TEMPLATE, cores: 0, memoryMib: 8, cpulimit: -1 }, ["cores", "cpulimit", "memoryMib"]],
  ["provision", "cpuunits past the nodes' range", { ...TEMPLATE, cpuunits: 20_000 }, ["cpuunits"]],
  ["provision", "a disk that is no whole number", { ...TEMPLATE, diskGib: 1.5 }, ["diskGib"]],
  ["provision", "a name that is no host name", { ...TEMPLATE, hostname: "-Up_" }, ["hostname", "hostname"]],
  ["provision", "an address without bits", { ...TEMPLATE, network: { ip: "10.0.0.5" } }, ["network.ip"]],
  [
    "provision",
    "a gateway of dhcp",
    { ...TEMPLATE, network: { ip: "dhcp", gateway: "10.0.0.1" } },
    ["network.gateway"],
  ],
  ["provision", "a multicast MAC", { ...TEMPLATE, network: { hwaddr: "01:00:5E:00:00:01" } }, ["network.hwaddr"]],
  ["provision", "a storage for a linked clone", { ...TEMPLATE, storage: "ceph" }, ["storage"]],
  ["provision", "a bind mount", { ...TEMPLATE, mountPoints: [{ source: "/etc", path: "/x" }] }, ["mountPoints.0"]],
  ["provision", "what root alone may set", { ...TEMPLATE, features: { fuse: true } }, ["features.fuse"]],
  ["provision", "a privileged container", { ...TEMPLATE, unprivileged: false }, ["unprivileged"]],
  ["provision", "execd's port", { ...TEMPLATE, services: [{ name: "x", port: 39_375 }] }, ["services.0.port"]],
  ["provision", "setup without execd", { ...TEMPLATE, waitFor: "address", setup: ["true"] }, ["setup"]],
  ["provision", "an env name with a dash", { ...TEMPLATE, env: { "A-B": "1" } }, ["env.A-B"]],
  ["provision", "a TTL of nothing", { ...TEMPLATE, ttlSeconds: 0 }, ["ttlSeconds"]],
  ["exec", "no command", { command: "" }, ["command"]],
  ["exec", "a NUL byte", { command: "echo \0" }, ["command"]],
  ["exec", "a relative folder", { command: "true", cwd: "tmp" }, ["cwd"]],
  ["exec", "no time", { command: "true", timeoutMs: 0 }, ["timeoutMs"]],
  ["exec", "no sandbox", { command: "true", sandboxId: "box" }, ["sandboxId"]],
  ["upload", "a relative path", { path: "tmp/x" }, ["path"]],
  ["upload", "a mode that is none", { path: "/tmp/x", mode: 0o17777 }, ["mode"]],
  ["upload", "an owner that is shell text", { path: "/tmp/x", owner: "root;id" }, ["owner"]],
  ["download", "no path", {}, ["path"]],
  ["download", "an unknown format", { path: "/tmp", format: "zip" }, ["format"]],
  ["expose", "a name in capitals", { name: "Web", port: 80 }, ["name"]],
  ["expose", "a port that is none", { name: "web", port: 70_000 }, ["port"]],
  ["expose", "execd's port", { name: "web", port: 39_375 }, ["port"]],
  ["hide", "no name", {}, ["name"]],
  ["snapshot", "a name that PVE keeps", { name: "current" }, ["name"]],
  ["snapshot", "a name of one letter", { name: "a" }, ["name"]],
  ["power", "an unknown action", { action: "explode" }, ["action"]],
  ["power", "no grace", { action: "shutdown", graceSec: 0 }, ["graceSec"]],
  ["configure", "nothing to change", {}, ["configure"]],
  ["update", "nothing to change", {}, ["update"]],
  [
    "update",
    "metadata that is no text, and half a character",
    { metadata: { a: 1, b: "\ud800" } },
    ["metadata.a", "metadata.b"],
  ],
  ["update", "an extension of nothing", { wakeOnHttp: true, extend: true }, ["extend"]],
  ["update", "a replacement by nothing", { wakeOnHttp: true, replaceMetadata: true }, ["replaceMetadata"]],
  ["configure", "ranges", { cores: 9_000, swapMib: -1 }, ["cores", "swapMib"]],
  ["configure", "cpuunits past the node's range", { cpuunits: 20_000 }, ["cpuunits"]],
  ["destroy", "an unknown field", { force: true }, ["force"]],
];

describe("bad input names its fields, and nothing is stored", () => {
  test.each(BAD)("%s: %s", async (kind, _, input, fields) => {
    const before = await stored();
    const error = await failure(send(kind)(kind === "provision" ? input : { sandboxId, ...input }), "invalid_input");
    expect([...(error.facts["fields"] as string[])].sort()).toEqual(fields);
    for (const field of fields) expect(error.text).toContain(field);
    expect(await stored()).toEqual(before);
  });

  test("an env without a key to seal it", async () => {
    const before = await stored();
    const open = bed.client({ secretKey: undefined });
    const error = await failure(open.exec({ sandboxId, command: "true", env: { A: "hidden" } }), "not_configured");
    expect(error.facts).toEqual({ variables: ["FLEET_SECRET_KEY"] });
    expect(await stored()).toEqual(before);
  });
});

/** A shell needs SSH: see shell.test.ts. */
const PAIRS: { [N in Exclude<JobName, "shell">]: [JobInput<N>, JobInput<N>] } = {
  provision: [
    { template: "cmux-base", cores: 1, env: { A: "1" } },
    { template: "cmux-base", cores: 1, env: { A: "2" } },
  ],
  adopt: [
    { node: "pve1", vmid: 150 },
    { node: "pve1", vmid: 151 },
  ],
  exec: [
    { sandboxId: "", command: "echo ran >> once.log", env: { A: "1" } },
    { sandboxId: "", command: "echo ran >> once.log", env: { A: "2" } },
  ],
  upload: [
    { sandboxId: "", path: "/workspace/once" },
    { sandboxId: "", path: "/workspace/twice" },
  ],
  download: [
    { sandboxId: "", path: "/bin/sh" },
    { sandboxId: "", path: "/etc", format: "tar" },
  ],
  expose: [
    { sandboxId: "", name: "web", port: 80 },
    { sandboxId: "", name: "web", port: 81 },
  ],
  hide: [
    { sandboxId: "", name: "web" },
    { sandboxId: "", name: "api" },
  ],
  link: [
    { sandboxId: "", name: "web" },
    { sandboxId: "", name: "web", path: "/other" },
  ],
  snapshot: [
    { sandboxId: "", name: "one" },
    { sandboxId: "", name: "two" },
  ],
  delete_snapshot: [
    { sandboxId: "", snapshotId: "snap_0000000000000001" },
    { sandboxId: "", snapshotId: "snap_0000000000000002" },
  ],
  build: [
    { name: "one", from: { template: "cmux-base" } },
    { name: "two", from: { template: "cmux-base" } },
  ],
  replicate: [
    { template: "one", node: "pve1" },
    { template: "two", node: "pve1" },
  ],
  migrate: [
    { sandboxId: "", target: "pve2" },
    { sandboxId: "", target: "pve3" },
  ],
  restore: [
    { sandboxId: "", snapshotId: "snap_0000000000000001" },
    { sandboxId: "", snapshotId: "snap_0000000000000002" },
  ],
  template: [
    { sandboxId: "", name: "one" },
    { sandboxId: "", name: "two" },
  ],
  power: [
    { sandboxId: "", action: "reboot" },
    { sandboxId: "", action: "stop" },
  ],
  configure: [
    { sandboxId: "", cores: 1 },
    { sandboxId: "", cores: 2 },
  ],
  update: [
    { sandboxId: "", metadata: { a: "1" } },
    { sandboxId: "", metadata: { a: "2" } },
  ],
  destroy: [{ sandboxId: "" }, { sandboxId: "" }],
};

describe("an idempotency key", () => {
  test.each(Object.keys(PAIRS) as (keyof typeof PAIRS)[])(
    "of %s: the same input is the same operation, before and after its end",
    async (kind) => {
      const own = (await provisionOne(bed.fleet, { services: [{ name: "web", port: 80 }] })).sandboxId;
      const other = (await provisionOne(bed.fleet)).sandboxId;
      if (kind === "adopt") bed.pve.faults.occupy(150);
      const [first, second] = PAIRS[kind].map((input) => ("sandboxId" in input ? { ...input, sandboxId: own } : input));
      const options = { idempotencyKey: `key of ${kind} for {anybody}: "ü"` };
      const handles = await Promise.all([1, 2, 3].map(() => send(kind)(first, options)));
      expect(new Set(handles.map(({ id }) => id)).size).toBe(1);
      const [{ id } = { id: "" }] = handles;
      const handle = await bed.fleet.operation(id);
      // How it ends is the same, too, well or not: there is nothing to restore, to replicate, or another node.
      const endOf = (one: { result(wait: object): Promise<unknown> }) =>
        one.result({ timeoutMs: 60_000 }).catch((error: unknown) => toFleetError(error).message);
      const end = await endOf(handle);
      const late = await send(kind)(first, options);
      expect(late.id).toBe(id);
      expect(await endOf(await bed.fleet.operation(late.id))).toEqual(end);
      const different = kind === "destroy" ? { sandboxId: other } : second;
      const error = await failure(send(kind)(different, options), "idempotency_conflict");
      expect(error.facts["operation"]).toBe(id);
      expect((await send(kind)(first)).id).not.toBe(id);
    },
  );

  test("belongs to its team", async () => {
    const [red, blue] = [bed.client({ team: "red" }), bed.client({ team: "blue" })];
    const options = { idempotencyKey: "shared" };
    const mine = await red.provision({ template: "cmux-base" }, options);
    const theirs = await blue.provision({ template: "cmux-base" }, options);
    expect(mine.id).not.toBe(theirs.id);
    await Promise.all([mine, theirs].map((handle) => handle.result({ timeoutMs: 60_000 })));
    const seen = await blue.sandboxes.get(mine.sandboxId).catch((error: unknown) => error);
    expect(seen).toBeInstanceOf(FleetError);
    await failure(blue.destroy({ sandboxId: mine.sandboxId }), "sandbox_not_found");
    await failure(blue.operation(mine.id), "operation_unknown");
  });

  test("that is empty or too long is bad input", async () => {
    for (const idempotencyKey of ["", "x".repeat(513)]) {
      const error = await failure(bed.fleet.provision({ template: "cmux-base" }, { idempotencyKey }), "invalid_input");
      expect(error.facts).toMatchObject({ fields: ["idempotencyKey"] });
    }
  });
});
