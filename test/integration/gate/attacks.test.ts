/**
 * Attacks as bytes, on the gate alone and on Caddy with the printed configuration in front of it: on how requests are told apart,
 * on whose word counts, and by services that answer what they like. Nothing reaches what is not exposed.
 */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import { connect, createServer as createRawServer, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { toProxyConfig } from "../../../producers/cli/proxy-configs.ts";
import { DEFAULT_URL_PATTERN } from "../../../shared/config-gate.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { type Caddy, startCaddy } from "../../caddy.ts";
import { type Bed, provisionOne, run, startBed } from "../fleet/harness.ts";
import { connectH2, type Field, type RawH2 } from "./raw-h2.ts";

const DOMAIN = "sandbox.test";
const SECRET = "s".repeat(40);
const PORT = 8_000;
const EVIL_PORT = 8_001;

let bed: Bed;
let gate: Gate;
let caddy: Caddy;
let box: Awaited<ReturnType<typeof provisionOne>>;
let witness: Awaited<ReturnType<typeof startWitness>>;
let evil: Awaited<ReturnType<typeof startEvil>>;
let slow: { gate: Socket; caddy: Socket };
/** Made ahead, as proxies do. */
let unused: Socket;
const hostOf = (service: string) => `${service}-${box.vmid}.${DOMAIN}`;

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: DOMAIN, GATE_PORT: "0", GATE_PROXY_SECRET: SECRET },
  });
  const { context } = await bed.startWorkers({ FLEET_ROLES: "gate", REDIS_URL: bed.redisServer.urlFor("gate") });
  gate = await startGate(context);
  box = await provisionOne(bed.fleet, {
    services: [
      { name: "open", port: PORT, auth: "none" },
      { name: "linked", port: PORT },
      { name: "evil", port: EVIL_PORT, auth: "none" },
    ],
  });
  witness = await startWitness(box.address);
  evil = await startEvil(box.address);
  const text = toProxyConfig("caddy", {
    gate: new URL(gate.url).host,
    domain: DOMAIN,
    pattern: DEFAULT_URL_PATTERN,
    tls: "internal",
    dnsProvider: "",
  });
  caddy = await startCaddy(text, SECRET);
  unused = straight();
  slow = { gate: straight(), caddy: await throughCaddy(hostOf("open")) };
  for (const socket of Object.values(slow)) socket.write("GET /slow HTTP/1.1\r\nhost: ");
});
afterAll(async () => {
  for (const socket of Object.values(slow ?? {})) socket.destroy();
  await caddy?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await witness?.[Symbol.asyncDispose]();
  await evil?.[Symbol.asyncDispose]();
  await bed?.close();
});

interface Seen {
  method: string | undefined;
  url: string | undefined;
  headers: IncomingHttpHeaders;
  body: string;
}

/** An honest service, which remembers all that ever reached it. */
async function startWitness(address: string) {
  const seen: Seen[] = [];
  const server: Server = createServer({ maxHeaderSize: 65_536 }, (request, response) => {
    const { method, url, headers } = request;
    const one: Seen = { method, url, headers, body: "" };
    seen.push(one);
    request.on("data", (chunk) => {
      one.body += chunk;
    });
    request.once("end", () => response.end(`witness ${JSON.stringify(one)}`));
  });
  server.maxHeadersCount = 0;
  server.listen(PORT, address);
  await once(server, "listening");
  return {
    seen,
    async [Symbol.asyncDispose]() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

/** A service of somebody who attacks: it answers each connection with the bytes that are set. */
async function startEvil(address: string) {
  const own = { answer: "", sockets: new Set<Socket>() };
  const server = createRawServer((socket) => {
    own.sockets.add(socket.on("error", () => {}));
    socket.once("data", () => socket.end(own.answer, "latin1"));
  });
  server.listen(EVIL_PORT, address);
  await once(server, "listening");
  return Object.assign(own, {
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of own.sockets) socket.destroy();
      await once(server, "close");
    },
  });
}

function straight(): Socket {
  const { port, hostname } = new URL(gate.url);
  return connect(Number(port), hostname).on("error", () => {});
}
const tlsTo = (servername: string) => ({ host: "127.0.0.1", port: caddy.port, servername, rejectUnauthorized: false });
async function throughCaddy(servername: string): Promise<Socket> {
  const socket = connectTls({ ...tlsTo(servername), ALPNProtocols: ["http/1.1"] }).on("error", () => {});
  await once(socket, "secureConnect");
  return socket;
}

const WAYS = ["gate", "caddy"] as const;
const open = async (way: (typeof WAYS)[number]) => (way === "gate" ? straight() : throughCaddy(hostOf("open")));

/** All that comes back until the connection ends, or nothing more does. */
async function talk(socket: Socket, message: string, { firstMs = 10_000, quietMs = 250 } = {}): Promise<string> {
  let all = "";
  socket.on("data", (data) => {
    all += data.toString("latin1");
    socket.setTimeout(quietMs);
  });
  socket.setTimeout(firstMs).once("timeout", () => socket.destroy());
  const closed = once(socket, "close");
  socket.write(Buffer.from(message, "latin1"));
  await closed;
  return all;
}

/** One with a body whose length two readers could disagree about; behind it stands what one of them takes for a request. */
let turn = 0;
const smuggling = (headers: string, body: string) =>
  `POST /front?${++turn} HTTP/1.1\r\nhost: ${hostOf("open")}\r\n${headers}\r\n\r\n${body}`;
/** To a service that this client has no link to: who forwards it, has not asked the gate about it. */
const smuggled = () => `GET /smuggled HTTP/1.1\r\nhost: ${hostOf("linked")}\r\nx: x\r\n\r\n`;
const chunk = (text: string, ending = "\r\n") => `${text.length.toString(16)}${ending}${text}\r\n`;

const LENGTHS: [string, () => string][] = [
  [
    "a length, then chunks",
    () => smuggling("content-length: 5\r\ntransfer-encoding: chunked", `0\r\n\r\n${smuggled()}`),
  ],
  [
    "chunks, then a length",
    () => smuggling("transfer-encoding: chunked\r\ncontent-length: 500", `0\r\n\r\n${smuggled()}`),
  ],
  ["two lengths", () => smuggling("content-length: 0\r\ncontent-length: 90", smuggled())],
  ["two lengths in one", () => smuggling("content-length: 0, 90", smuggled())],
  ["a length with a sign", () => smuggling("content-length: +0", smuggled())],
  ["a negative length", () => smuggling("content-length: -1", smuggled())],
  ["a length in hex", () => smuggling("content-length: 0x0", smuggled())],
  ["a length beyond numbers", () => smuggling("content-length: 18446744073709551616", smuggled())],
  ["a length with a blank in it", () => smuggling("content-length: 0 0", smuggled())],
  ["an empty length", () => smuggling("content-length: ", smuggled())],
  ["chunks that are none after all", () => smuggling("transfer-encoding: chunked, identity", `0\r\n\r\n${smuggled()}`)],
  ["identity", () => smuggling("transfer-encoding: identity\r\ncontent-length: 0", smuggled())],
  [
    "chunks twice",
    () => smuggling("transfer-encoding: chunked\r\ntransfer-encoding: chunked", `0\r\n\r\n${smuggled()}`),
  ],
  [
    "chunks and another",
    () => smuggling("transfer-encoding: chunked\r\ntransfer-encoding: x", `0\r\n\r\n${smuggled()}`),
  ],
  ["an encoding with a tab", () => smuggling("transfer-encoding:\tchunked\r\ncontent-length: 0", smuggled())],
  ["an encoding with a control", () => smuggling("transfer-encoding: \x0bchunked\r\ncontent-length: 0", smuggled())],
  ["an encoding in quotes", () => smuggling('transfer-encoding: "chunked"\r\ncontent-length: 0', smuggled())],
  ["an encoding's name with a blank", () => smuggling("transfer-encoding : chunked\r\ncontent-length: 0", smuggled())],
  [
    "an encoding's name with an underscore",
    () => smuggling("transfer_encoding: chunked\r\ncontent-length: 0", smuggled()),
  ],
  [
    "an encoding behind a bare newline",
    () => smuggling("x: x\ntransfer-encoding: chunked\r\ncontent-length: 0", smuggled()),
  ],
  [
    "an encoding behind a bare return",
    () => smuggling("x: x\rtransfer-encoding: chunked\r\ncontent-length: 0", smuggled()),
  ],
  ["a folded encoding", () => smuggling("transfer-encoding:\r\n chunked\r\ncontent-length: 0", smuggled())],
  ["a chunk's length in C", () => smuggling("transfer-encoding: chunked", `0x0\r\n\r\n${smuggled()}`)],
  ["a chunk's length with a blank", () => smuggling("transfer-encoding: chunked", `0 \r\n\r\n${smuggled()}`)],
  [
    "a chunk's end with a bare newline",
    () => smuggling("transfer-encoding: chunked", `${chunk("abc", "\n")}0\r\n\r\n${smuggled()}`),
  ],
  ["a chunk's end in its extension", () => smuggling("transfer-encoding: chunked", `0;a\nb\r\n\r\n${smuggled()}`)],
  [
    "a chunk beyond numbers",
    () => smuggling("transfer-encoding: chunked", `ffffffffffffffff1\r\nabc\r\n${smuggled()}`),
  ],
  ["a chunk longer than it says", () => smuggling("transfer-encoding: chunked", `1\r\nabc\r\n0\r\n\r\n${smuggled()}`)],
  ["a request as another's body", () => smuggling(`content-length: ${smuggled().length}`, smuggled())],
  [
    "an upgrade with a body",
    () => smuggling(`connection: upgrade\r\nupgrade: websocket\r\ncontent-length: ${smuggled().length}`, smuggled()),
  ],
  [
    "an upgrade to HTTP/2",
    () =>
      smuggling("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__", smuggled()),
  ],
];

describe.each(WAYS)("%s: how requests are told apart", (way) => {
  test.concurrent.each(LENGTHS)("%s", async (_, message) => {
    const before = witness.seen.length;
    const text = message();
    const own = /POST (\S+)/.exec(text)?.[1];
    const told = await talk(await open(way), text);
    expect(told, told).toMatch(/^HTTP\/1\.1 ([245]\d\d|101) /);
    // What stands behind it is its body, or a request of its own that the gate was asked about.
    const urls = witness.seen.slice(before).map(({ url }) => url);
    expect(urls.filter((url) => !url?.startsWith("/front"))).toEqual([]);
    expect(urls.filter((url) => url === own).length).toBeLessThanOrEqual(1);
    expect(told).not.toMatch(/witness .*"\/smuggled"/);
  });
});

const H2: [string, (open: string, linked: string) => { fields: Field[]; body?: string }][] = [
  ["another host beside the authority", (open, linked) => ({ fields: [...start(linked), ["host", open]] })],
  ["a host and no authority", (_, linked) => ({ fields: [...start("").slice(0, 3), ["host", linked]] })],
  ["two authorities", (open, linked) => ({ fields: [...start(linked), [":authority", open]] })],
  ["a name in capitals", (open) => ({ fields: [...start(open), ["X-Fleet-Upstream", "127.0.0.1:1"]] })],
  ["a pseudo-header behind a header", (open) => ({ fields: [["x", "x"], ...start(open)] })],
  ["an unknown pseudo-header", (open) => ({ fields: [...start(open), [":x-fleet-upstream", "127.0.0.1:1"]] })],
  [
    "a newline in a value",
    (open, linked) => ({ fields: [...start(open), ["x", `x\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: ${linked}`]] }),
  ],
  ["a newline in a name", (open) => ({ fields: [...start(open), ["x: x\r\ntransfer-encoding", "chunked"]] })],
  ["a colon in a name", (open) => ({ fields: [...start(open), ["x:y", "z"]] })],
  ["a newline in the authority", (open, linked) => ({ fields: start(`${open}\r\nhost: ${linked}`) })],
  ["a blank in the method", (open) => ({ fields: start(open, "GET /smuggled HTTP/1.1\r\nx:") })],
  ["a blank in the path", (open) => ({ fields: start(open, "GET", "/ HTTP/1.1\r\nx: x\r\n\r\nGET /smuggled") })],
  [
    "a path that is an address",
    (_, linked) => ({ fields: start("evil.example", "GET", `https://${linked}/smuggled`) }),
  ],
  ["no path", (open) => ({ fields: start(open, "GET", "") })],
  [
    "an encoding",
    (open) => ({ fields: [...start(open, "POST"), ["transfer-encoding", "chunked"]], body: `0\r\n\r\n${smuggled()}` }),
  ],
  ["a connection's header", (open) => ({ fields: [...start(open), ["connection", "x-fleet-proxy-secret"]] })],
  ["an upgrade", (_, linked) => ({ fields: [...start(linked), ["upgrade", "websocket"]] })],
  [
    "a length that is too short",
    (open) => ({ fields: [...start(open, "POST"), ["content-length", "1"]], body: smuggled() }),
  ],
  ["a length that is too long", (open) => ({ fields: [...start(open, "POST"), ["content-length", "900"]], body: "x" })],
  [
    "a tunnel",
    () => ({
      fields: [
        [":method", "CONNECT"],
        [":authority", "127.0.0.1:22"],
      ],
    }),
  ],
  ["a WebSocket over HTTP/2", (_, linked) => ({ fields: [...start(linked, "CONNECT"), [":protocol", "websocket"]] })],
];
const start = (authority: string, method = "GET", path = "/front"): Field[] => [
  [":method", method],
  [":scheme", "https"],
  [":path", path],
  [":authority", authority],
];

describe("caddy, by HTTP/2", () => {
  const connected = () => connectH2(tlsTo(hostOf("open")));
  const answers = async (h2: RawH2) => (await h2.ask(start(hostOf("open")))).status;

  test.each(H2)("%s", async (_, message) => {
    using h2 = await connected();
    const before = witness.seen.length;
    const { fields, body } = message(hostOf("open"), hostOf("linked"));
    const { refused, status } = await h2.ask(fields, body);
    const seen = witness.seen.slice(before);
    // Of a host that is none of its own Caddy says nothing, with status 200.
    expect([refused || status >= 400 || (status === 200 && seen.length === 0), status]).toEqual([true, status]);
    expect(seen.filter(({ url }) => url !== "/front")).toEqual([]);
    using another = await connected();
    expect(await answers(another)).toBe(200);
  });

  test("streams that are reset at once, and headers without an end, end only their own connection", async () => {
    using rapid = await connected();
    for (let stream = 0; stream < 5_000; stream++) rapid.reset(rapid.headers(start(hostOf("open"))));
    using endless = await connected();
    const stream = endless.headers(start(hostOf("open")), 1);
    for (let frame = 0; frame < 2_000; frame++) endless.continuation(stream, [["x", "x".repeat(1_000)]]);
    await endless.closed;
    using another = await connected();
    expect(await answers(another)).toBe(200);
  });
});

describe.each(WAYS)("%s: whose word counts", (way) => {
  const askFor = async (headers: string, service = "open", method = "GET", body = "") =>
    talk(
      await open(way),
      `${method} /front HTTP/1.1\r\nhost: ${hostOf(service)}\r\n${headers}connection: close\r\n\r\n${body}`,
    );
  const seenBy = async (headers: string) => {
    const told = await askFor(headers);
    expect(told, told).toMatch(/^HTTP\/1\.1 200 /);
    return witness.seen.at(-1)?.headers ?? {};
  };

  test("of a request's way a service hears from the gate and its proxy alone", async () => {
    const said = ["Forwarded", "X-Forwarded", "X-Real-IP", "X_Real_IP", "X_Forwarded_For", "X_Forwarded_Host"];
    said.push("Client-IP", "True-Client-IP", "X-Client-IP", "X_Client_Ip", "X-Cluster-Client-IP", "X-Azure-ClientIP");
    said.push(
      "CF-Connecting-IP",
      "CF_Connecting_IP",
      "CF-Connecting-IPv6",
      "CF-Pseudo-IPv4",
      "CF-Visitor",
      "CF-IPCountry",
    );
    said.push("X-Original-URL", "X-Original-Host", "X-Original-Forwarded-For", "X_Original_URL", "X-Rewrite-URL");
    const names = ["for", "host", "proto", "port", "prefix", "server", "uri", "method", "user", "groups"];
    const forged = [...said, ...names.map((name) => `X-Forwarded-${name}`)];
    const headers = await seenBy(forged.map((name) => `${name}: evil\r\n`).join(""));
    const told = Object.entries(headers).filter(([name, value]) => /forwarded/.test(name) || value === "evil");
    expect(Object.fromEntries(told)).toEqual({
      "x-forwarded-for": "127.0.0.1",
      "x-forwarded-host": hostOf("open"),
      "x-forwarded-proto": way === "caddy" ? "https" : "http",
    });
  });

  test.each([
    "x-fleet-proxy-secret",
    "x-fleet-upstream",
    "x-fleet-more, x-fleet-cookie, x-fleet-mark",
    "host",
    "cookie, authorization",
    "x-forwarded-for, x-forwarded-host, x-forwarded-proto",
  ])("a connection's header that names %s takes none of it away", async (names) => {
    const headers = `connection: ${names}\r\nx-fleet-upstream: 127.0.0.1:1\r\nx-fleet-proxy-secret: x\r\n`;
    const isForged = way === "gate";
    expect(await askFor(headers, "linked")).toMatch(isForged ? /^HTTP\/1\.1 40[13] / : /^HTTP\/1\.1 401 /);
    const seen = await seenBy(`connection: ${names}\r\n`);
    expect(seen).toMatchObject({
      host: hostOf("open"),
      "x-forwarded-for": "127.0.0.1",
      "x-forwarded-host": hostOf("open"),
    });
    expect(Object.keys(seen).filter((name) => name.startsWith("x-fleet"))).toEqual([]);
  });

  test("thousands of headers crowd out none of the proxy's", async () => {
    const many = Array.from({ length: 3_000 }, (_, at) => `a${at.toString(36)}:\r\n`).join("");
    expect(await askFor(many, "linked")).toMatch(/^HTTP\/1\.1 401 /);
    expect(await seenBy(many)).toMatchObject({ "x-forwarded-for": "127.0.0.1" });
  });

  test.each([
    ["headers", () => askFor(`x: ${"x".repeat(60_000)}\r\n`), /^HTTP\/1\.1 431 /],
    [
      "a path",
      async () => talk(await open(way), `GET /${"x".repeat(60_000)} HTTP/1.1\r\nhost: ${hostOf("open")}\r\n\r\n`),
      /^HTTP\/1\.1 431 /,
    ],
    ["cookies", () => askFor(`cookie: ${"a=b; ".repeat(10_000)}\r\n`), /^HTTP\/1\.1 431 /],
  ])("too long: %s", async (_, ask, status) => {
    const before = witness.seen.length;
    expect(await ask()).toMatch(status);
    expect(witness.seen.length).toBe(before);
  });

  test("what comes behind a body is no header", async () => {
    const body = `1\r\nx\r\n0\r\nx-fleet-proxy-secret: ${SECRET}\r\nx-fleet-upstream: 127.0.0.1:1\r\ncookie: a=b\r\nhost: evil\r\n\r\n`;
    const trailed = "trailer: cookie, host\r\nte: trailers\r\ntransfer-encoding: chunked\r\n";
    expect(await askFor(trailed, "open", "POST", body)).toMatch(/^HTTP\/1\.1 200 /);
    const { headers, body: read } = witness.seen.at(-1) ?? {};
    expect([read, headers?.host, headers?.cookie]).toEqual(["x", hostOf("open"), undefined]);
    expect(Object.keys(headers ?? {}).filter((name) => name.startsWith("x-fleet"))).toEqual([]);
  });

  test("the address in the request line is not another service's way in", async () => {
    const absolute = async (target: string, host: string) =>
      talk(await open(way), `GET ${target} HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`);
    const before = witness.seen.length;
    for (const [target, host] of [
      [`http://${hostOf("linked")}/smuggled`, hostOf("open")],
      [`https://${hostOf("linked")}/smuggled`, hostOf("open")],
      ["http://127.0.0.1:6379/smuggled", hostOf("linked")],
      [`http://${hostOf("open")}@evil.example/smuggled`, hostOf("linked")],
      ["*", hostOf("linked")],
    ] as const)
      expect([target, await absolute(target, host)]).toEqual([
        target,
        expect.stringMatching(/^HTTP\/1\.1 (4\d\d|200 OK\r\n(?!.*witness))/s),
      ]);
    expect(witness.seen.slice(before)).toEqual([]);
  });

  test("no cache keeps what a service answers, and the gate's own answers neither", async () => {
    expect(await askFor("")).toMatch(/\r\ncache-control: private\r\n/i);
    evil.answer = "HTTP/1.1 200 OK\r\ncache-control: public, max-age=9\r\ncontent-length: 0\r\n\r\n";
    const told = await askFor("", "evil");
    const policies = told.split("\r\n").filter((line) => /^cache-control/i.test(line));
    expect(policies.join()).toMatch(/public, max-age=9.*private|private.*public, max-age=9/i);
    expect(await askFor("", "linked")).toMatch(/\r\ncache-control: no-store\r\n/i);
  });
});

describe.each(WAYS)("%s: a service that answers what it likes", (way) => {
  /** Two requests on one connection; the second is the witness's. */
  const both = async (headers = "") =>
    talk(
      await open(way),
      `GET / HTTP/1.1\r\nhost: ${hostOf("evil")}\r\n${headers}\r\nGET /front HTTP/1.1\r\nhost: ${hostOf("open")}\r\nconnection: close\r\n\r\n`,
      // Caddy says nothing of a switch that nobody asked for.
      { firstMs: way === "caddy" ? 2_000 : 10_000, quietMs: 1_000 },
    );
  const upgrade =
    "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
  const length = (text: string) => `content-length: ${text.length}\r\n\r\n${text}`;
  const POISON = `HTTP/1.1 200 OK\r\n${length("poison")}`;

  test.each([
    [
      "a switch that nobody asked for",
      "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
    ["two answers", `HTTP/1.1 200 OK\r\n${length("one")}${POISON}`],
    ["an answer to nothing, behind one without a body", `HTTP/1.1 204 No Content\r\n\r\n${POISON}`],
    [
      "a length and chunks",
      `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n${POISON}`,
    ],
    ["two lengths", `HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 3\r\n\r\nabc${POISON}`],
    ["an unknown encoding", `HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n${POISON}`],
    ["what is no HTTP", "SSH-2.0-OpenSSH\r\n"],
    ["a status that is none", `HTTP/1.1 000 None\r\n${length("none")}`],
    ["a control behind its status", `HTTP/1.1 200 O\x0bK\r\n${length("fine")}`],
    [
      "the gate's words",
      `HTTP/1.1 200 OK\r\nx-fleet-upstream: 127.0.0.1:1\r\nx-fleet-gate: 1\r\nx-fleet-more: 1\r\nx-fleet-cookie: a=b\r\n${length("ok")}`,
    ],
    ["a header with a newline", `HTTP/1.1 302 Found\r\nlocation: /\n${POISON}\r\ncontent-length: 0\r\n\r\n`],
  ])("%s", async (_, answer) => {
    evil.answer = answer;
    const told = await both();
    const answers = told.split(/(?=HTTP\/1\.1 \d)/);
    // Its own answer or a refusal, then the witness's: none stands in another's place.
    if (way === "gate" || told !== "") expect(answers[0], told).toMatch(/^HTTP\/1\.1 (2\d\d|302|502) /);
    if (answers.length > 1) expect(answers.at(-1), told).toMatch(/witness/);
    expect(told).not.toMatch(/x-fleet-(upstream|more|cookie)/i);
    expect(told).not.toMatch(/poison.*HTTP.*poison/s);
  });

  test.each([
    [
      "a refusal",
      `HTTP/1.1 403 Forbidden\r\nx-fleet-upstream: 127.0.0.1:1\r\n${length("not here")}`,
      /^HTTP\/1\.1 403 .*\r\n\r\nnot here$/s,
    ],
    [
      "an answer like any other",
      `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n${chunk("fine")}0\r\n\r\n`,
      /^HTTP\/1\.1 200 .*fine/s,
    ],
    [
      "another protocol",
      "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
      /^HTTP\/1\.1 502 /,
    ],
    ["a status that is none", `HTTP/1.1 000 None\r\n${length("none")}`, /^HTTP\/1\.1 502 /],
    ["a switch without a protocol", "HTTP/1.1 101 Switching Protocols\r\n\r\n", /^HTTP\/1\.1 502 /],
    [
      "a switch with words of the gate",
      "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-fleet-upstream: 127.0.0.1:1\r\n\r\n",
      /^HTTP\/1\.1 101 /,
    ],
  ])("an upgrade, answered with %s", async (_, answer, told) => {
    evil.answer = answer;
    const before = witness.seen.length;
    const all = await talk(await open(way), `GET / HTTP/1.1\r\nhost: ${hostOf("evil")}\r\n${upgrade}\r\n`);
    expect(all).toMatch(told);
    expect(all).not.toMatch(/x-fleet-upstream/i);
    expect(witness.seen.length).toBe(before);
    // Caddy keeps its connections to the gate: no other client's request goes to where this one's did.
    const others = await Promise.all(
      Array.from({ length: 4 }, async () =>
        talk(await open(way), `GET /front HTTP/1.1\r\nhost: ${hostOf("open")}\r\nconnection: close\r\n\r\n`),
      ),
    );
    for (const one of others) expect(one).toMatch(/^HTTP\/1\.1 200 .*witness/s);
  });
});

test("an upgrade behind a request that waits for its answer ends its own connection alone", async () => {
  const front = `GET /front HTTP/1.1\r\nhost: ${hostOf("open")}\r\n`;
  expect(await talk(straight(), `${front}\r\n${front}connection: upgrade\r\nupgrade: websocket\r\n\r\n`)).toBe("");
  expect(await talk(straight(), `${front}connection: close\r\n\r\n`)).toMatch(/^HTTP\/1\.1 200 /);
});

test("a link does not lead elsewhere, whatever its path", async () => {
  const { url } = await run(bed.fleet, "link", { sandboxId: box.sandboxId, name: "linked" });
  const { search } = new URL(url);
  for (const path of [
    "//evil.example/",
    "/\\evil.example/",
    "/\\/evil.example",
    "///evil.example",
    "/\\\\evil.example",
  ]) {
    const told = await talk(
      straight(),
      `GET ${path}${search} HTTP/1.1\r\nhost: ${hostOf("linked")}\r\nconnection: close\r\n\r\n`,
    );
    const [, location = ""] = /\r\nlocation: (\S+)\r\n/i.exec(told) ?? [];
    expect([path, new URL(location, `https://${hostOf("linked")}`).host]).toEqual([path, hostOf("linked")]);
  }
});

test("who never ends what it asks is hung up on, by the gate and by Caddy", async () => {
  await Promise.all(Object.values(slow).map((socket) => socket.closed || once(socket.resume(), "close")));
  // A proxy's connection that waits for its first request is none of these: that request must not find it closing.
  const told = await talk(unused, `GET /front HTTP/1.1\r\nhost: ${hostOf("open")}\r\nconnection: close\r\n\r\n`);
  expect(told).toMatch(/^HTTP\/1\.1 200 /);
});

test("who is refused while it still sends hears why: nothing takes the answer from it", async () => {
  const socket = straight();
  const closed = once(socket, "close");
  socket.write(`GET / HTTP/1.1\r\nhost: ${hostOf("open")}\r\nx: ${"x".repeat(40_000)}`);
  await once(socket, "readable");
  // What comes behind the limit is read, too: the kernel would answer it with a reset.
  for (let turn = 0; turn < 20; turn++) await new Promise((sent) => socket.write("x".repeat(10_000), sent));
  let told = "";
  for await (const data of socket) told += data;
  expect(told).toMatch(/^HTTP\/1\.1 431 /);
  await closed;
});
