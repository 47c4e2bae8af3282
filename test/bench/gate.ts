/** The bench of public URLs: how soon they work and end, what the gate's decisions take, and what they cost a proxy. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Pool } from "undici";
import { z } from "zod";
import { toProxyConfig } from "../../producers/cli/proxy-configs.ts";
import { DEFAULT_URL_PATTERN } from "../../shared/config-gate.ts";
import { newOperationId, newSandboxId } from "../../shared/ids.ts";
import { LINK_COOKIE, signLink, toLinkKeys } from "../../shared/links.ts";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { type Caddy, startCaddy } from "../caddy.ts";
import type { Bench } from "./bench.ts";
import { quantile, round, spread, wholeNumber } from "./figures.ts";
import { startProgram, startWorld, TEMPLATE, type World } from "./world.ts";

const DOMAIN = "sandbox.test";
/** Of Caddy's other site, which forwards without asking anybody. */
const PLAIN_HOST = "plain.test";
const PROXY_SECRET = "b".repeat(64);
const SERVICE_PORT = 8_000;
const PATIENCE = { timeoutMs: 60_000 };

const SANDBOXES = 1_000;
/** Of the records that no container has, far from the VMIDs that provisions get. */
const FIRST_VMID = 25_000;
const PER_SECOND = 1_000;
/** Each sandbox is asked for several times before it counts: looked up in Redis, and the code compiled. */
const WARM_UP_SECONDS = 5;
const AT_ONCE = 64;
/** Requests of one burst. */
const BURST = { plain: 4_000, gated: 2_000 };
/** A service that lets everybody in is woken ten times a minute at most. */
const WAKES = 9;

const HELP = `npm run bench -- gate [options]

  Public URLs: Redis, the stand-in for Proxmox VE with its nodes' SSH servers, a worker, a gate, the sandbox's service, which
  answers at once, and a real Caddy with the configuration of \`fleet proxy caddy --tls internal\` are processes of their own,
  all on this machine, whose cores they share with the clients: this process, for decisions another one.

  --exposes N          services exposed and hidden, one after the other (30)
  --seconds N          decisions: for how long they are asked for (10)
  --rounds N           rounds; each has a burst of each kind, ${AT_ONCE} at once (5)
  --json               {exposeToFirst200Ms, hideTo404Ms, decisionMs: {p99}, rateOverPlainProxy, wakeMs}
  --help

  exposeToFirst200Ms   from the result of an expose to the first 200 through Caddy, whose certificate for the host is made
                       meanwhile; median.
  hideTo404Ms          from the result of a hide to the first 404 on the connection that is kept since; median.
  decisionMs           with ${SANDBOXES} sandboxes, ${PER_SECOND} questions a second as Caddy asks them, half of them with a link's cookie,
                       sent on time whether or not those before are answered, over 64 connections that are kept; from when the
                       client comes to it, though all of these were busy, to when it has read the answer.
  rateOverPlainProxy   requests a second through Caddy with the gate over those through the same Caddy's plain
                       reverse_proxy to the same service; both over HTTPS; median of the rounds.
  wakeMs               from a request through Caddy to a frozen sandbox to its answer, less what the service takes when
                       it is asked itself; median of ${WAKES}.
`;

export interface GateReport {
  exposeToFirst200Ms: number;
  hideTo404Ms: number;
  decisionMs: { p99: number };
  rateOverPlainProxy: number;
  wakeMs: number;
}

export const gate: Bench = {
  summary: "how soon public URLs work and end, the gate's decisions, and its rate against a plain proxy's",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        exposes: { type: "string", default: "30" },
        seconds: { type: "string", default: "10" },
        rounds: { type: "string", default: "5" },
        json: { type: "boolean", default: false },
      },
    });
    const measured = await measure({
      exposes: wholeNumber("--exposes", values.exposes),
      seconds: wholeNumber("--seconds", values.seconds),
      rounds: wholeNumber("--rounds", values.rounds),
    });
    const report = toReport(measured);
    process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(report, measured));
    return 0;
  },
};

interface Decisions {
  tookMs: number[];
  /** By how much the client came late to each question. */
  lateMs: number[];
}

interface Measured {
  exposeMs: number[];
  hideMs: number[];
  decisions: Decisions;
  /** Requests a second. */
  rounds: { plain: number; gated: number }[];
  wakeMs: number[];
}

async function measure(plan: { exposes: number; seconds: number; rounds: number }): Promise<Measured> {
  await using stack = new AsyncDisposableStack();
  const world = stack.use(
    await startWorld({
      workers: 1,
      ssh: true,
      env: { PVE_PUBLIC_DOMAIN: DOMAIN },
      gate: { GATE_PROXY_SECRET: PROXY_SECRET },
    }),
  );
  const { gateUrl } = world;
  const box = await (
    await world.fleet.provision({
      template: TEMPLATE,
      cores: 1,
      wakeOnHttp: true,
      services: [{ name: "web", port: SERVICE_PORT, auth: "none" }],
    })
  ).result(PATIENCE);
  const service = `${box.address}:${SERVICE_PORT}`;
  const serviceArgs = [box.address ?? "", String(SERVICE_PORT)];
  stack.use(await startProgram(new URL("./instant-service.ts", import.meta.url), serviceArgs));
  const caddy = stack.use(await startCaddy(toCaddyfile(new URL(gateUrl).host, service), PROXY_SECRET));
  const at: Place = { world, caddy, gateUrl, service, sandboxId: box.sandboxId, vmid: box.vmid };
  return {
    ...(await measureExposes(at, plan.exposes)),
    wakeMs: await measureWakes(at),
    rounds: await measureRates(at, plan.rounds),
    decisions: await measureDecisions(at, plan.seconds),
  };
}

/** What is measured, and where it is reached. */
interface Place {
  world: World;
  caddy: Caddy;
  gateUrl: string;
  /** ADDRESS:PORT of the sandbox's service. */
  service: string;
  sandboxId: string;
  vmid: number;
}

const toCaddyfile = (gateHost: string, service: string): string =>
  `${toProxyConfig("caddy", { gate: gateHost, domain: DOMAIN, pattern: DEFAULT_URL_PATTERN, tls: "internal", dnsProvider: "" })}
${PLAIN_HOST} {
	tls internal
	reverse_proxy ${service}
}
`;

const hostOf = (name: string, vmid: number) => `${name}-${vmid}.${DOMAIN}`;

/** Who asks, over connections that are kept. */
interface Client extends AsyncDisposable {
  statusOf(headers: Record<string, string>): Promise<number>;
  /** Throws for any other status than 200. */
  ok(headers: Record<string, string>): Promise<void>;
}

function createClient(url: string, options: Pool.Options): Client {
  const pool = new Pool(url, options);
  // Without the comfort of undici's `request`, which would take more of the machine than the request does.
  const statusOf: Client["statusOf"] = (headers) =>
    new Promise((resolve, reject) => {
      let status = 0;
      pool.dispatch(
        { path: "/", method: "GET", headers },
        {
          onRequestStart() {},
          onResponseStart(_controller, statusCode) {
            status = statusCode;
          },
          onResponseData() {},
          onResponseEnd: () => resolve(status),
          onResponseError: (_controller, error) => reject(error),
        },
      );
    });
  return {
    statusOf,
    async ok(headers) {
      const status = await statusOf(headers);
      if (status !== 200) throw new Error(`${headers["host"]}: ${status}`);
    },
    [Symbol.asyncDispose]: () => pool.destroy(),
  };
}

const clientOf = ({ port, authority }: Caddy, servername: string, connections: number) =>
  createClient(`https://127.0.0.1:${port}`, {
    connections,
    allowH2: false, // as many connections as there are requests at once
    connect: { ca: authority(), servername },
  });

async function took(run: () => Promise<unknown>): Promise<number> {
  const begun = performance.now();
  await run();
  return performance.now() - begun;
}

async function measureExposes({ world: { fleet }, caddy, sandboxId, vmid }: Place, count: number) {
  const [exposeMs, hideMs]: [number[], number[]] = [[], []];
  for (let turn = 0; turn < count; turn++) {
    const name = `late${turn}`;
    const host = hostOf(name, vmid);
    await using client = clientOf(caddy, host, 1);
    const untilIs = async (status: number) => {
      // A connection is refused as long as there is no certificate for the host.
      const look = async () => (await client.statusOf({ host }).catch(() => 0)) === status;
      while (!(await look()));
    };
    await (await fleet.expose({ sandboxId, name, port: SERVICE_PORT, auth: "none" })).result(PATIENCE);
    exposeMs.push(await took(() => untilIs(200)));
    await (await fleet.hide({ sandboxId, name })).result(PATIENCE);
    hideMs.push(await took(() => untilIs(404)));
  }
  return { exposeMs, hideMs };
}

async function measureWakes({ world: { fleet }, caddy, service, sandboxId, vmid }: Place): Promise<number[]> {
  const host = hostOf("web", vmid);
  await using client = clientOf(caddy, host, 1);
  await using straight = createClient(`http://${service}`, { connections: 1 });
  const wakeMs: number[] = [];
  for (let turn = 0; turn < WAKES; turn++) {
    await (await fleet.power({ sandboxId, action: "pause" })).result(PATIENCE);
    await straight.ok({ host });
    const ownMs = await took(() => straight.ok({ host }));
    wakeMs.push((await took(() => client.ok({ host }))) - ownMs);
  }
  return wakeMs;
}

/** In turns, so that a machine that is slow for a while is slow for both. */
async function measureRates({ caddy, vmid }: Place, count: number) {
  const host = hostOf("web", vmid);
  await using throughGate = clientOf(caddy, host, AT_ONCE);
  await using throughPlain = clientOf(caddy, PLAIN_HOST, AT_ONCE);
  const gated = () => rate(() => throughGate.ok({ host }), BURST.gated);
  const plain = () => rate(() => throughPlain.ok({ host: PLAIN_HOST }), BURST.plain);
  await gated();
  await plain();
  const rounds: Measured["rounds"] = [];
  for (let turn = 0; turn < count; turn++) rounds.push({ plain: await plain(), gated: await gated() });
  return rounds;
}

/** How many end in a second, with `AT_ONCE` of them at work at every moment. */
async function rate(run: () => Promise<unknown>, count: number): Promise<number> {
  let left = count;
  const lane = async () => {
    while (left-- > 0) await run();
  };
  return (1_000 * count) / (await took(() => Promise.all(Array.from({ length: AT_ONCE }, lane))));
}

async function measureDecisions({ world, gateUrl }: Place, seconds: number): Promise<Decisions> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "fleet-bench-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, "questions.json");
  await writeFile(file, JSON.stringify(await fill(world)));
  const { hostname, port } = new URL(gateUrl);
  const args = [hostname, port, file, ...[PER_SECOND, WARM_UP_SECONDS, seconds].map(String)];
  const { told } = stack.use(await startProgram(new URL("./asker.ts", import.meta.url), args));
  const read = (text = "") => z.array(z.number()).parse(JSON.parse(text));
  return { tookMs: read(told["took"]), lateMs: read(told["late"]) };
}

/** Running sandboxes with a service each; returns the headers of Caddy's question about each of them. */
async function fill({ redisUrl, prefix, secretKey }: World): Promise<Record<string, string>[]> {
  await using stack = new AsyncDisposableStack();
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const keys = createKeys(prefix);
  const linkKeys = toLinkKeys([Buffer.from(secretKey, "hex")]);
  const expiresAtSec = Math.floor(Date.now() / 1_000) + 3_600;
  const pipeline = redis.pipeline();
  const questions = Array.from({ length: SANDBOXES }, (_, at) => {
    const id = newSandboxId();
    const createdAt = Date.now() - 1_000 * at;
    const vmid = FIRST_VMID + at;
    const host = hostOf("web", vmid);
    const address = `127.240.${at >> 8}.${at & 255}`;
    const auth = at % 2 === 0 ? "link" : "none";
    const { set } = encodeFields({
      id,
      operation: newOperationId(),
      team: `team-${at % 10}`,
      template: TEMPLATE,
      state: "running",
      // No node, so that the reconcile does not miss their containers.
      vmid,
      hostname: `cmux-${vmid}`,
      address,
      metadata: {},
      createdAt,
      "service:web": { name: "web", port: SERVICE_PORT, url: `https://${host}`, level: "public", auth, epoch: "1" },
    });
    pipeline.hset(keys.sandbox(id), ...set);
    pipeline.zadd(keys.sandboxes, createdAt, id);
    pipeline.hset(keys.vmids, vmid, id);
    pipeline.hset(keys.addresses, address, id);
    const cookie = signLink(linkKeys, { sandbox: id, service: "web", epoch: "1" }, { purpose: "cookie", expiresAtSec });
    return {
      host,
      "x-fleet-proxy-secret": PROXY_SECRET,
      "x-forwarded-for": "127.0.0.1",
      "x-forwarded-method": "GET",
      "x-forwarded-uri": "/",
      ...(auth === "link" ? { cookie: `${LINK_COOKIE}=${cookie}` } : {}),
    };
  });
  await pipeline.exec();
  return questions;
}

const overPlain = ({ rounds }: Measured) => rounds.map(({ gated, plain }) => gated / plain);

function toReport(measured: Measured): GateReport {
  return {
    exposeToFirst200Ms: round(quantile(measured.exposeMs, 0.5), 1),
    hideTo404Ms: round(quantile(measured.hideMs, 0.5), 1),
    decisionMs: { p99: round(quantile(measured.decisions.tookMs, 0.99), 2) },
    rateOverPlainProxy: round(quantile(overPlain(measured), 0.5), 3),
    wakeMs: round(quantile(measured.wakeMs, 0.5), 1),
  };
}

function toText(report: GateReport, measured: Measured): string {
  const { exposeMs, hideMs, decisions, rounds, wakeMs } = measured;
  const { tookMs, lateMs } = decisions;
  const a = (kind: "plain" | "gated") =>
    Math.round(
      quantile(
        rounds.map((one) => one[kind]),
        0.5,
      ),
    );
  return `
expose to 200      median ${report.exposeToFirst200Ms} ms (${spread(exposeMs, 1)}; at most 50 are promised)
hide to 404        median ${report.hideTo404Ms} ms (${spread(hideMs, 1)}; at most 200 are promised)
decision           median ${round(quantile(tookMs, 0.5), 2)} ms, p99 ${report.decisionMs.p99} ms of ${tookMs.length} (under 5 ms is promised)
  client late      median ${round(quantile(lateMs, 0.5), 2)} ms, p99 ${round(quantile(lateMs, 0.99), 2)} ms: far more than 2 ms tells of a machine that does something else
through the gate   ${a("gated")} a second, plain proxy ${a("plain")}
  over plain       median ${report.rateOverPlainProxy} (${spread(overPlain(measured), 3)}; at least 0.35 is promised)
wake               median ${report.wakeMs} ms (${spread(wakeMs, 1)}; at most 300 are promised)
`;
}
