/** The printed configuration in a real Caddy with its own CA, in front of the gate. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { LINK_COOKIE } from "../../../shared/links.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { type Caddy, startCaddy } from "../../caddy.ts";
import { startDnsmasq } from "../../dnsmasq.ts";
import { startPebble } from "../../pebble.ts";
import { makeCertificate } from "../../pve/certificate.ts";
import { freePort } from "../../server-process.ts";
import { command } from "../command.ts";
import { type Bed, provisionOne, run, startBed, until } from "../fleet/harness.ts";
import { type Asked, expectHidden, type Reply, seen, startEcho } from "./rig.ts";

const DOMAIN = "sandbox.test";
const SECRET = "s".repeat(40);
const PORT = 8_000;

const execute = promisify(execFile);

let bed: Bed;
let gate: Gate;
let box: Awaited<ReturnType<typeof provisionOne>>;
let guest: AsyncDisposable;
let folder: string;
let caddy: Caddy;
let hostOf: (service: string) => string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "caddy-"));
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: DOMAIN, GATE_PORT: "0", GATE_PROXY_SECRET: SECRET },
  });
  const { context } = await bed.startWorkers({ FLEET_ROLES: "gate", REDIS_URL: bed.redisServer.urlFor("gate") });
  gate = await startGate(context);
  box = await provisionOne(bed.fleet, {
    wakeOnHttp: true,
    services: [
      { name: "open", port: PORT, auth: "none" },
      { name: "linked", port: PORT },
    ],
  });
  hostOf = (service) => `${service}-${box.vmid}.${DOMAIN}`;
  guest = await startEcho(box.address, PORT);
  const text = await fleet(["proxy", "caddy", "--tls", "internal", "--gate", new URL(gate.url).host]);
  expect(text).not.toContain(SECRET);
  caddy = await startCaddy(text, SECRET);
});
afterAll(async () => {
  await caddy?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await guest?.[Symbol.asyncDispose]();
  await bed?.close();
  await rm(folder, { recursive: true, force: true });
});

async function fleet(words: string[], env: Record<string, string> = {}): Promise<string> {
  const { code, out, err } = await command({ PVE_PUBLIC_DOMAIN: DOMAIN, GATE_PROXY_SECRET: SECRET, ...env }, ...words);
  if (code !== 0) throw Object.assign(new Error(err), { code, stdout: out });
  return out;
}

const target = (servername: string) => ({ host: "127.0.0.1", port: caddy.port, servername, ca: caddy.authority() });

async function ask(host: string, asked: Asked = {}, name = host, to = target(name)) {
  const { path = "/", method = "GET", headers = {}, body = "" } = asked;
  const sent = request({ ...to, path, method, agent: false, headers: { host, ...headers } });
  sent.end(body);
  const [response] = await once(sent, "response");
  let text = "";
  for await (const chunk of response) text += chunk;
  return { status: response.statusCode, headers: response.headers, text } as Reply; // as Caddy answers
}

test("what it prints is valid for Caddy, in each mode that needs no plugin", async () => {
  const validate = async (proxy: string, ...words: string[]) => {
    const text = await fleet(["proxy", proxy, ...words], { PVE_URL_PATTERN: "{service}.{id}" });
    expect(text).toContain(`*.*.${DOMAIN} {`);
    const home = join(folder, proxy);
    mkdirSync(home);
    writeFileSync(join(home, "Caddyfile"), text);
    const env = { PATH: process.env["PATH"], HOME: home, GATE_PROXY_SECRET: SECRET, OVERLAY_ADDRESS: "127.0.0.1" };
    const [{ stdout }] = await Promise.all([
      execute("caddy", ["fmt", join(home, "Caddyfile")], { env }),
      execute("caddy", ["validate", "--config", join(home, "Caddyfile"), "--adapter", "caddyfile"], { env }),
    ]);
    expect(stdout).toBe(text);
  };
  await Promise.all([validate("caddy"), validate("tailscale", "--tls", "internal"), validate("zerotier")]);
});

test("for a wildcard by DNS-01 nothing but the provider's plugin is missing in it", async () => {
  const text = await fleet(["proxy", "caddy", "--tls", "wildcard", "--dns-provider", "cloudflare"]);
  const adapt = async (name: string, caddyfile: string) => {
    const file = join(folder, name);
    writeFileSync(file, caddyfile);
    const env = { PATH: process.env["PATH"], HOME: folder, GATE_PROXY_SECRET: SECRET, DNS_API_TOKEN: "token" };
    return JSON.parse((await execute("caddy", ["adapt", "--config", file, "--adapter", "caddyfile"], { env })).stdout);
  };
  await expect(adapt("as-printed", text)).rejects.toMatchObject({
    stderr: expect.stringContaining("module not registered: dns.providers.cloudflare"),
  });
  const own = "\t\tdns cloudflare {$DNS_API_TOKEN}\n";
  expect(text.split(own)).toHaveLength(2);
  const { apps } = await adapt("with-another", text.replace(own, "\t\tissuer internal\n"));
  expect(apps.tls.automation.policies).toEqual([{ subjects: [`*.${DOMAIN}`], issuers: [{ module: "internal" }] }]);
  // But for where certificates come from it is as with any other.
  const other = await adapt("on-demand", await fleet(["proxy", "caddy", "--tls", "on-demand"]));
  expect(apps.http).toEqual(other.apps.http);
});

test("a wildcard certificate that another tool keeps serves every host", async () => {
  const { cert, key } = await makeCertificate({ names: [`*.${DOMAIN}`] });
  const [certFile, keyFile] = [join(folder, "wildcard.pem"), join(folder, "wildcard.key")];
  writeFileSync(certFile, cert);
  writeFileSync(keyFile, key);
  const text = await fleet(["proxy", "caddy", "--tls", "files", "--gate", new URL(gate.url).host]);
  await using own = await startCaddy(text, SECRET, { env: { TLS_CERTIFICATE: certFile, TLS_KEY: keyFile } });
  const at = (servername: string) => ({ host: "127.0.0.1", port: own.port, servername, ca: cert });
  expect((await ask(hostOf("open"), {}, "", at(hostOf("open")))).status).toBe(200);
  expect((await ask(hostOf("nobody"), {}, "", at(hostOf("nobody")))).status).toBe(404);
  await expect(fleet(["proxy", "caddy", "--tls", "files"], { PVE_URL_PATTERN: "{service}.{id}" })).rejects.toThrow(
    "a wildcard stands for one label",
  );
});

test("exposed, a service answers at once; hidden, no more; and it gets what was sent, without the gate's own things", async () => {
  const plain = await ask(hostOf("open"));
  expect(plain.status).toBe(200);
  for (const name of ["cookie", "authorization", "x-api-key", "x-fleet-upstream", "x-fleet-mark"])
    expect(seen(plain).headers).not.toHaveProperty(name);
  const sent = await ask(hostOf("open"), {
    method: "PUT",
    path: "/a%2Fb?c=%20",
    body: "x".repeat(500_000),
    headers: { cookie: `${LINK_COOKIE}=x; theirs=1`, authorization: "Basic theirs", "x-forwarded-for": "6.6.6.6" },
  });
  const { method, url, body, headers } = seen(sent);
  expect([method, url, body.length]).toEqual(["PUT", "/a%2Fb?c=%20", 500_000]);
  expect(headers).toMatchObject({ cookie: "theirs=1", authorization: "Basic theirs", "x-forwarded-for": "127.0.0.1" });
  const first = await ask(hostOf("open"), { headers: { accept: "text/html" } });
  expect(first.headers["clear-site-data"]).toBe('"cache", "storage"');
  expect(first.headers["set-cookie"]?.[0]).toMatch(/^__Host-fleet_sandbox=/);

  await run(bed.fleet, "expose", { sandboxId: box.sandboxId, name: "late", port: PORT, auth: "none" });
  expect((await ask(hostOf("late"))).status).toBe(200);
  await run(bed.fleet, "hide", { sandboxId: box.sandboxId, name: "late" });
  await expectHidden(() => ask(hostOf("late")));
});

test("a link opens it; nobody else gets in, nor to anything else", async () => {
  const { url } = await run(bed.fleet, "link", { sandboxId: box.sandboxId, name: "linked" });
  const { pathname, search } = new URL(url);
  const opened = await ask(hostOf("linked"), { path: pathname + search });
  const [cookie = ""] = opened.headers["set-cookie"] ?? [];
  expect(opened.status).toBe(302);
  const mine = { cookie: cookie.split(";")[0] ?? "" };
  expect((await ask(hostOf("linked"), { headers: mine })).status).toBe(200);

  const redis = new URL(bed.env["REDIS_URL"] ?? "").host;
  const forged: Record<string, string>[] = [
    { "x-fleet-upstream": redis },
    { "x-fleet-upstream": `${box.address}:${PORT}` },
    { "X-FLEET-UPSTREAM": redis, "x-fleet-proxy-secret": SECRET },
    { "x-fleet-proxy-secret": SECRET, "x-forwarded-uri": "/", "x-forwarded-host": hostOf("open") },
    { "x-forwarded-host": hostOf("open"), "x-forwarded-method": "GET" },
    { connection: "x-fleet-proxy-secret, cookie", "x-original-host": hostOf("open") },
  ];
  for (const headers of forged) {
    expect([headers, (await ask(hostOf("linked"), { headers })).status]).toEqual([headers, 401]);
    const open = await ask(hostOf("open"), { headers });
    expect([open.status, Object.keys(seen(open).headers).filter((name) => name.startsWith("x-fleet"))]).toEqual([
      200,
      [],
    ]);
  }
  // The name of the certificate is no pass for another host.
  const hosts = [
    "evil.example",
    DOMAIN,
    "127.0.0.1",
    `x.${hostOf("open")}`,
    `${hostOf("linked")}:1`,
    "open-1.sandbox.test",
  ];
  for (const host of hosts) {
    const reply = await ask(host, {}, hostOf("open"));
    expect([host, reply.text.includes('"method"')]).toEqual([host, false]);
  }
});

test("a connection is upgraded, and ends with its service", async () => {
  await run(bed.fleet, "expose", { sandboxId: box.sandboxId, name: "ws", port: PORT, auth: "none" });
  const socket = connectTls(target(hostOf("ws")));
  socket.write(`GET /ws HTTP/1.1\r\nhost: ${hostOf("ws")}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n`);
  expect(String((await once(socket, "data"))[0])).toMatch(/^HTTP\/1\.1 101 /);
  socket.write("hello");
  expect(String((await once(socket, "data"))[0])).toBe("hello");
  const closed = once(socket, "close");
  socket.on("error", () => {});
  socket.resume();
  await run(bed.fleet, "hide", { sandboxId: box.sandboxId, name: "ws" });
  await closed;
});

test("a stopped sandbox wakes, and the body that was on its way comes whole", async () => {
  await run(bed.fleet, "power", { sandboxId: box.sandboxId, action: "stop" });
  const body = "y".repeat(1_000_000);
  const reply = await ask(hostOf("open"), { method: "POST", body });
  expect([reply.status, seen(reply).body === body]).toEqual([200, true]);
});

test("on demand, an ACME authority certifies a host that is exposed, once it has looked there, and no other", async () => {
  const [port, httpPort] = [await freePort(), await freePort()];
  await using dnsmasq = await startDnsmasq({ [DOMAIN]: "127.0.0.1" });
  await using pebble = await startPebble({ dns: dnsmasq.server, tlsPort: port, httpPort });
  const { directory, caFile } = pebble;
  const text = await fleet(["proxy", "caddy", "--tls", "on-demand", "--gate", new URL(gate.url).host]);
  const global = `\thttp_port ${httpPort}\n\tacme_ca ${directory}\n\tacme_ca_root ${caFile}\n`;
  await using _ = await startCaddy(text, SECRET, { port, global });
  const ca = await pebble.root();
  const at = (servername: string) => ({ host: "127.0.0.1", port, servername, ca });
  expect((await ask(hostOf("open"), {}, "", at(hostOf("open")))).status).toBe(200);
  await run(bed.fleet, "hide", { sandboxId: box.sandboxId, name: "open" });
  expect((await ask(hostOf("open"), {}, "", at(hostOf("open")))).status).toBe(404);
  for (const host of [hostOf("nobody"), "open-1.sandbox.test", `x.${hostOf("linked")}`])
    await expect(ask(host, {}, "", at(host))).rejects.toThrow(/alert internal error|tlsv1 alert/);
  await run(bed.fleet, "expose", { sandboxId: box.sandboxId, name: "open", port: PORT, auth: "none" });
});

describe("--check", () => {
  const check = async (host: string, { port, caFile }: Caddy) => {
    const words = ["--host", host, "--at", `127.0.0.1:${port}`, "--ca", caFile, "--json"];
    const { code, out } = await command({ PVE_PUBLIC_DOMAIN: DOMAIN }, "proxy", "caddy", "--check", ...words);
    const findings = z.array(z.object({ check: z.string(), ok: z.boolean(), text: z.string() })).parse(JSON.parse(out));
    return { code, problems: findings.filter(({ ok }) => !ok), checks: findings.map(({ check: name }) => name) };
  };
  const problem = (name: string, text: string) => ({
    code: 1,
    problems: [expect.objectContaining({ check: name, text: expect.stringContaining(text) })],
  });
  const fine = { code: 0, problems: [], checks: ["certificate", "gate", "forged headers"] };

  test("finds nothing wrong with what is printed, and says what is elsewhere", async () => {
    const [open, linked, nobody] = await Promise.all(
      ["open", "linked", "nobody"].map((name) => check(hostOf(name), caddy)),
    );
    expect([open, linked]).toEqual([fine, fine]);
    expect(nobody).toMatchObject(problem("certificate", "no valid certificate"));
  });

  test("of a gate that forwards itself, behind a proxy that only speaks HTTPS for it", async () => {
    const { host } = new URL(gate.url);
    const site = (name: string, how: string) => `${name} {\n\ttls internal\n\t${how}\n}\n`;
    await using plain = await startCaddy(
      [
        "#\n{\n}\n",
        site(`*.${DOMAIN}`, `reverse_proxy ${host}`),
        site(hostOf("rewritten"), `reverse_proxy ${host} {\n\t\theader_up Host {upstream_hostport}\n\t}`),
        site(hostOf("down"), "reverse_proxy 127.0.0.1:9"),
        site(hostOf("unknown"), `reverse_proxy ${host} {\n\t\theader_up X-Fleet-Proxy-Secret another\n\t}`),
      ].join(""),
      SECRET,
    );
    const names = ["open", "linked", "nobody", "rewritten", "down", "unknown"];
    // Certificates that nobody asked for are made when Caddy listens already.
    const certified = (name: string) =>
      until(async () => {
        const found = await check(hostOf(name), plain);
        return found.problems.some((one) => one.check === "certificate") ? null : found;
      }, `the certificate of ${name}`);
    const [open, linked, nobody, rewritten, down, unknown] = await Promise.all(names.map(certified));
    expect([open, linked]).toEqual([fine, fine]);
    expect(nobody).toMatchObject(problem("gate", "the gate knows no service at"));
    expect(rewritten).toMatchObject(problem("gate", "must leave the Host header as it is"));
    expect(down).toMatchObject(problem("gate", "does not reach the gate"));
    expect(unknown).toMatchObject(problem("gate", "give both the same GATE_PROXY_SECRET"));
  });
});
