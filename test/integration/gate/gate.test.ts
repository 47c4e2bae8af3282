/** The gate in front of real services of sandboxes: who gets in, what is hidden, what never goes through. */
import { once } from "node:events";
import { connect } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { LINK_COOKIE, LINK_PARAMETER } from "../../../shared/links.ts";
import { parseApiKey } from "../../../shared/state/api-keys.ts";
import type { WorkerContext } from "../../../workers/context.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { command } from "../command.ts";
import { dump } from "../fleet/dump.ts";
import { type Bed, failure, provisionOne, run, startBed, until } from "../fleet/harness.ts";
import { type Asked, askGate, expectHidden, seen, startEcho, upgradeAt } from "./rig.ts";

const DOMAIN = "sandbox.test";
const PORT = 8_000;

let bed: Bed;
let gate: Gate;
let sandboxId: string;
let vmid: number;
let guest: AsyncDisposable;
let context: WorkerContext;
let hostOf: (service: string) => string;

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: {
      PVE_PUBLIC_DOMAIN: DOMAIN,
      GATE_PORT: "0",
      GATE_PROXY_SECRET: "p".repeat(32),
      GATE_APP_ORIGINS: "https://app.example",
      GATE_TRUSTED_PROXIES: "127.0.0.8/31",
    },
  });
  ({ context } = await bed.startWorkers({ FLEET_ROLES: "gate", REDIS_URL: bed.redisServer.urlFor("gate") }));
  gate = await startGate(context);
  const sandbox = await provisionOne(bed.fleet, {
    services: [
      { name: "open", port: PORT, auth: "none" },
      { name: "linked", port: PORT },
      { name: "keyed", port: PORT, auth: "api_key" },
    ],
  });
  ({ sandboxId, vmid } = sandbox);
  hostOf = (service) => `${service}-${vmid}.${DOMAIN}`;
  guest = await startEcho(sandbox.address, PORT);
});
afterAll(async () => {
  await guest?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await bed?.close();
});

const ask = (host: string, asked: Asked = {}) => askGate(gate, host, asked);
const upgrade = (host: string, headers: Record<string, string>) => upgradeAt(gate, host, headers);

/** Exchanges a link for its cookie, as a browser does. */
async function openLink(service = "linked"): Promise<string> {
  const { url } = await run(bed.fleet, "link", { sandboxId, name: service, path: "/start?a=1" });
  const { pathname, search } = new URL(url);
  const reply = await ask(hostOf(service), { path: pathname + search });
  expect([reply.status, reply.headers.location]).toEqual([302, "/start?a=1"]);
  const [cookie = ""] = reply.headers["set-cookie"] ?? [];
  expect(cookie).toMatch(/; Path=\/; Max-Age=8\d{4}; Secure; HttpOnly; SameSite=None; Partitioned$/);
  return cookie.split(";")[0] ?? "";
}

async function newKey(team?: string): Promise<{ id: string; text: string; revoke: () => Promise<void> }> {
  const { id, key: text } = await bed.fleet.keys.create({ name: "test", team });
  return { id, text, revoke: () => bed.fleet.keys.revoke(id) };
}

test("what it decides is counted", async () => {
  const count = async (outcome: string) => {
    const text = await context.metrics.registry.metrics();
    return Number(new RegExp(`^fleet_gate_requests_total\\{outcome="${outcome}"\\} (\\d+)$`, "m").exec(text)?.[1] ?? 0);
  };
  const before = [await count("forward"), await count("refused")] as const;
  await ask(hostOf("open"));
  await ask(hostOf("linked"));
  expect([await count("forward"), await count("refused")]).toEqual([before[0] + 1, before[1] + 1]);
});

describe("who may pass, passes", () => {
  test("an open service gets method, path, body and host as they were sent", async () => {
    const reply = await ask(hostOf("open"), {
      method: "PUT",
      path: "/a/b?c=%2F",
      body: "x".repeat(100_000),
      headers: { "x-forwarded-for": "6.6.6.6" },
    });
    expect(reply.status).toBe(200);
    const { method, url, headers, body } = seen(reply);
    expect([method, url, body.length, headers["host"]]).toEqual(["PUT", "/a/b?c=%2F", 100_000, hostOf("open")]);
    expect(headers["x-forwarded-for"]).toBe("127.0.0.1"); // never what the client says
  });

  test("with a link: once as a link, then by its cookie, which the service never sees", async () => {
    const cookie = await openLink();
    const reply = await ask(hostOf("linked"), {
      path: "/start?a=1",
      headers: { cookie: `theirs=1; ${cookie}; more=2` },
    });
    expect(seen(reply)).toMatchObject({ url: "/start?a=1", headers: { cookie: "theirs=1; more=2" } });
    expect(reply.text).not.toContain(LINK_COOKIE);
  });

  test("with an API key of the sandbox's team, as bearer or header, until it is revoked", async () => {
    const key = await newKey();
    const bearer = await ask(hostOf("keyed"), { headers: { authorization: `Bearer ${key.text}` } });
    const header = await ask(hostOf("keyed"), { headers: { "x-api-key": key.text, authorization: "Basic theirs" } });
    expect([bearer.status, header.status]).toEqual([200, 200]);
    expect(seen(bearer).headers).not.toHaveProperty("authorization");
    expect(seen(header).headers).toMatchObject({ authorization: "Basic theirs" });
    expect(bearer.text + header.text).not.toContain("fleet_");
    await key.revoke();
    await until(
      async () => (await ask(hostOf("keyed"), { headers: { authorization: `Bearer ${key.text}` } })).status === 403,
      "the revocation",
    );
  });

  test("a connection is upgraded, and ends with its service", async () => {
    const cookie = await openLink();
    const upgraded = await upgrade(hostOf("linked"), { cookie, origin: `https://${hostOf("linked")}` });
    expect(upgraded.status).toBe(101);
    upgraded.socket.write("hello");
    expect(String((await once(upgraded.socket, "data"))[0])).toBe("hello");
    const closed = once(upgraded.socket, "close");
    upgraded.socket.resume();
    await run(bed.fleet, "hide", { sandboxId, name: "linked" });
    await closed;
    await run(bed.fleet, "expose", { sandboxId, name: "linked", port: PORT });
    // Exposed again it is another: what opened the first opens it no more.
    expect((await ask(hostOf("linked"), { headers: { cookie } })).status).toBe(403);
  });
});

test("what is hidden or destroyed answers no more, on a connection that is kept as well; what is exposed answers at once", async () => {
  const { port, hostname } = new URL(gate.url);
  const socket = connect(Number(port), hostname);
  const over = async (host: string) => {
    socket.write(`GET / HTTP/1.1\r\nhost: ${host}\r\n\r\n`);
    return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(String((await once(socket, "data"))[0]))?.[1]) };
  };
  const late = hostOf("late");
  expect((await ask(late)).status).toBe(404);
  await run(bed.fleet, "expose", { sandboxId, name: "late", port: PORT, auth: "none", waitUntilReady: "http" });
  expect(await over(late)).toEqual({ status: 200 });
  await run(bed.fleet, "hide", { sandboxId, name: "late" });
  await expectHidden(() => over(late));
  expect((await ask(late)).status).toBe(404);

  const brief = await provisionOne(bed.fleet, { services: [{ name: "open", port: PORT, auth: "none" }] });
  await using _ = await startEcho(brief.address, PORT);
  const host = `open-${brief.vmid}.${DOMAIN}`;
  expect(await over(host)).toEqual({ status: 200 });
  await run(bed.fleet, "destroy", { sandboxId: brief.sandboxId });
  await expectHidden(() => over(host));
  socket.destroy();
});

test("a service that never answers is not exposed", async () => {
  const exposed = bed.fleet.expose({
    sandboxId,
    name: "dead",
    port: 9,
    auth: "none",
    waitUntilReady: "tcp",
    readyTimeoutMs: 300,
  });
  await expect((await exposed).result()).rejects.toMatchObject({ code: "not_ready", facts: { port: 9 } });
  expect((await bed.fleet.sandboxes.get(sandboxId)).services.map(({ name }) => name)).not.toContain("dead");
});

describe("the commands for it", () => {
  const fleet = (...words: string[]) => command({ ...bed.env, FLEET_TEAM: "default" }, ...words);
  const knock = async (key: string) =>
    (await ask(hostOf("keyed"), { headers: { authorization: `Bearer ${key}` } })).status;

  test("keys: shown once, kept as hashes, several, each taken back at once", async () => {
    const [first = "", second = ""] = await Promise.all(
      ["ci", "cron"].map(async (name) => (await fleet("keys", "create", name, "--for", "1h")).out.trim()),
    );
    expect([await knock(first), await knock(second)]).toEqual([200, 200]);
    const ls = await fleet("keys", "ls");
    expect(ls.out).toMatch(/^KEY +NAME +TEAM +MADE +ENDS\n/);
    for (const key of [first, second]) {
      const { secret = "" } = parseApiKey(key) ?? {};
      expect(secret).toHaveLength(43);
      expect(ls.out).not.toContain(secret);
      expect(await dump(bed.redis)).not.toContain(secret);
    }
    const { id } = JSON.parse((await fleet("keys", "create", "third", "--json")).out);
    const idOf = (key: string) => parseApiKey(key)?.id ?? "";
    expect((await fleet("keys", "revoke", idOf(first))).code).toBe(0);
    await until(async () => (await knock(first)) === 403, "the gate to hear of it", 1_000);
    expect(await knock(second)).toBe(200);
    expect(await fleet("keys", "revoke", idOf(first))).toMatchObject({
      code: 1,
      err: expect.stringContaining("key_not_found"),
    });
    // Another team's are out of sight and reach.
    const red = bed.client({ team: "red" });
    expect(await red.keys.list()).toEqual([]);
    await failure(red.keys.revoke(id), "key_not_found");
    await failure(red.keys.create({ name: "x", team: "default" }), "forbidden");
    expect((await failure(red.keys.create({ name: " " }), "invalid_input")).facts).toEqual({ fields: ["name"] });
  });

  test("a key ends by its time", async () => {
    const { id, key } = await bed.fleet.keys.create({ name: "short", ttlSeconds: 10 });
    expect(await knock(key)).toBe(200);
    const record = JSON.parse((await bed.redis.hget(bed.keys.apiKeys, id)) ?? "");
    await bed.redis.hset(bed.keys.apiKeys, id, JSON.stringify({ ...record, expiresAt: Date.now() }));
    await bed.redis.publish(bed.keys.wake, `key ${id}`); // as when its time had come with nobody asking
    await until(async () => (await knock(key)) === 403, "its end", 1_000);
  });

  test("expose --auth, and link for as long as was asked", async () => {
    expect((await fleet("expose", sandboxId, "app", String(PORT), "--auth", "link", "--ready", "http")).code).toBe(0);
    const made = await fleet("link", sandboxId, "app", "--for", "1h", "--path", "/x?y=1");
    const { host, pathname, search } = new URL(made.out.trim());
    const opened = await ask(host, { path: pathname + search });
    expect([opened.status, opened.headers.location]).toEqual([302, "/x?y=1"]);
    expect(opened.headers["set-cookie"]?.[0]).toMatch(/; Max-Age=3(600|59\d);/);
    expect(await fleet("link", sandboxId, "keyed")).toMatchObject({ code: 1, err: expect.stringContaining("api_key") });
  });
});

test("a proxy that shows the secret is told where to go on, and nobody else", async () => {
  const decide = (secret: string, cookie: string) =>
    ask(hostOf("open"), {
      headers: { "x-fleet-proxy-secret": secret, "x-forwarded-method": "POST", "x-forwarded-uri": "/a", cookie },
    });
  const told = await decide("p".repeat(32), `${LINK_COOKIE}=x; theirs=1`);
  const upstream = expect.stringMatching(/^127\.[\d.]+:8000$/);
  expect([told.status, told.headers]).toEqual([
    200,
    // Without a length, Caddy would make a connection for each question.
    {
      "x-fleet-upstream": upstream,
      "x-fleet-epoch": expect.stringMatching(/^[0-9a-f]{12}$/),
      "x-fleet-more": "1",
      "x-fleet-cookie": "theirs=1",
      "x-fleet-authorization": "",
      "x-fleet-api-key": "",
      "x-fleet-mark": expect.stringMatching(/^__Host-fleet_sandbox=/),
      "content-length": "0",
      connection: "close", // as this client asks
    },
  ]);
  expect((await decide("p".repeat(32), "theirs=1")).headers).toEqual({
    "x-fleet-upstream": upstream,
    "x-fleet-epoch": expect.any(String),
    "content-length": "0",
    connection: "close",
  });
  const refused = await decide("q".repeat(32), "theirs=1");
  expect(refused.headers).not.toHaveProperty("x-fleet-upstream");
  expect([refused.status, (await decide("", "theirs=1")).status]).toEqual([403, 403]);
});

test("a body that was asked about and is not wanted ends its connection", async () => {
  const reply = await ask(hostOf("linked"), { method: "POST", body: "x", headers: { expect: "100-continue" } });
  expect([reply.status, reply.headers.connection]).toEqual([401, "close"]);
});

test("certificates are for hosts of exposed services only", async () => {
  const { host } = new URL(gate.url);
  const asked = async (domain: string) =>
    (await ask(host, { path: `/ask?domain=${encodeURIComponent(domain)}`, from: "127.0.0.9" })).status;
  expect(await asked(hostOf("open"))).toBe(200);
  for (const domain of [hostOf("none"), DOMAIN, `x.${hostOf("open")}`, "", "127.0.0.1", `${hostOf("open")}.`])
    expect([domain, await asked(domain)]).toEqual([domain, 404]);
  expect((await ask(host, { path: `/ask?domain=${hostOf("open")}`, from: "127.0.0.7" })).status).toBe(403);
  // A proxy that asks about many unknown ones is told so; what is exposed gets its certificate all the same.
  let unknown = 0;
  while (unknown < 700 && (await asked(`x-${++unknown}.${DOMAIN}`)) === 404);
  expect([unknown > 500, await asked(`y.${DOMAIN}`), await asked(hostOf("open"))]).toEqual([true, 429, 200]);
});

test("a browser's first response from a service clears what another left there, once; the service does not see it", async () => {
  const page = { accept: "text/html", "sec-fetch-dest": "document" };
  const first = await ask(hostOf("open"), { headers: page });
  expect(first.headers["clear-site-data"]).toBe('"cache", "storage"');
  const [mark = ""] = first.headers["set-cookie"] ?? [];
  expect(mark).toMatch(
    /^__Host-fleet_sandbox=[0-9a-f]{12}; Path=\/; Max-Age=\d+; Secure; HttpOnly; SameSite=None; Partitioned$/,
  );
  const [cookie = ""] = mark.split(";");
  const second = await ask(hostOf("open"), { headers: { ...page, cookie: `${cookie}; theirs=1` } });
  expect(second.headers).not.toHaveProperty("clear-site-data");
  expect(seen(second).headers["cookie"]).toBe("theirs=1");
  expect((await ask(hostOf("open"))).headers).not.toHaveProperty("clear-site-data");
  // Of another service's mark it does not take note.
  const other = await ask(hostOf("open"), { headers: { ...page, cookie: "__Host-fleet_sandbox=000000000000" } });
  expect(other.headers).toHaveProperty("clear-site-data");
});

test("a service that can't be connected is looked for where its sandbox is by now, and the body comes whole", async () => {
  const sandbox = await provisionOne(bed.fleet, { services: [{ name: "open", port: PORT, auth: "none" }] });
  await using _ = await startEcho(sandbox.address, PORT);
  const host = `open-${sandbox.vmid}.${DOMAIN}`;
  // As if it had taken another address since: the record has the one that nobody listens on.
  const before = "127.93.0.1";
  await bed.redis.hset(bed.keys.sandbox(sandbox.sandboxId), "address", before);
  await bed.redis.hset(bed.keys.addresses, before, sandbox.sandboxId);
  const reply = await ask(host, { method: "POST", body: "x".repeat(1_000_000) });
  expect([reply.status, seen(reply).body.length]).toEqual([200, 1_000_000]);
  expect(await bed.redis.hget(bed.keys.addresses, before)).toBeNull();
  expect((await bed.fleet.sandboxes.get(sandbox.sandboxId)).address).toBe(sandbox.address);
  await run(bed.fleet, "destroy", { sandboxId: sandbox.sandboxId });
});

describe("what is hostile is refused with a clear status", () => {
  const HOSTS: [string, number][] = [
    ["unknown-@.sandbox.test", 400],
    ["open-1.sandbox.test", 404],
    ["sandbox.test", 404],
    ["open-@VMID", 404],
    ["open-@VMID.sandbox.test.", 400],
    ["open-@VMID.sandbox.test:99999", 400],
    ["open-@VMID.sandbox.test:x", 400],
    ["open-@VMID.sandbox.test.evil.example", 404],
    ["evil.example", 404],
    ["x.open-@VMID.sandbox.test", 404],
    ["open-0@VMID.sandbox.test", 404],
    ["open-@VMID.sandbox.test@evil.example", 400],
    ["öpen-@VMID.sandbox.test", 400],
    ["xn--pen-rna-@VMID.sandbox.test", 404],
    ["open--@VMID.sandbox.test", 404],
    ["-@VMID.sandbox.test", 400],
    ["open-@VMID.sandbox.test,evil.example", 400],
    ["open-@VMID.sandbox.test evil", 400],
    ["open-@VMID.sandbox.test/..", 400],
    ["open-@VMID.sandbox.test%00", 400],
    ["[::1]", 400],
    ["127.0.0.1", 400],
    ["localhost", 404],
    ["exec-@VMID.sandbox.test", 404],
    [`open-${"9".repeat(400)}.sandbox.test`, 400],
    [`${"a".repeat(64)}.sandbox.test`, 400],
    ["open-@VMID.sandbox.test:80:80", 400],
    ["open-@VMID.sandbox.test:0", 400],
    ["open-@VMID..sandbox.test", 400],
    ["open_@VMID.sandbox.test", 400],
    ["*.sandbox.test", 400],
    ["open-@VMID.sandbox.test#", 400],
    ["user:pass@open-@VMID.sandbox.test", 400],
    ["[::ffff:127.0.0.1]:6379", 400],
    ["2130706433", 400],
    ["0x7f000001", 404],
    ["open-@VMID.sandbox.tes", 404],
    ["open-@VMID-sandbox.test", 404],
  ];
  test.each(HOSTS)("host %s: %i", async (host, status) => {
    const reply = await rawAsk(host.replace("@VMID", String(vmid)));
    expect(reply).toBe(status);
  });

  /** As bytes, since a client library would refuse some of it itself. */
  async function rawAsk(host: string, head = "GET / HTTP/1.1"): Promise<number> {
    const { hostname, port } = new URL(gate.url);
    const socket = connect(Number(port), hostname);
    socket.on("error", () => {});
    socket.write(Buffer.from(`${head}\r\nhost: ${host}\r\nconnection: close\r\n\r\n`, "latin1"));
    const [data] = await once(socket, "data");
    socket.destroy();
    return Number(/^HTTP\/1\.1 (\d+)/.exec(String(data))?.[1]);
  }

  test.each([
    ["two hosts", (host: string) => `GET / HTTP/1.1\r\nhost: ${host}\r\nhost: evil.example\r\n\r\n`],
    ["no host", () => "GET / HTTP/1.1\r\n\r\n"],
    [
      "a length twice",
      (host: string) => `POST / HTTP/1.1\r\nhost: ${host}\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx`,
    ],
    [
      "length and chunks",
      (host: string) =>
        `POST / HTTP/1.1\r\nhost: ${host}\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`,
    ],
    [
      "an unknown encoding",
      (host: string) => `POST / HTTP/1.1\r\nhost: ${host}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n`,
    ],
    ["a folded header", (host: string) => `GET / HTTP/1.1\r\nhost: ${host}\r\nx: a\r\n b\r\n\r\n`],
    [
      "a blank before the colon",
      (host: string) => `GET / HTTP/1.1\r\nhost: ${host}\r\ntransfer-encoding : chunked\r\n\r\n`,
    ],
    ["a bare newline", (host: string) => `GET / HTTP/1.1\nhost: ${host}\n\n`],
    ["a NUL", (host: string) => `GET / HTTP/1.1\r\nhost: ${host}\r\nx: a\0b\r\n\r\n`],
    ["huge headers", (host: string) => `GET / HTTP/1.1\r\nhost: ${host}\r\nx: ${"a".repeat(70_000)}\r\n\r\n`],
    [
      "another host's address as target",
      (host: string) => `GET http://evil.example/ HTTP/1.1\r\nhost: ${host}\r\n\r\n`,
    ],
    ["a tunnel", (host: string) => `CONNECT evil.example:80 HTTP/1.1\r\nhost: ${host}\r\n\r\n`],
    ["an authority as target", (host: string) => `GET //evil.example:1/%0d%0a HTTP/1.9\r\nhost: ${host}\r\n\r\n`],
  ])("%s", async (_, message) => {
    const { hostname, port } = new URL(gate.url);
    const socket = connect(Number(port), hostname);
    socket.on("error", () => {});
    socket.write(Buffer.from(message(hostOf("open")), "latin1"));
    const text = await new Promise<string>((resolve) => {
      let all = "";
      socket.on("data", (data) => {
        all += data;
      });
      socket.on("close", () => resolve(all));
      socket.setTimeout(500, () => socket.destroy());
    });
    expect(text === "" || /^HTTP\/1\.1 4\d\d /.test(text), text).toBe(true);
    expect(text).not.toContain('"method"'); // nothing reached the service
  });

  const LINKED: [string, Parameters<typeof ask>[1], number][] = [
    ["no credentials", {}, 401],
    ["an empty token", { path: `/?${LINK_PARAMETER}=` }, 403],
    ["a made-up token", { path: `/?${LINK_PARAMETER}=zzzzzz.${"A".repeat(43)}` }, 403],
    ["two tokens", { path: `/?${LINK_PARAMETER}=a&${LINK_PARAMETER}=b` }, 403],
    ["a token in a POST", { method: "POST", path: `/?${LINK_PARAMETER}=zzzzzz.${"A".repeat(43)}` }, 401],
    ["a made-up cookie", { headers: { cookie: `${LINK_COOKIE}=zzzzzz.${"A".repeat(43)}` } }, 403],
    ["a cookie of another name", { headers: { cookie: "fleet_link=x" } }, 401],
    ["an API key's form", { headers: { authorization: `Bearer fleet_${"0".repeat(12)}_${"A".repeat(43)}` } }, 401],
    [
      "the upstream named by the client",
      { headers: { "x-fleet-upstream": "127.0.0.1:6379", "x-forwarded-host": "open" } },
      401,
    ],
    ["a bearer that is a link", { headers: { authorization: `Bearer zzzzzz.${"A".repeat(43)}` } }, 401],
    ["a link's token as another parameter", { path: `/?x${LINK_PARAMETER}=zzzzzz.${"A".repeat(43)}` }, 401],
    ["an encoded name of the parameter", { path: `/?fleet%5flink=zzzzzz.${"A".repeat(43)}` }, 401],
    ["a token with a path in it", { path: `/?${LINK_PARAMETER}=../../x` }, 403],
    ["an expired token of no key", { path: `/?${LINK_PARAMETER}=1.${"A".repeat(43)}` }, 403],
    ["a cookie without a value", { headers: { cookie: `${LINK_COOKIE}=` } }, 403],
    ["a proxy's words without its secret", { headers: { "x-forwarded-uri": "/", "x-forwarded-method": "GET" } }, 401],
    ["the proxy's secret in part", { headers: { "x-fleet-proxy-secret": "p".repeat(31) } }, 403],
    ["the mark alone", { headers: { cookie: "__Host-fleet_sandbox=x" } }, 401],
    ["a blank in the path", { path: "/%20", headers: { cookie: `a=${LINK_COOKIE}` } }, 401],
  ];
  test.each(LINKED)("a linked service, %s", async (_, request, status) => {
    expect((await ask(hostOf("linked"), request)).status).toBe(status);
  });

  test("a link or cookie of one service is none of another, nor the one the other", async () => {
    await run(bed.fleet, "expose", { sandboxId, name: "second", port: PORT });
    const cookie = await openLink();
    expect((await ask(hostOf("second"), { headers: { cookie } })).status).toBe(403);
    const { url } = await run(bed.fleet, "link", { sandboxId, name: "linked" });
    const token = new URL(url).searchParams.get(LINK_PARAMETER) ?? "";
    expect((await ask(hostOf("second"), { path: `/?${LINK_PARAMETER}=${token}` })).status).toBe(403);
    expect((await ask(hostOf("linked"), { headers: { cookie: `${LINK_COOKIE}=${token}` } })).status).toBe(403);
    const value = cookie.slice(LINK_COOKIE.length + 1);
    expect((await ask(hostOf("linked"), { path: `/?${LINK_PARAMETER}=${value}` })).status).toBe(403);
    // The cookie twice: somebody planted one.
    expect((await ask(hostOf("linked"), { headers: { cookie: `${cookie}; ${cookie}` } })).status).toBe(401);
  });

  test("pages of sibling sandboxes can't act with a visitor's cookie", async () => {
    const cookie = await openLink();
    const post = (origin?: string) =>
      ask(hostOf("linked"), { method: "POST", headers: { cookie, ...(origin === undefined ? {} : { origin }) } });
    for (const origin of [
      undefined,
      "null",
      `https://${hostOf("open")}`,
      `http://${hostOf("linked")}`,
      "https://app.example.evil",
      `https://${hostOf("linked")}:444`,
    ])
      expect([origin, (await post(origin)).status]).toEqual([origin, 403]);
    expect((await post(`https://${hostOf("linked")}`)).status).toBe(200);
    expect((await post("https://app.example")).status).toBe(200);
    expect((await upgrade(hostOf("linked"), { cookie, origin: `https://${hostOf("open")}` })).status).toBe(403);
    expect((await upgrade(hostOf("linked"), { cookie })).status).toBe(403);
  });

  test("who is wrong too often waits, by its own address behind a proxy, and nobody else does", async () => {
    const guess = (client: string, from = "127.0.0.9") =>
      ask(hostOf("linked"), { from, headers: { cookie: `${LINK_COOKIE}=x`, "x-forwarded-for": client } });
    const guesses = await Promise.all(Array.from({ length: 60 }, () => guess("6.6.6.6, 192.0.2.1, 127.0.0.8")));
    expect(guesses.map(({ status }) => status)).toEqual(guesses.map(() => 403));
    const limited = await guess("7.7.7.7, 192.0.2.1");
    expect([limited.status, limited.headers["retry-after"]]).toEqual([429, "60"]);
    expect((await guess("192.0.2.2")).status).toBe(403);
    // Nor does one who is no proxy choose whose turn is used up.
    expect((await guess("192.0.2.1", "127.0.0.7")).status).toBe(403);
  });

  test("keys: another team's, a wrong secret, an unknown one", async () => {
    const [key, theirs] = [await newKey(), await newKey("others")];
    const wrong = `${key.text.slice(0, -2)}${key.text.endsWith("AA") ? "BB" : "AA"}`;
    for (const text of [theirs.text, wrong, `fleet_${"0".repeat(12)}_${"A".repeat(43)}`])
      expect((await ask(hostOf("keyed"), { headers: { authorization: `Bearer ${text}` } })).status).toBe(403);
    for (const authorization of ["Bearer", "Bearer x", `Basic ${key.text}`, key.text])
      expect((await ask(hostOf("keyed"), { headers: { authorization } })).status).toBe(401);
  });

  test("an address that is none of a sandbox's is not connected to, whatever the records say", async () => {
    const { sandboxId: id, vmid: own, address } = await provisionOne(bed.fleet);
    // As if the record had been talked into it: here that is Redis' and the gate's, as is what is claimed.
    await bed.redis.hset(bed.keys.sandbox(id), "address", "127.0.0.1");
    for (const claim of ["hset", "hdel"] as const) {
      if (claim === "hset") await bed.redis.hset(bed.keys.addresses, "127.0.0.1", id);
      else await bed.redis.hdel(bed.keys.addresses, "127.0.0.1");
      await run(bed.fleet, "expose", { sandboxId: id, name: claim, port: PORT, auth: "none" });
      expect([claim, (await ask(`${claim}-${own}.${DOMAIN}`)).status]).toEqual([claim, 503]);
    }
    await bed.redis.hset(bed.keys.sandbox(id), "address", address);
    await run(bed.fleet, "destroy", { sandboxId: id });
    await until(async () => (await ask(`hset-${own}.${DOMAIN}`)).status === 404, "the 404");
  });

  test("a guest that gives itself Redis', the gate's or a neighbour's address gets nothing", async () => {
    const port = Number(new URL(bed.redisServer.urlFor("gate")).port);
    const thief = await provisionOne(bed.fleet, { services: [{ name: "redis", port, auth: "none" }] });
    const { address: neighbours = "" } = await bed.fleet.sandboxes.get(sandboxId);
    bed.pve.faults.takeAddresses(thief.vmid, ["127.0.0.1", neighbours]);
    const claims = () => bed.redis.hmget(bed.keys.addresses, "127.0.0.1", neighbours);
    // Nothing answers at its own any more, so that the gate reads anew where it is.
    expect((await ask(`redis-${thief.vmid}.${DOMAIN}`)).status).toBe(502);
    expect(await claims()).toEqual([null, sandboxId]);
    await run(bed.fleet, "power", { sandboxId: thief.sandboxId, action: "stop" });
    await failure(run(bed.fleet, "power", { sandboxId: thief.sandboxId, action: "start" }), "address_refused");
    expect(await claims()).toEqual([null, sandboxId]);
    expect((await ask(`redis-${thief.vmid}.${DOMAIN}`)).text).not.toContain("-ERR");
    await run(bed.fleet, "destroy", { sandboxId: thief.sandboxId });
  });
});
