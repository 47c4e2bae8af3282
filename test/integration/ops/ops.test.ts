/** The ops pages: who gets in, who may act, what is shown, and what an attacker gets. */
import { request as ask, type IncomingHttpHeaders } from "node:http";
import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import { formatLogin } from "../../../shared/logins.ts";
import { nodeQueue } from "../../../shared/queues.ts";
import { createFleetGauges } from "../../../workers/ops/fleet-gauges.ts";
import { type Ops, startOps } from "../../../workers/ops/server.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "../fleet/harness.ts";

const PASSWORD = "correct horse battery";
let bed: Bed;
let ops: Ops;
/** Without logins. */
let open: Ops;

beforeAll(async () => {
  const logins = [await formatLogin("operator", "olga", PASSWORD), await formatLogin("viewer", "vera", PASSWORD)];
  bed = await startBed({ pve: { nodes: 2 }, env: { OPS_PORT: "0", OPS_LOGINS: logins.join() } });
  if (bed.workers === null) throw new Error("the bed has no workers");
  const { metrics } = bed.workers.context;
  const own = await bed.startWorkers({ FLEET_ROLES: "ops", REDIS_URL: bed.redisServer.urlFor("ops") });
  const context = { ...own.context, metrics };
  ops = await startOps(context);
  open = await startOps({ ...context, config: { ...context.config, OPS_LOGINS: [] } });
});
afterAll(async () => {
  await ops?.[Symbol.asyncDispose]();
  await open?.[Symbol.asyncDispose]();
  await bed?.close();
});

interface Asked {
  method?: string;
  as?: string | undefined;
  headers?: Record<string, string>;
  at?: Ops;
}
interface Reply {
  status: number;
  body: string;
  headers: IncomingHttpHeaders;
}

const basic = (login: string) => `Basic ${Buffer.from(login).toString("base64")}`;
const OLGA = `olga:${PASSWORD}`;
const VERA = `vera:${PASSWORD}`;

/** Over node:http, which sends any Host and any Origin. */
function get(path: string, { method = "GET", as, headers = {}, at = ops }: Asked = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const sent = ask(
      at.url,
      { path, method, headers: { ...(as === undefined ? {} : { authorization: basic(as) }), ...headers } },
      async (reply) => resolve({ status: reply.statusCode ?? 0, body: await text(reply), headers: reply.headers }),
    );
    sent.on("error", reject);
    sent.end();
  });
}
const post = (path: string, as: string, headers: Record<string, string> = { origin: ops.url }) =>
  get(path, { method: "POST", as, headers });

describe("who gets in", () => {
  test("probes need no login; everything else does", async () => {
    expect(await get("/healthz")).toMatchObject({ status: 200 });
    const readyz = await get("/readyz");
    expect([readyz.status, JSON.parse(readyz.body)]).toEqual([
      200,
      { ready: true, pid: process.pid, checks: { redis: "ok", pve: "ok", workers: "ok" } },
    ]);
    for (const path of ["/", "/metrics", "/sandboxes", "/board", "/board/api/queues", "/operate", "/nothing"]) {
      const reply = await get(path);
      expect([path, reply.status, reply.headers["www-authenticate"]]).toEqual([
        path,
        401,
        'Basic realm="sandbox-fleet", charset="UTF-8"',
      ]);
    }
    expect((await get("/", { as: VERA })).status).toBe(200);
  });

  test("without logins this machine looks, under its own names alone, and nobody acts", async () => {
    expect((await get("/", { at: open })).status).toBe(200);
    for (const host of ["evil.example", "fleet.local:3000", "127.0.0.1.evil.example"])
      expect([host, (await get("/", { at: open, headers: { host } })).status]).toEqual([host, 421]);
    const acted = await get("/nodes/pve1/cordon", { method: "POST", at: open, headers: { origin: open.url } });
    expect([acted.status, acted.body]).toEqual([403, expect.stringContaining("fleet login operator")]);
    expect((await bed.fleet.nodes.list()).every(({ cordon }) => cordon === undefined)).toBe(true);
  });

  test("hostile requests are refused, each with a clear status", async () => {
    const sandbox = await provisionOne(bed.fleet);
    const destroy = `/sandboxes/${sandbox.sandboxId}/destroy`;
    const hostile: [string, number, string, Asked][] = [
      ["no login", 401, destroy, { method: "POST", headers: { origin: ops.url } }],
      ["an unknown name", 401, "/", { as: `nobody:${PASSWORD}` }],
      ["an empty name", 401, "/", { as: `:${PASSWORD}` }],
      ["a login that is no Basic", 401, "/", { headers: { authorization: `Bearer ${PASSWORD}` } }],
      ["a Basic that is no base64", 401, "/", { headers: { authorization: "Basic \u00ff" } }],
      ["a viewer who destroys", 403, destroy, { method: "POST", as: VERA, headers: { origin: ops.url } }],
      [
        "a viewer who pauses a queue",
        403,
        "/board/api/queues/place/pause",
        { method: "PUT", as: VERA, headers: { origin: ops.url } },
      ],
      ["a viewer on the acting board", 302, "/operate/api/queues", { as: VERA }],
      [
        "a viewer who acts on the acting board",
        403,
        "/operate/api/queues/place/pause",
        { method: "PUT", as: VERA, headers: { origin: ops.url } },
      ],
      [
        "an operator on the showing board",
        405,
        "/board/api/queues/place/pause",
        { method: "PUT", as: OLGA, headers: { origin: ops.url } },
      ],
      ["another site's form", 403, destroy, { method: "POST", as: OLGA, headers: { origin: "https://evil.example" } }],
      ["a sandboxed frame", 403, destroy, { method: "POST", as: OLGA, headers: { origin: "null" } }],
      [
        "another port of this host",
        403,
        destroy,
        { method: "POST", as: OLGA, headers: { origin: "http://127.0.0.1:1" } },
      ],
      ["no origin at all", 403, destroy, { method: "POST", as: OLGA }],
      [
        "a browser that tells of another site",
        403,
        destroy,
        { method: "POST", as: OLGA, headers: { origin: ops.url, "sec-fetch-site": "same-site" } },
      ],
      ["a path out of the board", 403, "/board/static/../../../../package.json", { as: OLGA }],
      ["the same, encoded", 404, "/board/static/%2e%2e%2f%2e%2e%2fpackage.json", { as: OLGA }],
      ["a sandbox that is none", 404, "/sandboxes/..%2f..%2fetc", { as: OLGA }],
      ["a node that is none", 400, "/nodes/nowhere/cordon", { method: "POST", as: OLGA, headers: { origin: ops.url } }],
      ["a method that is none", 404, "/", { method: "DELETE", as: OLGA, headers: { origin: ops.url } }],
      ["headers without end", 431, "/", { headers: { "x-long": "a".repeat(20_000) } }],
    ];
    const got = [];
    for (const [what, , path, asked] of hostile) got.push([what, (await get(path, asked)).status]);
    expect(got).toEqual(hostile.map(([what, status]) => [what, status]));
    expect((await bed.fleet.sandboxes.get(sandbox.sandboxId)).state).toBe("running");
    expect((await get("/", { as: OLGA })).status).toBe(200);
  });

  test("wrong passwords are slowed down, the right one is not locked out by others' addresses", async () => {
    const here = bed.workers?.context;
    if (!here) throw new Error("the bed has workers");
    await using other = await startOps(here);
    const statuses = [];
    for (let turn = 0; turn < 12; turn++)
      statuses.push((await get("/", { as: `olga:wrong password ${turn}`, at: other })).status);
    expect(statuses).toEqual([...Array(10).fill(401), 429, 429]);
    const told = await get("/", { as: "olga:one more", at: other });
    expect(told.headers["retry-after"]).toBe("60");
  });

  test("slow, broken and too many requests end, and the pages go on", async () => {
    const here = bed.workers?.context;
    if (!here) throw new Error("the bed has workers");
    await using hasty = await startOps(
      { ...here, config: { ...here.config, OPS_LOGINS: [] } },
      { headersMs: 400, requestMs: 800, silentMs: 1_500, keepMs: 300, connections: 60 },
    );
    const { host, port } = new URL(hasty.url);
    /** Sends a first part, then a byte every 50 ms; what came back once it was cut off. */
    const drip = async (first: string, drop = "x"): Promise<string> => {
      const socket = connect(Number(port), "127.0.0.1");
      socket.on("error", () => {}); // cut off while it writes
      socket.write(first);
      const dripping = setInterval(() => drop !== "" && socket.write(drop), 50);
      const answer = await text(socket).catch(() => "cut off");
      clearInterval(dripping);
      return answer;
    };
    const head = (method: string, path: string) =>
      `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nOrigin: ${hasty.url}\r\n`;
    const hostile = [
      ...Array.from({ length: 40 }, () => drip(`${head("GET", "/")}X-Slow: `)),
      drip(`${head("GET", "/metrics")}X-Slow: `),
      drip(`${head("POST", "/nodes/pve1/cordon")}Content-Type: text/plain\r\nContent-Length: 60000\r\n\r\n`),
      drip(`${head("GET", "/healthz")}\r\n`, ""),
      drip("", ""),
      drip("GET / HTTP/1.1\r\nHost: \r\n\x00broken\r\n\r\n"),
      drip(`${head("GET", "/")}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n`),
    ];
    const begun = performance.now();
    for (let turn = 0; turn < 5; turn++) expect((await get("/healthz", { at: hasty })).status).toBe(200);
    expect(performance.now() - begun).toBeLessThan(1_000);
    const answers = await Promise.all(hostile);
    const statuses = answers.map((answer) => /^HTTP\/1\.1 (\d+)/.exec(answer)?.[1] ?? "closed");
    // Where a byte crosses the answer, that is lost with the connection.
    expect(statuses.slice(0, 41).filter((status) => status !== "408" && status !== "closed")).toEqual([]);
    expect(["403", "closed"]).toContain(statuses[41]);
    expect(statuses.slice(42)).toEqual(["200", "408", "400", "400"]);
    // More connections than there may be: those are dropped, and the ones that stand are served.
    const crowd = Array.from({ length: 100 }, () => drip("", ""));
    await Promise.all(crowd);
    expect((await get("/healthz", { at: hasty })).status).toBe(200);
  });
});

describe("what is shown", () => {
  test("nodes, sandboxes with search, one sandbox, one operation; whatever it is called, it stays text", async () => {
    const handle = await bed.fleet.provision({
      template: "cmux-base",
      metadata: { note: `<script>alert("1")</script>` },
      services: [{ name: "web", port: 80 }],
    });
    const { sandboxId, vmid } = await handle.result();
    const main = (await get("/", { as: VERA })).body;
    expect(main).toContain("pve1");
    expect(main).toContain("pve2");
    expect(main).not.toContain("/cordon");
    expect((await get("/", { as: OLGA })).body).toContain('href="/nodes/pve1/cordon"');
    const { team } = await bed.fleet.sandboxes.get(sandboxId);
    const asked = async (query: string) => (await get(`/sandboxes?${query}`, { as: VERA })).body.includes(sandboxId);
    for (const words of [String(vmid), `CMUX-${vmid}`, sandboxId.slice(4, 12), "ux-bas", "%"])
      expect([words, await asked(`q=${encodeURIComponent(words)}&state=running&page=x`)]).toEqual([
        words,
        words !== "%",
      ]);
    expect(await asked(`team=${team}`)).toBe(true);
    for (const query of ["team=nobody", "state=stopped", `q=${String(vmid).slice(1)}&team=${team}x`, "page=2"])
      expect([query, await asked(query)]).toEqual([query, false]);
    const page = (await get(`/sandboxes/${sandboxId}`, { as: VERA })).body;
    expect(page).toContain("note=&lt;script&gt;");
    expect(page).not.toContain("<script>alert");
    expect((await get(`/operations/${handle.id}`, { as: VERA })).body).toContain("succeeded");
    expect((await get("/operations/op_0000000000000000", { as: VERA })).status).toBe(404);
  });

  test("the boards have every queue, and jobs with their sandbox and a way to it", async () => {
    const { sandboxId } = await provisionOne(bed.fleet, { services: [{ name: "web", port: 80 }] });
    const names = async (path: string) => {
      const { queues } = JSON.parse((await get(`${path}/api/queues`, { as: OLGA })).body) as {
        queues: { name: string; readOnlyMode: boolean }[];
      };
      return queues;
    };
    const shown = await names("/board");
    expect(shown.map(({ name }) => name).sort()).toEqual(
      ["control", "place", "pve1:exec-pve1", "pve1:node-pve1", "pve2:exec-pve2", "pve2:node-pve2", "warm"].sort(),
    );
    expect(shown.every(({ readOnlyMode }) => readOnlyMode)).toBe(true);
    expect((await names("/operate")).every(({ readOnlyMode }) => !readOnlyMode)).toBe(true);
    const { node } = await bed.fleet.sandboxes.get(sandboxId);
    const jobs = await until(async () => {
      const queue = `${node}:${nodeQueue(node ?? "")}`;
      const { body } = await get(`/board/api/queues?activeQueue=${queue}&status=completed&page=1&jobsPerPage=20`, {
        as: VERA,
      });
      return body.includes(sandboxId) && body.includes('"urls"') ? body : null;
    }, "the job to be shown as completed");
    expect(jobs).toMatch(new RegExp(`"name":"provision · ${sandboxId} · default · ${node} · http://`));
    const [, href = ""] = /"href":"(\/operations\/op_[^"]+)"/.exec(jobs) ?? [];
    // And back, from the operation as from the sandbox.
    const back = new RegExp(`href="/board/queue/${node}%3Anode-${node}/op_[^"]+"`);
    expect((await get(href, { as: VERA })).body).toMatch(back);
    expect((await get(`/sandboxes/${sandboxId}`, { as: VERA })).body).toMatch(back);
  });

  test("the boards tell of a job's step and error code where it is listed, and cut what somebody put into it", async () => {
    const { sandboxId, node } = await provisionOne(bed.fleet);
    const command = await bed.fleet.exec({ sandboxId, command: "sleep 60" });
    const listed = async (queue: string, status: string, wanted: string) => {
      const query = `activeQueue=${encodeURIComponent(queue)}&status=${status}&page=1&jobsPerPage=20`;
      return until(async () => {
        const { body } = await get(`/board/api/queues?${query}`, { as: VERA });
        return body.includes(wanted) ? body : null;
      }, `${wanted} in ${queue}`);
    };
    await listed(`${node}:exec-${node}`, "active", `"name":"exec · ${sandboxId} · default · ${node} · sent"`);
    await command.cancel();
    await listed(
      `${node}:exec-${node}`,
      "failed",
      `"name":"exec · ${sandboxId} · default · ${node} · canceled: canceled"`,
    );
    const queue = bed.workers?.context.queues.get("control");
    await queue?.add(
      "by hand",
      JSON.parse(JSON.stringify({ long: "x".repeat(5_000), deep: { a: { b: { c: { d: 1 } } } } })),
      { delay: 60_000 },
    );
    const shown = await listed("control", "delayed", "by hand");
    expect(shown).toContain("(5000 characters)");
    expect(shown).not.toContain("x".repeat(400));
    await queue?.drain(true);
  });

  test("metrics tell of operations, PVE's answers, queues, slots and Redis", async () => {
    await provisionOne(bed.fleet);
    const { body, headers } = await get("/metrics", { as: VERA });
    expect(headers["content-type"]).toContain("text/plain");
    const value = (line: RegExp) => Number(line.exec(body)?.[1]);
    expect(value(/^fleet_operations_total\{kind="provision",code="ok",node="pve\d"\} (\d+)$/m)).toBeGreaterThan(0);
    expect(body).toMatch(/^fleet_operation_step_duration_seconds_bucket\{le="1",kind="provision",step="clone"\} \d+$/m);
    expect(
      value(
        /^fleet_pve_requests_total\{method="POST",endpoint="\/nodes\/\{node\}\/lxc\/\{vmid\}\/clone",node="pve1",status="200"\} (\d+)$/m,
      ),
    ).toBeGreaterThan(0);
    expect(body).toMatch(/^fleet_queue_jobs\{queue="place",state="waiting"\} 0$/m);
    expect(value(/^fleet_sandboxes\{state="running"\} (\d+)$/m)).toBeGreaterThan(0);
    expect(body).toMatch(/^fleet_node_slots\{node="pve2"\} 4$/m);
    expect(body).toMatch(/^fleet_redis_memory_used_bytes [1-9]\d*$/m);
    expect(value(/^fleet_pve_task_lag_seconds_count (\d+)$/m)).toBeGreaterThan(0);
    expect(value(/^fleet_vmids_leased (\d+)$/m)).toBeGreaterThan(0);
    expect(body).toMatch(/^fleet_slots_stale 0$/m);
  });
});

describe("what is not a sandbox", () => {
  /** As of now: the pages' own are kept for some seconds. */
  const readGauges = () => {
    if (bed.workers === null) throw new Error("the bed has no workers");
    return createFleetGauges(bed.workers.context)();
  };
  const gaugeOf = (body: string, series: string) =>
    Number(
      body
        .split("\n")
        .find((line) => line.startsWith(`${series} `))
        ?.split(" ")[1],
    );

  test("a pool: its members are nobody's team, and it tells how it serves, how soon and what it costs", async () => {
    await bed.fleet.pools.set("cmux-base", { min: 1, max: 1 });
    const ready = () => bed.redis.zcount(bed.keys.poolReady("cmux-base"), "(0", "+inf");
    await until(async () => (await ready()) === 1, "a member");
    const { sandboxId, warm } = await provisionOne(bed.fleet);
    expect(warm).toBe(true);
    await provisionOne(bed.fleet, { cores: 2 }); // none of the pool's
    await until(async () => (await ready()) === 1, "the next member");
    const body = await readGauges();
    const of = (name: string, more = "") => gaugeOf(body, `fleet_pool_${name}{template="cmux-base"${more}}`);
    expect([of("members", ',state="ready"'), of("target"), of("max"), of("failures")]).toEqual([1, 1, 1, 0]);
    expect([of("provisions_total", ',result="hit"'), of("provisions_total", ',result="miss"')]).toEqual([1, 0]);
    expect([of("claim_seconds_total"), of("idle_seconds_total")]).toEqual([expect.any(Number), expect.any(Number)]);
    expect(of("claim_seconds_total")).toBeLessThan(1);
    expect(of("making_seconds_total") / of("made_total")).toBeGreaterThan(0.01);
    const page = await get("/", { as: VERA });
    expect(page.body).toContain("Warm pools");
    expect(page.body).toContain("1 of 1 (100 %)");
    const [member = ""] = await bed.redis.zrange(bed.keys.poolReady("cmux-base"), "0", "-1");
    const list = (await get("/sandboxes?state=warm", { as: VERA })).body;
    expect(list).toContain(member);
    expect(list).toContain("pool of cmux-base");
    expect((await get(`/sandboxes/${sandboxId}`, { as: VERA })).body).not.toContain("pool of");
    await bed.fleet.pools.remove("cmux-base");
    await until(async () => (await ready()) === 0, "an end of the pool");
  });

  test("containers in quarantine, with what becomes of each and when", async () => {
    if (bed.workers === null) throw new Error("the bed has no workers");
    const { strays } = bed.workers.context;
    for (const vmid of [29_990, 29_991, 29_992]) bed.pve.faults.occupy(vmid, "pve1");
    await until(async () => (await strays.list()).size === 3, "the quarantine");
    const note = async (vmid: number, verdict: "later" | "keep", reason: string) => {
      const entry = {
        node: NodeName.parse("pve1"),
        since: Date.now(),
        lookAt: Date.now() + 3_600_000,
        verdict,
        reason,
      };
      await strays.note(Vmid.parse(vmid), entry);
    };
    await note(29_991, "later", "no record names it");
    await note(29_992, "keep", "of an <earlier> Redis");
    const body = await readGauges();
    const counts = ["new", "later", "keep", "remove"].map((one) =>
      gaugeOf(body, `fleet_quarantined_containers{verdict="${one}"}`),
    );
    expect(counts).toEqual([1, 1, 1, 0]);
    const page = (await get("/", { as: VERA })).body;
    expect(page).toContain('<a href="#quarantine">3 containers that no sandbox owns in quarantine</a>');
    const rows = [...page.slice(page.indexOf('id="quarantine"')).matchAll(/<tr role="row">(.*?)<\/tr>/gs)].slice(1);
    const cells = rows.map(([, row = ""]) => row.replaceAll(/<[^>]*>/g, "|").replaceAll(/\|+/g, "|"));
    expect(cells).toEqual([
      expect.stringMatching(/^\|29991\|pve1\|.*\|in 24 h\|.*no record names it\|$/),
      expect.stringMatching(/^\|29990\|pve1\|.*\|looked at in \d+ s\|/),
      expect.stringMatching(/^\|29992\|pve1\|.*\|when an operator says so\|.*of an &lt;earlier&gt; Redis\|$/),
    ]);
    for (const vmid of [29_990, 29_991, 29_992]) bed.pve.faults.vanish(vmid);
  });

  test("how many events a group of consumers has yet to get", async () => {
    const stop = new AbortController();
    const first = Promise.withResolvers<void>();
    const hold = Promise.withResolvers<void>();
    const consuming = bed.fleet.consume(
      "slow",
      async () => {
        first.resolve();
        await hold.promise;
      },
      { after: "$", signal: stop.signal },
    );
    const lag = async () => gaugeOf(await readGauges(), 'fleet_event_group_lag_events{group="slow"}');
    await until(async () => (await lag()) === 0, "the group");
    await provisionOne(bed.fleet);
    await first.promise;
    const behind = await lag();
    expect(behind).toBeGreaterThan(0);
    hold.resolve();
    await until(async () => (await lag()) === 0, "all events to be read");
    stop.abort();
    await consuming.catch(() => {});
  });
});

describe("what operators do", () => {
  test("cordon and uncordon a node, after being asked", async () => {
    const asked = await get("/nodes/pve2/cordon", { as: OLGA });
    expect(asked.body).toContain('<form class="row" method="post" action="/nodes/pve2/cordon">');
    expect((await post("/nodes/pve2/cordon", OLGA)).status).toBe(303);
    const cordonOf = async () => (await bed.fleet.nodes.list()).find(({ name }) => name === "pve2")?.cordon;
    expect(await cordonOf()).toMatchObject({ by: "olga" });
    await post("/nodes/pve2/uncordon", OLGA);
    expect(await cordonOf()).toBeUndefined();
  });

  test("destroy a sandbox, and cancel what runs", async () => {
    const { sandboxId } = await provisionOne(bed.fleet);
    expect((await get(`/sandboxes/${sandboxId}`, { as: OLGA })).body).toContain(`/sandboxes/${sandboxId}/destroy`);
    expect((await post(`/sandboxes/${sandboxId}/destroy`, OLGA)).headers.location).toBe(`/sandboxes/${sandboxId}`);
    await until(async () => (await bed.fleet.sandboxes.get(sandboxId)).state === "destroyed", "its end");
    const sleeper = await provisionOne(bed.fleet);
    const command = await bed.fleet.exec({ sandboxId: sleeper.sandboxId, command: "sleep 60" });
    await until(async () => (await command.status()).step === "sent", "the command to run");
    expect((await post(`/operations/${command.id}/cancel`, OLGA)).status).toBe(303);
    await until(async () => (await command.status()).status === "canceled", "the command to be canceled");
  });

  test("ask for a failed operation again, once; not where its input held secrets", async () => {
    const failed = await bed.fleet.provision({ template: "nowhere" });
    await failure(failed.result({ timeoutMs: 60_000 }), "template_not_found");
    expect((await get(`/operations/${failed.id}`, { as: OLGA })).body).toContain(`/operations/${failed.id}/retry`);
    expect((await get(`/operations/${failed.id}`, { as: VERA })).body).not.toContain("/retry");
    const pressed = await Promise.all([0, 1].map(() => post(`/operations/${failed.id}/retry`, OLGA)));
    const places = new Set(pressed.map(({ headers }) => headers.location));
    expect([places.size, [...places][0]]).toEqual([1, expect.stringMatching(/^\/operations\/op_/)]);
    const again = await bed.fleet.operation([...places][0]?.split("/")[2] ?? "");
    await failure(again.result({ timeoutMs: 60_000 }), "template_not_found");

    const secret = await bed.fleet.provision({ template: "nowhere", env: { A: "planted" } });
    await failure(secret.result({ timeoutMs: 60_000 }), "template_not_found");
    expect((await get(`/operations/${secret.id}`, { as: OLGA })).body).toContain("what was secret in its input");
    const refused = await post(`/operations/${secret.id}/retry`, OLGA);
    expect([refused.status, refused.body]).toEqual([400, expect.stringContaining("not_retriable")]);
    await failure(
      bed.fleet.retry((await bed.fleet.destroy({ sandboxId: (await provisionOne(bed.fleet)).sandboxId })).id),
      "not_retriable",
    );
  });

  const onBoard = (path: string, asked: Asked = {}) =>
    get(`/operate/api/queues/${path}`, {
      method: "PUT",
      as: OLGA,
      ...asked,
      headers: { origin: ops.url, ...asked.headers },
    });

  test("the board's buttons keep the promises: retry of what failed, garbage, removal and obliteration in the middle", async () => {
    const failed = await bed.fleet.provision({ template: "nowhere" });
    await failure(failed.result({ timeoutMs: 60_000 }), "template_not_found");
    const place = bed.workers?.context.queues.get("place");
    await until(async () => await place?.getJobState(failed.id).then((state) => state === "failed"), "its job to fail");
    expect((await onBoard(`place/${failed.id}/retry`)).status).toBe(204);
    await until(async () => (await place?.getJobState(failed.id)) === "completed", "the job to find that it has ended");
    expect((await failed.status()).error?.code).toBe("template_not_found");

    await place?.add("provision", JSON.parse('{"operation":"op_of_nobody","sandbox":7}'), { jobId: "garbage" });
    await until(async () => (await place?.getJobState("garbage")) === "completed", "garbage to be passed over");

    const handle = await bed.fleet.provision({ template: "cmux-base", node: "pve2", setup: ["sleep 1"] });
    const exec = "pve2:exec-pve2";
    const queue = bed.workers?.context.queues.get("exec-pve2");
    const job = await until(async () => {
      const { job: carrier = "" } = await bed.redis.hgetall(bed.keys.operation(handle.id));
      return (await queue?.getJobState(carrier)) === "active" ? carrier : null;
    }, "its set-up to run");
    expect((await onBoard(`${exec}/${job}/clean`)).status).toBe(409);
    expect((await onBoard(`${exec}/${job}/promote`)).status).toBeGreaterThanOrEqual(400);
    expect((await onBoard(`${exec}/pause`)).status).toBe(200);
    expect(await queue?.isPaused()).toBe(true);
    expect((await onBoard(`${exec}/resume`)).status).toBe(200);
    await queue?.obliterate({ force: true });
    expect(await queue?.getJob(job)).toBeUndefined();
    const { sandboxId, vmid } = await handle.result({ timeoutMs: 60_000 });
    expect(containerOf(bed, vmid)?.node).toBe("pve2"); // that there is no second one is looked at when the bed closes
    await run(bed.fleet, "destroy", { sandboxId });
  });

  test("a job that is removed in the middle of a provision costs nothing: the provision goes on", async () => {
    const queue = bed.workers?.context.queues.get(nodeQueue("pve1"));
    await queue?.pause();
    const handle = await bed.fleet.provision({ template: "cmux-base", node: "pve1" });
    const { job } = await until(async () => {
      const stored = await bed.redis.hgetall(bed.keys.operation(handle.id));
      return stored["queue"] === nodeQueue("pve1") && (await queue?.getJob(stored["job"] ?? "")) ? stored : null;
    }, "its job");
    const removed = await get(`/operate/api/queues/pve1:${nodeQueue("pve1")}/${job}/clean`, {
      method: "PUT",
      as: OLGA,
      headers: { origin: ops.url },
    });
    expect(removed.status).toBe(204);
    expect(await queue?.getJob(job ?? "")).toBeUndefined();
    await queue?.resume();
    const { sandboxId } = await handle.result({ timeoutMs: 60_000 });
    await run(bed.fleet, "destroy", { sandboxId });
  });
});
