/** Services that can't be reached where they were, behind a Caddy that goes on by itself: the gate looks again, for it as for itself. */
import { once } from "node:events";
import { request } from "node:https";
import { connect, createServer, type Socket } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { toProxyConfig } from "../../../producers/cli/proxy-configs.ts";
import { DEFAULT_URL_PATTERN } from "../../../shared/config-gate.ts";
import { newSandboxId } from "../../../shared/ids.ts";
import { type FleetWorkers, startFleetWorkers } from "../../../workers/fleet.ts";
import { type Gate, startGate } from "../../../workers/gate/gate.ts";
import { createLogger } from "../../../workers/log.ts";
import { type Caddy, startCaddy } from "../../caddy.ts";
import { type Bed, provisionOne, startBed, until } from "../fleet/harness.ts";
import { type Asked, askGate, type Reply, seen, startEcho } from "./rig.ts";

const DOMAIN = "sandbox.test";
const SECRET = "s".repeat(40);
const PORT = 8_000;
/** Requests to PVE about all that can't be reached, in each of such whiles. */
const LOOKS = { most: 20, perMs: 2_000 };

let bed: Bed;
let gate: Gate;
/** In another process of the same fleet, it could be. */
let other: Gate;
let caddy: Caddy;
/** With a way to Redis that says nothing any more since the first test, nor that it is gone. */
let cut: {
  gate: Gate;
  own: FleetWorkers;
  wire: Wire;
  service: AsyncDisposable;
  box: Awaited<ReturnType<typeof provision>>;
};

beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: DOMAIN, GATE_PORT: "0", GATE_PROXY_SECRET: SECRET },
  });
  const { context } = await bed.startWorkers({ FLEET_ROLES: "gate", REDIS_URL: bed.redisServer.urlFor("gate") });
  gate = await startGate(context);
  other = await startGate(context);
  const settings = { gate: new URL(gate.url).host, domain: DOMAIN, pattern: DEFAULT_URL_PATTERN, dnsProvider: "" };
  caddy = await startCaddy(toProxyConfig("caddy", { ...settings, tls: "internal" }), SECRET);

  const url = new URL(bed.redisServer.urlFor("gate"));
  const wire = await startWire(Number(url.port));
  url.port = String(wire.port);
  const own = await startFleetWorkers(bed.config({ FLEET_ROLES: "gate", REDIS_URL: url.href }), createLogger("silent"));
  const box = await provision();
  cut = { gate: await startGate(own.context), own, wire, service: await startSaying(box.address, OK("fine")), box };
  await until(async () => (await askGate(cut.gate, hostOf(box))).text === "fine", "its gate");
});
afterAll(async () => {
  cut?.wire.thaw();
  await cut?.gate[Symbol.asyncDispose]();
  await cut?.own.close();
  await cut?.wire[Symbol.asyncDispose]();
  await cut?.service[Symbol.asyncDispose]();
  await caddy?.[Symbol.asyncDispose]();
  await gate?.[Symbol.asyncDispose]();
  await other?.[Symbol.asyncDispose]();
  await bed?.close();
});

const hostOf = ({ vmid }: { vmid: number }) => `open-${vmid}.${DOMAIN}`;
const provision = () => provisionOne(bed.fleet, { services: [{ name: "open", port: PORT, auth: "none" }] });
/** What PVE was asked about containers' addresses. */
const looks = () => bed.pve.log().filter(({ path }) => path.endsWith("/interfaces")).length;

interface Wire extends AsyncDisposable {
  port: number;
  /** Nothing goes through, either way. */
  freeze(): void;
  thaw(): void;
}

/** A way to another port, which can fall silent. */
async function startWire(to: number): Promise<Wire> {
  const sockets = new Set<Socket>();
  let isFrozen = false;
  const carry = (from: Socket, on: Socket) => {
    sockets.add(from);
    from.on("error", () => {}).on("data", (data) => on.write(data));
    from.once("close", () => on.destroy());
    if (isFrozen) from.pause();
  };
  const server = createServer((socket) => {
    const other = connect(to, "127.0.0.1");
    carry(socket, other);
    carry(other, socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    freeze() {
      isFrozen = true;
      for (const socket of sockets) socket.pause();
    },
    thaw() {
      isFrozen = false;
      for (const socket of sockets) socket.resume();
    },
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
}

/** A service that answers each request with these bytes. */
async function startSaying(address: string, answer: string): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
    socket.once("data", () => socket.end(answer));
  });
  server.listen(PORT, address);
  await once(server, "listening");
  return {
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
      await once(server, "close");
    },
  };
}
const OK = (text: string) => `HTTP/1.1 200 OK\r\ncontent-length: ${text.length}\r\n\r\n${text}`;

async function ask(host: string, { path = "/", method = "GET", headers = {}, body = "" }: Asked = {}) {
  const at = { host: "127.0.0.1", port: caddy.port, servername: host, ca: caddy.authority(), agent: false };
  const sent = request({ ...at, path, method, headers: { host, ...headers } });
  sent.end(body);
  const [response] = await once(sent, "response");
  let text = "";
  for await (const chunk of response) text += chunk;
  return { status: response.statusCode, headers: response.headers, text } as Reply; // as Caddy answers
}

test("a gate whose way to Redis falls silent while it reads says so, to one or all who wait for the same", async () => {
  const [one, both] = [await provision(), await provision()];
  cut.wire.freeze();
  const replies = await Promise.all([one, both, both].map((box) => askGate(cut.gate, hostOf(box))));
  for (const { status, headers } of replies) expect([status, headers["retry-after"]]).toEqual([503, "1"]);
});

test("what can be sent again is served where the sandbox is by now, what can't is told so, and served when it is sent anew", async () => {
  const boxes = await Promise.all([provision(), provision()]);
  const [read, written] = boxes;
  const moved = ["127.93.0.2", "127.93.0.3"];
  boxes.forEach(({ vmid }, at) => {
    bed.pve.faults.takeAddresses(vmid, [moved[at] ?? ""]);
  });
  await using _ = await startEcho(moved[0] ?? "", PORT);
  await using __ = await startEcho(moved[1] ?? "", PORT);
  const before = looks();
  // However many ask at once, PVE is asked once.
  const replies = await Promise.all(
    Array.from({ length: 20 }, () => ask(hostOf(read), { path: "/a?b=c", headers: { accept: "text/html", x: "y" } })),
  );
  for (const reply of replies) {
    expect(reply.status).toBe(200);
    const { url, headers } = seen(reply);
    expect([url, headers["x"], headers["x-forwarded-proto"]]).toEqual(["/a?b=c", "y", "https"]);
    expect(Object.keys(headers).filter((name) => name.startsWith("x-fleet"))).toEqual([]);
    expect(reply.headers["set-cookie"]).toHaveLength(1);
    expect(reply.headers["cache-control"]).toBe("private");
  }
  expect(looks() - before).toBe(1);

  const send = () => ask(hostOf(written), { method: "POST", body: "x".repeat(500_000) });
  const told = await send();
  expect([told.status, told.headers["retry-after"], told.text]).toEqual([
    503,
    "1",
    "the sandbox has got another address; send it again\n",
  ]);
  const reply = await send();
  expect([reply.status, seen(reply).body.length]).toEqual([200, 500_000]);
  expect(looks() - before).toBe(2);
  for (const [at, { sandboxId }] of boxes.entries())
    expect((await bed.fleet.sandboxes.get(sandboxId)).address).toBe(moved[at]);
});

test("another gate hears of it at once, since the old address may be a neighbour's soon", async () => {
  const box = await provision();
  const before = await startSaying(box.address, OK("before"));
  for (const one of [gate, other]) expect((await askGate(one, hostOf(box))).text).toBe("before");
  await before[Symbol.asyncDispose]();
  bed.pve.faults.takeAddresses(box.vmid, ["127.93.0.4"]);
  await using _ = await startSaying("127.93.0.4", OK("after"));
  expect((await askGate(gate, hostOf(box))).text).toBe("after");
  await using __ = await startSaying(box.address, OK("neighbour"));
  await until(async () => (await askGate(other, hostOf(box))).text === "after", "the other gate");
});

test("where nothing answers, visitors are told so in a form that they read, and PVE is asked no more than now and then", async () => {
  const box = await provision();
  const [before, begun] = [looks(), performance.now()];
  const [text, json, page] = await Promise.all(
    ["*/*", "application/json", "text/html"].map((accept) => ask(hostOf(box), { headers: { accept } })),
  );
  const message = `nothing answers on port ${PORT} of this sandbox`;
  expect(text).toMatchObject({ status: 502, text: `${message}\n`, headers: { "retry-after": "5" } });
  expect(JSON.parse(json?.text ?? "")).toEqual({ status: 502, message });
  expect(page?.text).toContain(`<p>${message}</p>`);
  for (let turn = 0; turn < 10; turn++) await ask(hostOf(box), { method: turn % 2 === 0 ? "POST" : "GET" });
  // Once in five seconds.
  expect(looks() - before).toBeLessThanOrEqual(1 + Math.floor((performance.now() - begun) / 5_000));
});

test("what a service answers, or that it hangs up, makes nobody ask PVE", async () => {
  const box = await provision();
  const before = looks();
  for (const [said, status] of [
    ["", 502],
    ["what is no HTTP\r\n\r\n", 502],
    ["HTTP/1.1 502 Bad Gateway\r\nx-fleet-upstream: 127.0.0.1:1\r\ncontent-length: 4\r\n\r\nmine", 502],
    ["HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nmine", 503],
  ] as const) {
    await using _ = await startSaying(box.address, said);
    const text = said.endsWith("mine") ? "mine" : `nothing answers on port ${PORT} of this sandbox\n`;
    for (const method of ["GET", "POST"]) expect(await ask(hostOf(box), { method })).toMatchObject({ status, text });
  }
  expect(looks()).toBe(before);
});

test("nobody outside can ask for it, nor with the secret for another service than was decided about", async () => {
  const box = await provision();
  await using _ = await startEcho(box.address, PORT);
  const before = looks();
  const forged = { "x-fleet-upstream": "127.0.0.1:1", "x-fleet-epoch": "0".repeat(12), "x-fleet-error": "dial tcp" };
  for (const headers of [forged, { ...forged, "x-fleet-proxy-secret": SECRET }]) {
    const reply = await ask(hostOf(box), { path: "/unreached", headers });
    expect([reply.status, seen(reply).url]).toEqual([200, "/unreached"]);
  }
  expect((await askGate(gate, hostOf(box), { path: "/unreached", headers: forged })).status).toBe(200);
  const asked = { path: "/unreached", headers: { ...forged, "x-fleet-proxy-secret": SECRET } };
  expect((await askGate(gate, hostOf(box), asked)).status).toBe(404);
  expect((await askGate(gate, `open-1.${DOMAIN}`, asked)).status).toBe(404);
  expect(looks()).toBe(before);
});

test("no body goes over a connection that was kept, which a service may be closing just then", async () => {
  const box = await provision();
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
    let requests = 0;
    // As if its time had been up.
    socket.on("data", () => (++requests === 1 ? socket.write(OK("fine")) : socket.destroy()));
  });
  server.listen(PORT, box.address);
  await once(server, "listening");
  for (const method of ["GET", "POST", "GET", "PUT", "DELETE", "GET", "POST"])
    expect([method, (await ask(hostOf(box), { method, body: method === "GET" ? "" : "x" })).status]).toEqual([
      method,
      200,
    ]);
  server.close();
  for (const socket of sockets) socket.destroy();
});

test("however many sandboxes can't be reached, PVE is asked about so many in a while", async () => {
  const box = await provision();
  const like = await bed.redis.hgetall(bed.keys.sandbox(box.sandboxId));
  const made = Array.from({ length: 3 * LOOKS.most }, (_, at) => ({
    id: newSandboxId(),
    vmid: 25_000 + at,
    address: `127.240.1.${at}`,
  }));
  const write = bed.redis.pipeline();
  for (const { id, vmid, address } of made) {
    write.hset(bed.keys.sandbox(id), { ...like, id, vmid, address });
    write.hset(bed.keys.vmids, vmid, id).hset(bed.keys.addresses, address, id);
  }
  await write.exec();
  const [before, begun] = [looks(), performance.now()];
  const replies = await Promise.all(made.map((one) => askGate(gate, hostOf(one))));
  expect(replies.map(({ status }) => status)).toEqual(made.map(() => 502));
  const whiles = 2 + Math.floor((performance.now() - begun) / LOOKS.perMs);
  expect(looks() - before).toBeGreaterThan(0);
  expect(looks() - before).toBeLessThanOrEqual(whiles * LOOKS.most);
  const remove = bed.redis.pipeline();
  for (const { id, vmid, address } of made)
    remove.del(bed.keys.sandbox(id)).hdel(bed.keys.vmids, String(vmid)).hdel(bed.keys.addresses, address);
  await remove.exec();
});

test("a gate whose way to Redis is silent says so; it serves nothing from memory that events would have taken back", async () => {
  const told = await until(async () => {
    const reply = await askGate(cut.gate, hostOf(cut.box), { headers: { accept: "application/json" } });
    return reply.status === 200 ? null : reply;
  }, "the gate to notice");
  expect([told.status, told.headers["retry-after"]]).toEqual([503, "1"]);
  expect(JSON.parse(told.text).message).toBe("the registry of services can't be read just now; try again");
  cut.wire.thaw();
  await until(async () => (await askGate(cut.gate, hostOf(cut.box))).text === "fine", "the service");
});
