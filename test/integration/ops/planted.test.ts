/** Secrets are planted everywhere, every kind of job goes its way and fails; then all that anybody is shown is searched. */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { JOB_NAMES } from "../../../producers/jobs.ts";
import { toFleetError } from "../../../shared/errors.ts";
import { formatLogin } from "../../../shared/logins.ts";
import { type Collector, startCollector } from "../../otlp-collector.ts";
import { command } from "../command.ts";
import { dump } from "../fleet/dump.ts";
import { type Bed, containerOf, startBed, until } from "../fleet/harness.ts";
import type { WorkerProcess } from "../fleet/worker-process.ts";

/** What must come out nowhere; the text of commands is in operations' records as well. */
const PLANTED = {
  env: "planted-a1-env-of-a-sandbox",
  envOfExec: "planted-b2-env-of-a-command",
  stdin: "planted-c3-stdin-of-a-command",
  content: "planted-d4-content-of-a-file",
  typed: "planted-e5-typed-into-a-shell",
  password: "planted-f6-password-of-olga",
  gate: "planted-a7-secret-of-the-proxy-at-the-gate",
  collector: "planted-b8-header-for-the-collector",
  webhook: `whsec_${Buffer.from("planted-c9-secret-of-a-webhook--").toString("base64")}`,
};
const COMMANDS = { setup: "planted-d0-text-of-a-setup", command: "planted-e1-text-of-a-command" };

let bed: Bed;
let collector: Collector;
let receiver: Server;
let worker: WorkerProcess;
let url: string;
let login: string;
const posted: string[] = [];

beforeAll(async () => {
  collector = await startCollector();
  receiver = createServer(async (request, reply) => {
    posted.push(JSON.stringify(request.headers), (await buffer(request)).toString("utf8"));
    reply.writeHead(posted.length < 5 ? 500 : 204).end();
  });
  receiver.listen(0, "127.0.0.1");
  await once(receiver, "listening");
  const hook = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/hook`; // of a TCP server
  login = await formatLogin("operator", "olga", PLANTED.password);
  bed = await startBed({ pve: { nodes: 1 }, ssh: {}, workers: "none" });
  worker = await bed.startProcess({
    REDIS_URL: bed.redisServer.urlFor("worker"),
    LOG_LEVEL: "trace",
    FLEET_ROLES: "worker,ops,gate",
    OPS_PORT: "0",
    OPS_LOGINS: login,
    GATE_PORT: "0",
    GATE_PROXY_SECRET: PLANTED.gate,
    PVE_PUBLIC_DOMAIN: "sandbox.test",
    FLEET_WEBHOOKS: JSON.stringify([
      { name: "app", url: hook, secrets: [PLANTED.webhook], allowPrivate: ["127.0.0.0/8"] },
    ]),
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_EXPORTER_OTLP_HEADERS: `x-key=${PLANTED.collector}`,
  });
  url = await until(() => /"url":"(http:[^"]+)","msg":"ops pages are up"/.exec(worker.output())?.[1], "the ops pages");
});
afterAll(async () => {
  await bed?.close();
  await collector?.[Symbol.asyncDispose]();
  receiver?.closeAllConnections();
  receiver?.close();
});

const authorization = `Basic ${Buffer.from(`olga:${PLANTED.password}`).toString("base64")}`;
async function page(path: string, init: RequestInit = {}): Promise<string> {
  const reply = await fetch(`${url}${path}`, { ...init, headers: { authorization, ...init.headers } });
  return `${reply.status} ${JSON.stringify([...reply.headers])} ${await reply.text()}`;
}

/** Every kind, some of them to a failure. Returns what callers were told. */
async function tour(): Promise<{ told: string[]; token: string; link: string }> {
  const { fleet } = bed;
  const told: string[] = [];
  const seen = async <T>(asked: Promise<{ result(wait: { timeoutMs: number }): Promise<T> }>): Promise<T | null> => {
    try {
      const result = await (await asked).result({ timeoutMs: 60_000 });
      told.push(JSON.stringify(result));
      return result;
    } catch (error) {
      const { message, facts, stack } = toFleetError(error);
      told.push(`${message} ${JSON.stringify(facts)} ${stack}`);
      return null;
    }
  };
  const services = [{ name: "web", port: 80, auth: "link" as const }];
  const setup = [`test "$A" != "" # ${COMMANDS.setup}`];
  const made = await seen(fleet.provision({ template: "cmux-base", env: { A: PLANTED.env }, setup, services }));
  if (made === null) throw new Error(told.join());
  const { sandboxId } = made;
  const token = containerOf(bed, made.vmid)?.tokenInForce ?? "";
  const secretly = { env: { B: PLANTED.envOfExec }, stdin: PLANTED.stdin };
  await seen(fleet.exec({ sandboxId, command: `cat >/dev/null; exit 3 # ${COMMANDS.command}`, ...secretly }));
  await seen(fleet.exec({ sandboxId, command: `true ${COMMANDS.command}`, user: "nobody-here", ...secretly }));
  await seen(fleet.exec({ sandboxId, command: `sleep 9 # ${COMMANDS.command}`, timeoutMs: 200, ...secretly }));
  await seen(fleet.upload({ sandboxId, path: "/workspace/file" }, PLANTED.content));
  await seen(fleet.upload({ sandboxId, path: "/proc/nowhere/file" }, PLANTED.content));
  await seen(fleet.download({ sandboxId, path: "/workspace/file" }));
  await seen(fleet.download({ sandboxId, path: "/workspace/none" }));
  const shell = await fleet.shell({ sandboxId, silenceMs: 5_000 });
  await shell.write("stty -echo; echo hi''dden\r");
  for await (const chunk of shell.output()) if ("text" in chunk && chunk.text.includes("hidden")) break;
  await shell.write(`: ${PLANTED.typed}\rexit 4\r`); // a terminal that echoes would have it in its output
  await seen(Promise.resolve(shell));
  await seen(fleet.expose({ sandboxId, name: "api", port: 81 }));
  const link = await seen(fleet.link({ sandboxId, name: "web" }));
  await seen(fleet.hide({ sandboxId, name: "api" }));
  const snapshot = await seen(fleet.snapshot({ sandboxId, name: "s1" }));
  await seen(fleet.snapshot({ sandboxId, name: "s1" }));
  if (snapshot) await seen(fleet.restore({ sandboxId, snapshotId: snapshot.snapshotId }));
  if (snapshot) await seen(fleet.delete_snapshot({ sandboxId, snapshotId: snapshot.snapshotId }));
  await seen(fleet.power({ sandboxId, action: "pause" }));
  await seen(fleet.power({ sandboxId, action: "resume" }));
  await seen(fleet.configure({ sandboxId, cores: 2 }));
  await seen(fleet.update({ sandboxId, metadata: { a: "b" } }));
  await seen(fleet.template({ sandboxId, name: "kept" }));
  const files = [{ path: "/etc/planted", content: Buffer.from(PLANTED.content).toString("base64") }];
  const from = { template: "cmux-base" };
  await seen(
    fleet.build({ name: "built", from, env: { A: PLANTED.env }, files, setup, test: `exit 9 # ${COMMANDS.command}` }),
  );
  await seen(fleet.replicate({ template: "kept", node: "pve1" }));
  await seen(fleet.migrate({ sandboxId, target: "pve1" }));
  await seen(fleet.adopt({ node: "pve1", vmid: 999 }));
  await seen(
    fleet.provision({ template: "cmux-base", env: { A: PLANTED.env }, setup: [`exit 9 # ${COMMANDS.setup}`] }),
  );
  await seen(fleet.destroy({ sandboxId }));
  return { told, token, link: new URL(link?.url ?? "http://none/?none").search };
}

test("what is secret is where it is sealed, and in nothing that anybody is shown", async () => {
  const { key } = await bed.fleet.keys.create({ name: "ci", team: "default" });
  const { told, token, link } = await tour();
  const cli = await command(bed.env, "exec", "nowhere", "--env", `C=${PLANTED.envOfExec}`, "--", COMMANDS.command);
  expect([cli.code !== 0, cli.err !== ""]).toEqual([true, true]);
  const wrong = await page("/", { headers: { authorization: `Basic ${btoa(`olga:${PLANTED.password}x`)}` } });

  const stored = await dump(bed.redis);
  const ids = [...new Set(stored.match(/op_[a-z0-9]{16}/g))];
  const sandboxes = [...new Set(stored.match(/sbx_[a-z0-9]{16}/g))];
  const kinds = await Promise.all(ids.map((id) => bed.redis.hget(bed.keys.operation(id), "kind")));
  expect(JOB_NAMES.filter((kind) => !kinds.includes(kind))).toEqual([]);
  const queues = ["place", "control", "pve1:node-pve1", "pve1:exec-pve1", "webhooks:webhook-app"];
  const boards = ["/board", "/operate"].flatMap((board) => [
    board,
    ...queues.map(
      (queue) => `${board}/api/queues?activeQueue=${encodeURIComponent(queue)}&status=latest&page=1&jobsPerPage=200`,
    ),
    `${board}/api/redis/stats`,
  ]);
  const jobs = ids.flatMap((id) =>
    ["place", "pve1:node-pve1", "pve1:exec-pve1"].map(
      (queue) => `/board/api/queues/${encodeURIComponent(queue)}/${id}`,
    ),
  );
  const paths = [
    ...["/", "/sandboxes", "/batches", "/metrics", "/readyz", "/healthz", "/nothing"],
    ...ids.flatMap((id) => [`/operations/${id}`, `/operations/${id}/retry`]),
    ...sandboxes.flatMap((id) => [`/sandboxes/${id}`, `/sandboxes/${id}/destroy`]),
    ...boards,
    ...jobs,
  ];
  const pages = await Promise.all(paths.map(async (path) => `${path}\n${await page(path)}`));
  const events: string[] = [];
  for await (const event of bed.fleet.events({ after: "0" })) {
    events.push(JSON.stringify(event));
    if (event.type === "sandbox.changed" && event.data.state === "destroyed") break;
  }
  await until(() => posted.some((one) => one.includes("destroyed")), "the last message to the webhook");
  await worker.end("SIGTERM"); // sends what is left of the traces

  const sealed = {
    ...PLANTED,
    hash: login.split(":")[2] ?? "",
    stdinInBase64: Buffer.from(PLANTED.stdin).toString("base64"),
    contentInBase64: Buffer.from(PLANTED.content).toString("base64"),
    webhookBytes: "planted-c9-secret-of-a-webhook",
    apiKey: key,
    execToken: token,
    pveToken: bed.pve.token.split("=")[1] ?? "",
    secretKey: String(bed.env["FLEET_SECRET_KEY"]),
    sshKey: readFileSync(bed.ssh?.env["FLEET_SSH_KEY"] ?? "", "utf8").split("\n")[1] ?? "",
    redisPassword: new URL(bed.redisServer.urlFor("worker")).href.match(/\/\/[^@]+@/)?.[0] ?? "",
  };
  const shown = { ...sealed, ...COMMANDS, link };
  for (const [name, secret] of Object.entries(shown)) expect(secret.length, name).toBeGreaterThan(12);
  const places: [string, string, Record<string, string>][] = [
    ["Redis", stored, sealed],
    ["events", events.join("\n"), shown],
    ["pages and boards", pages.join("\n"), shown],
    ["a wrong login's page", wrong, shown],
    ["the log", worker.output(), shown],
    ["webhooks", posted.join("\n"), shown],
    ["traces", collector.raw(), shown],
    ["callers' results and errors", told.join("\n"), { ...shown, link: "\0" }], // whoever asks for a link gets it
    ["the CLI's errors", cli.err, shown],
    ["PVE's request log", JSON.stringify(bed.pve.log()), { ...shown, execToken: "\0" }], // a hookscript reads it
    ["PVE's tasks", JSON.stringify(bed.pve.tasks()), shown],
  ];
  const found = places.flatMap(([place, text, secrets]) =>
    Object.entries(secrets).flatMap(([name, secret]) => (text.includes(secret) ? [`${name} in ${place}`] : [])),
  );
  expect(found).toEqual([]);
  // The search sees what is there.
  for (const [place, text] of places)
    if (!place.includes("wrong") && !place.includes("CLI") && !place.includes("tasks") && !place.startsWith("PVE"))
      expect(text, place).toMatch(/(op|sbx)_[a-z0-9]{16}/);
});
