/** The doctor against the stand-in, a real Redis and real sshds: what is well, and each thing that is not. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { diagnose } from "../../../workers/doctor/diagnose.ts";
import type { Finding, Level } from "../../../workers/doctor/finding.ts";
import { PRIVILEGES, ROLE } from "../../../workers/doctor/privileges.ts";
import { examineHosts } from "../../../workers/doctor/pve.ts";
import { examineRights, type RightsFor, toSubjects } from "../../../workers/doctor/rights.ts";
import { createPveApi } from "../../../workers/pve/api.ts";
import { createPveHttp } from "../../../workers/pve/http.ts";
import { toPveTarget } from "../../../workers/pve/target.ts";
import { CHILD_ENV } from "../../child-env.ts";
import { startPve } from "../../pve/index.ts";
import { startScripted } from "../pve-client/scripted.ts";
import { type Bed, FAST, startBed } from "./harness.ts";

const CLI = fileURLToPath(new URL("../../../producers/cli/main.ts", import.meta.url));

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 2, timings: { unreachableDelay: 50, authDelay: 50 } },
    ssh: { guard: { first: 20_000, last: 29_999 } },
  });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const look = (env: Record<string, string> = {}) => diagnose({ ...bed.env, ...env }, { probe: undefined });
const at = (findings: readonly Finding[], level: Level) => findings.filter((one) => one.level === level);
const problems = async (env?: Record<string, string>) => at(await look(env), "problem");

async function runDoctor(...words: string[]) {
  const child = spawn(process.execPath, [CLI, "doctor", ...words], {
    env: { ...CHILD_ENV, ...bed.env },
  });
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
  return { stdout, stderr, code: Number(code) };
}

test("a sound fleet: no problem, and the probe's sandbox comes and goes", async () => {
  const { stdout, stderr, code } = await runDoctor("--probe", "--json");
  const { ok, checks }: { ok: boolean; checks: Finding[] } = JSON.parse(stdout);
  expect({ stderr, code, ok, problems: at(checks, "problem") }).toEqual({
    stderr: "",
    code: 0,
    ok: true,
    problems: [],
  });
  expect(at(checks, "warning").map(({ check }) => check)).toEqual(["pve.firewall"]);
  const checked = [...new Set(checks.map(({ check }) => check))];
  expect(checked).toEqual(
    expect.arrayContaining([
      "redis.persistence",
      "redis.eviction",
      "workers",
      "pve.api",
      "pve.quorum",
      "pve.rights",
      "ssh",
    ]),
  );
  expect(checks.filter(({ check }) => check.startsWith("probe.")).map(({ check }) => check)).toEqual([
    "probe.provision",
    "probe.exec",
    "probe.pct",
    "probe.destroy",
  ]);
  expect(bed.pve.containers().filter(({ template }) => !template)).toEqual([]);
});

test("nothing secret is printed, also where it is refused", async () => {
  const secrets = [bed.env["FLEET_SECRET_KEY"] ?? "", bed.pve.token.split("=")[1] ?? "", "planted-password"];
  const url = bed.redisServer.url.replace("redis://", "redis://user:planted-password@");
  const told = JSON.stringify([await look(), await look({ REDIS_URL: url }), await look({ PVE_VMID_RANGE: "9-1" })]);
  for (const secret of secrets) expect(told).not.toContain(secret);
  expect(told).toContain("WRONGPASS");
});

test("settings: all at once, and domains that are not apart", async () => {
  const bad = await problems({ PVE_API_TOKEN: "", PVE_VMID_RANGE: "9-1", REDIS_URL: "" });
  expect(bad.map(({ text }) => text.split(" ")[0]).toSorted()).toEqual([
    "PVE_API_TOKEN",
    "PVE_VMID_RANGE",
    "REDIS_URL",
  ]);
  const near = await problems({
    PVE_PUBLIC_DOMAIN: "box.invalid",
    GATE_APP_ORIGINS: "https://app.box.invalid",
  });
  // .invalid resolves nowhere (RFC 2606).
  expect(near).toMatchObject([
    { check: "settings.domains" },
    { check: "proxy.names", wayOut: expect.stringContaining("fleet proxy") },
  ]);
});

describe("Redis", () => {
  const set = (name: string, value: string) => bed.redis.config("SET", name, value);

  test("one that evicts, keeps nothing and is nearly full", async () => {
    await set("appendonly", "no");
    await set("maxmemory-policy", "allkeys-lru");
    const used = Number(/used_memory:(\d+)/.exec(await bed.redis.info("memory"))?.[1]);
    await set("maxmemory", String(Math.round(used * 1.2)));
    const [findings, { code }] = await Promise.all([look(), runDoctor()]);
    await set("maxmemory", "0");
    await set("maxmemory-policy", "noeviction");
    await set("appendonly", "yes");
    expect(at(findings, "problem").map(({ check, wayOut }) => [check, wayOut?.split(",")[0]])).toEqual([
      ["redis.persistence", "redis-cli config set appendonly yes"],
      ["redis.eviction", "redis-cli config set maxmemory-policy noeviction"],
    ]);
    expect(at(findings, "warning").map(({ check }) => check)).toContain("redis.memory");
    expect(code).toBe(1);
  });

  test("one that is too old, and far away", async () => {
    const { port, hostname } = new URL(bed.redisServer.url);
    // In between its version is another, and each answer late.
    const proxy = createServer((client) => {
      const upstream = connect(Number(port), hostname);
      client.pipe(upstream);
      upstream.on("data", (data) => {
        const older = data.toString("latin1").replace(/redis_version:\d/, "redis_version:5");
        setTimeout(() => client.write(older, "latin1"), 15);
      });
      for (const socket of [client, upstream]) socket.on("error", () => {}).on("close", () => client.destroy());
      client.on("close", () => upstream.destroy());
    });
    await once(proxy.listen(0, "127.0.0.1"), "listening");
    const url = new URL(bed.env["REDIS_URL"] ?? "");
    url.port = String((proxy.address() as AddressInfo).port); // of a server that listens on a port
    const findings = await look({ REDIS_URL: url.href });
    proxy.close();
    const told = findings.filter(({ check, level }) => check.startsWith("redis.") && level !== "ok");
    expect(told).toMatchObject([
      { check: "redis.version", level: "problem", text: expect.stringMatching(/^5\.\d.* is too old$/) },
      { check: "redis.latency", level: "warning" },
    ]);
  });

  test("none: PVE is looked at all the same", async () => {
    const findings = await look({ REDIS_URL: "redis://127.0.0.1:1" });
    expect(at(findings, "problem")).toMatchObject([{ check: "redis", text: expect.stringContaining("ECONNREFUSED") }]);
    expect(findings.map(({ check }) => check)).toContain("templates");
  });

  test("no worker, and some that ask more of a node than PVE takes at once", async () => {
    const findings = await look({ FLEET_PREFIX: "{nobody}" });
    expect(at(findings, "warning").map(({ check }) => check)).toContain("workers");
    const workers = async (env?: Record<string, string>) => (await look(env)).find(({ check }) => check === "workers");
    expect((await workers())?.text).toBe("1 at work");
    await using _ = await bed.startWorkers();
    expect(await workers({ PVE_CONNECTIONS_PER_NODE: "17" })).toMatchObject({
      level: "warning",
      text: expect.stringContaining("2 at work with 17 connections each"),
    });
  });
});

describe("the token", () => {
  const without = (...missing: string[]) =>
    bed.pve.addToken({
      user: "fleet@pve",
      id: "doctor",
      privileges: { "/": ROLE.filter((one) => !missing.includes(one)) },
    });
  const grant = (path: string, role: string) =>
    `pveum acl modify ${path} --users 'fleet@pve' --tokens 'fleet@pve!doctor' --roles ${role}`;

  test("the README's role is enough", async () => {
    expect(await problems({ PVE_API_TOKEN: without() })).toEqual([]);
  });

  test("with a pool, rights on it and on the templates are enough; one that is not there is said to be so", async () => {
    const copies = ["VM.Audit", "VM.Clone"];
    const PVE_API_TOKEN = bed.pve.addToken({
      user: "fleet@pve",
      id: "doctor",
      privileges: {
        "/": ROLE.filter((one) => !one.startsWith("VM.")),
        "/pool/boxes": [...ROLE],
        "/vms/9001": copies,
        "/vms/9002": copies,
      },
    });
    const bad = await problems({ PVE_API_TOKEN, PVE_POOL: "boxes" });
    expect(bad.map(({ check, wayOut }) => [check, wayOut?.split(";")[0]])).toEqual([
      ["pve.pool", "pveum pool add boxes"],
    ]);
  });

  test("each right that it lacks, with the command that gives it", async () => {
    const PVE_API_TOKEN = without("VM.Clone", "VM.Snapshot", "SDN.Use", "Datastore.AllocateSpace", "Sys.Audit");
    const findings = await look({ PVE_API_TOKEN });
    expect(at(findings, "problem").map(({ text, wayOut }) => [text.split(" ")[3], wayOut])).toEqual([
      ["VM.Clone", grant("/vms", "PVEVMAdmin")],
      ["VM.Snapshot", grant("/vms", "PVEVMAdmin")],
      ["Datastore.AllocateSpace", grant("/storage/local-lvm", "PVEDatastoreUser")],
      ["SDN.Use", grant("/sdn/zones/localnetwork/vmbr0", "PVESDNUser")],
    ]);
    const told = at(findings, "warning").map(({ check, wayOut }) => [check, wayOut]);
    expect(told.filter(([check]) => check === "pve.rights")).toEqual([["pve.rights", grant("/", "PVEAuditor")]]);
    expect(told.map(([check]) => check)).toEqual(expect.arrayContaining(["pve.quorum", "pve.firewall", "pve.dns"]));
  });

  describe("on what it was given rights on", () => {
    const NEEDS: RightsFor = {
      vmid: 20_000,
      pool: "boxes",
      nodes: ["pve1"],
      templates: [9_001],
      storages: ["local-lvm"],
      replicaStorages: ["nas"],
      bridges: ["vmbr0/7", "lan"],
      zones: ["lab"],
    };
    /** Each line that is not ok, without what is lost. */
    async function lacks(privileges: Record<string, readonly string[]>, major = 9) {
      const given = Object.fromEntries(Object.entries(privileges).map(([path, names]) => [path, [...names]]));
      const PVE_API_TOKEN = bed.pve.addToken({ user: "fleet@pve", id: "doctor", privileges: given });
      await using http = createPveHttp(toPveTarget(bed.config({ PVE_API_TOKEN })));
      const options = { tokenId: "fleet@pve!doctor", major, skip: [], signal: AbortSignal.timeout(10_000) };
      const findings = await examineRights(createPveApi(http), toSubjects(NEEDS), options);
      return findings.map(({ level, text, wayOut }) => [level, text.split(/ lacks |:/)[1], wayOut?.split(";")[0]]);
    }
    const vms = (name: string): [string, string, string] => ["problem", `${name} on /vms`, grant("/vms", "PVEVMAdmin")];

    test("nothing: every privilege, once, with its command", async () => {
      const told = await lacks({});
      expect(told).toEqual([
        ...ROLE.filter((name) => name.startsWith("VM.")).map((name) =>
          /Migrate|Backup/.test(name) ? ["warning", ...vms(name).slice(1)] : vms(name),
        ),
        ["problem", "Datastore.AllocateSpace on /storage/local-lvm", grant("/storage/local-lvm", "PVEDatastoreUser")],
        ["problem", "Datastore.Audit on /storage/local-lvm", grant("/storage/local-lvm", "PVEDatastoreUser")],
        ["warning", "Datastore.AllocateSpace on /storage/nas", grant("/storage/nas", "PVEDatastoreUser")],
        [
          "problem",
          "SDN.Use on /sdn/zones/localnetwork/vmbr0/7",
          grant("/sdn/zones/localnetwork/vmbr0/7", "PVESDNUser"),
        ],
        ["problem", "SDN.Use on /sdn/zones/localnetwork/lan", grant("/sdn/zones/localnetwork/lan", "PVESDNUser")],
        ["warning", "Pool.Audit on /pool/boxes", grant("/pool/boxes", "PVEPoolUser")],
        ["warning", "Pool.Allocate on /pool/boxes", grant("/pool/boxes", "PVEPoolAdmin")],
        ["warning", "Sys.Audit on /", grant("/", "PVEAuditor")],
      ]);
      expect(new Set(told.map(([, what]) => what?.split(" ")[0]))).toEqual(new Set(PRIVILEGES.map(({ name }) => name)));
      expect((await lacks({}, 7)).map(([, what]) => what).join()).not.toContain("SDN");
    });

    test("all of it, as least-privilege paths: on a pool, a template, a storage, a VLAN, a zone", async () => {
      const paths = {
        "/": ["Sys.Audit"],
        "/pool/boxes": [...ROLE.filter((name) => name.startsWith("VM.")), "Pool.Audit", "Pool.Allocate"],
        "/vms/9001": ["VM.Audit", "VM.Clone", "VM.Backup"],
        "/storage": ["Datastore.AllocateSpace", "Datastore.Audit"],
        "/sdn/zones/localnetwork/vmbr0/7": ["SDN.Use"],
        "/sdn/zones/lab": ["SDN.Use"],
      };
      expect(await lacks(paths)).toEqual([["ok", undefined, undefined]]);
      // An ACL on a path replaces what comes down from above: a command for a higher one would change nothing.
      const narrow = {
        ...paths,
        "/pool/boxes": paths["/pool/boxes"].filter((name) => name !== "VM.Snapshot"),
        "/vms/9001": ["VM.Audit", "VM.Clone"],
        "/nodes/pve1": ["Sys.PowerMgmt"],
      };
      expect(await lacks(narrow)).toEqual([
        ["problem", "VM.Snapshot on /pool/boxes", grant("/pool/boxes", "PVEVMAdmin")],
        ["warning", "VM.Backup on /vms/9001", grant("/vms/9001", "PVEVMAdmin")],
        ["warning", "Sys.Audit on /nodes/pve1", grant("/nodes/pve1", "PVEAuditor")],
      ]);
    });
  });

  test("one that has expired, whose user is disabled, of another realm; a certificate of somebody else", async () => {
    const made = (id: string, more: object) => bed.pve.addToken({ user: "fleet@pve", id, privileges: {}, ...more });
    const told = async (env: Record<string, string>) => {
      const [first, ...rest] = await problems(env);
      expect(rest).toEqual([]);
      return first;
    };
    const expired = made("old", { expired: true });
    expect(await told({ PVE_API_TOKEN: expired })).toMatchObject({
      check: "pve.api",
      text: expect.stringMatching(/token 'old' access expired.*pveum user list; pveum user token list fleet@pve/),
    });
    expect((await told({ PVE_API_TOKEN: expired.replace("@pve!", "@pevm!") }))?.text).toContain(
      "no such user ('fleet@pevm')",
    );
    const off = bed.pve.addToken({ user: "off@pve", id: "off", privileges: {}, disabled: true });
    expect((await told({ PVE_API_TOKEN: off }))?.text).toContain("user 'off@pve' is disabled");
    const fingerprint = Array.from({ length: 32 }, () => "AB").join(":");
    expect((await told({ PVE_TLS_FINGERPRINT: fingerprint }))?.text).toMatch(
      new RegExp(`${bed.pve.fingerprint}.*PVE_TLS_FINGERPRINT`),
    );
  });

  test("without VM.Audit templates are not there; one that PVE does not know is said to be so", async () => {
    const unseen = await problems({ PVE_API_TOKEN: without("VM.Audit") });
    expect(unseen.map(({ check }) => check)).toEqual(["pve.rights", "templates"]);
    const unknown = await problems({ PVE_API_TOKEN: "fleet@pve!gone=12345678-1234-1234-1234-123456789abc" });
    expect(unknown).toMatchObject([{ check: "pve.api", text: expect.stringContaining("pveum user token list") }]);
  });
});

test("a PVE that is too old", async () => {
  await using old = await startScripted((response) => {
    response
      .setHeader("content-type", "application/json")
      .end('{"data":{"version":"6.4-15","release":"6.4","repoid":"af7986e6"}}');
  });
  const target = toPveTarget(bed.config({ PVE_API_URL: old.url, PVE_TLS_FINGERPRINT: old.fingerprint }));
  const { findings } = await examineHosts(target, AbortSignal.timeout(30_000));
  expect(findings).toMatchObject([
    { check: "pve.api", level: "ok" },
    { check: "pve.version", level: "problem", text: "PVE 6.4-15 is too old" },
  ]);
});

describe("the cluster", () => {
  test("a node that is offline, no quorum, a host that is down, a guest of somebody else", async () => {
    bed.pve.faults.node("pve2", "unreachable");
    bed.pve.faults.quorum(false);
    bed.pve.faults.occupy(20_500, "pve1", "qemu");
    const findings = await look({ PVE_API_URL: `https://127.0.0.1:1,${bed.pve.url}` });
    expect(at(findings, "problem").map(({ check, text }) => `${check} ${text.split(" ")[0]}`)).toEqual([
      "pve.quorum cluster",
      "pve.node pve2",
    ]);
    expect(await problems({ PVE_FIREWALL_ALLOW: "10.0.0.0/8" })).toContainEqual(
      expect.objectContaining({ check: "pve.firewall", text: expect.stringContaining("closes nothing") }),
    );
    const told = at(findings, "warning");
    expect(told).toContainEqual(expect.objectContaining({ check: "pve.api", text: expect.stringContaining(":1:") }));
    expect(told).toContainEqual(
      expect.objectContaining({
        check: "vmids",
        text: expect.stringContaining("20500"),
        wayOut: expect.stringContaining("upper=20000"),
      }),
    );
  });

  test("clocks that are apart, names that URLs lack: the command keeps the node's name servers", async () => {
    const env = { PVE_API_URL: "" };
    await using nameless = await startPve({
      nodes: [{ name: "pve1", dnsSearch: "" }, { name: "pve2" }],
      timings: FAST,
    });
    Object.assign(env, {
      PVE_API_URL: nameless.url,
      PVE_API_TOKEN: nameless.token,
      PVE_TLS_FINGERPRINT: nameless.fingerprint,
    });
    nameless.faults.clock("pve2", -60);
    const told = (await look(env)).filter(({ check }) => ["clocks", "pve.dns"].includes(check));
    expect(told).toMatchObject([
      {
        level: "warning",
        text: expect.stringContaining("pve1"),
        wayOut: expect.stringContaining("dns --search DOMAIN --dns1 10.10.10.1;"),
      },
      {
        level: "warning",
        text: expect.stringMatching(/pve2 \d+ s behind/),
        wayOut: expect.stringContaining("set-ntp"),
      },
    ]);
    const fine = (await look()).filter(({ check }) => ["clocks", "pve.dns"].includes(check));
    expect(fine.map(({ level }) => level)).toEqual(["ok", "ok"]);
  });

  test("templates: none; without hookscript, on a storage that can't link, not on each node", async () => {
    await using bare = await startPve({ nodes: 2, templates: [], timings: FAST });
    const env = {
      PVE_API_URL: bare.url,
      PVE_API_TOKEN: bare.token,
      PVE_TLS_FINGERPRINT: bare.fingerprint,
      FLEET_SSH_KEY: "",
      FLEET_SSH_HOSTS: "",
      FLEET_SSH_HOST_KEYS: "",
      FLEET_SSH_KNOWN_HOSTS: "",
    };
    expect(await problems({ ...env, PVE_NODE: "pve9", PVE_STORAGE: "nas" })).toMatchObject([
      { check: "pve.node", text: "there is no node pve9" },
      { check: "storages", text: expect.stringContaining("nas") },
      { check: "templates" },
    ]);
    bare.addTemplate({ name: "poor", node: "pve1", storage: "local", hookscript: false });
    const findings = (await look(env)).filter(({ check }) => check === "templates");
    expect(findings.map(({ level, text }) => [level, text])).toEqual([
      ["warning", expect.stringContaining("not on pve2")],
      ["warning", expect.stringContaining("can't clone linked")],
      ["problem", expect.stringContaining("no hookscript")],
    ]);
    const ioError = { kind: "refuse", status: 500, text: "unable to open file: Input/output error" } as const;
    bare.faults.request({ ...ioError, method: "GET", path: "/lxc/\\d+/config", times: 100 });
    const unread = (await look(env)).filter(({ check }) => check === "templates");
    expect(unread.map(({ text }) => text)).toContainEqual(expect.stringMatching(/^poor \(\d+ on pve1\) can't be read/));
  });

  test("SSH: a host key that is not the pinned one; a guard for other VMIDs", async () => {
    const pinned = `pve1=SHA256:${"A".repeat(43)},pve2=SHA256:${"A".repeat(43)}`;
    const foreign = await problems({ FLEET_SSH_HOST_KEYS: pinned, FLEET_SSH_KNOWN_HOSTS: "" });
    expect(foreign.map(({ check, text }) => [check, text])).toEqual([
      ["ssh", expect.stringContaining("pin it: FLEET_SSH_HOST_KEYS=pve1=")],
      ["ssh", expect.stringContaining("pin it: FLEET_SSH_HOST_KEYS=pve2=")],
    ]);
    const wide = await problems({ PVE_VMID_RANGE: "20000-30000" });
    expect(wide).toMatchObject([
      { check: "ssh", text: expect.stringContaining("guard of node pve1") },
      { check: "ssh" },
    ]);
  });
});
