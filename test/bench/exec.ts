/** The bench of commands: through the fleet and straight to the exec daemon, and the fleet against a bare queue. */
import { parseArgs } from "node:util";
import { Queue, QueueEvents } from "bullmq";
import { Agent, request } from "undici";
import type { Fleet } from "../../producers/index.ts";
import { EXECD_PORT } from "../../shared/jobs/fields.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { createSecretStore } from "../../shared/state/secrets.ts";
import type { Bench } from "./bench.ts";
import { quantile, round, spread, wholeNumber } from "./figures.ts";
import { startProgram, startWorld, TEMPLATE, type World } from "./world.ts";

const AT_ONCE = 64;
/** Commands of one burst; one of a bare queue takes far less time. */
const BURST = { command: 400, instant: 1_500, bare: 6_000 };
/** Commands of each kind that do not count; through the fleet so many that its code is compiled, as after a while in service. */
const WARM_UP = { command: 200, instant: 4_000 };
const PATIENCE = { timeoutMs: 60_000 };
const COMMAND = "true";

const HELP = `npm run bench -- exec [options]

  What the fleet adds to a command, against the exec daemon of a container of the stand-in for Proxmox VE, which starts a
  bash for each, and against one that answers at once. Redis, the stand-in, the workers and the instant daemon are
  processes of their own, all on this machine, whose cores they share. All in turns; ${WARM_UP.command} commands of each kind and
  ${WARM_UP.instant} to the instant daemon warm up and do not count.

  --singles N        commands one at a time (500)
  --rounds N         rounds; each has its share of the singles and a burst of each kind, ${AT_ONCE} at once (5)
  --workers N        worker processes (1)
  --json             {overheadMs: {p50, p99}, rateOverDirect, rateOverBareQueue}
  --help

  overheadMs         of pairs, one after the other: from before the producer's call to its result through the fleet, less
                     the same command sent straight to the daemon over a connection that is kept.
  rateOverDirect     commands a second through the fleet over those sent straight to the daemon; median of the rounds.
  rateOverBareQueue  commands a second through the fleet to the daemon that answers at once, over jobs a second of a bare
                     BullMQ queue: Queue.add, a Worker that does nothing in a process of its own, and
                     its event on QueueEvents, on the same Redis and as many at once; median of the rounds.
`;

export interface ExecReport {
  overheadMs: { p50: number; p99: number };
  rateOverDirect: number;
  rateOverBareQueue: number;
}

export const exec: Bench = {
  summary: "overhead of a command, its rate against the exec daemon's own and a bare queue's",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        singles: { type: "string", default: "500" },
        rounds: { type: "string", default: "5" },
        workers: { type: "string", default: "1" },
        json: { type: "boolean", default: false },
      },
    });
    const singles = wholeNumber("--singles", values.singles);
    const rounds = wholeNumber("--rounds", values.rounds);
    await using world = await startWorld({ workers: wholeNumber("--workers", values.workers) });
    const log = (line: string) => void (values.json || process.stderr.write(`${line}\n`));
    const measured = await measure(world, { singles, rounds, log });
    const report = toReport(measured);
    process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(report, measured));
    return 0;
  },
};

/** Operations a second. */
interface Rates {
  direct: number;
  fleet: number;
  instant: number;
  bare: number;
}

interface Measured {
  pairs: { fleetMs: number; directMs: number }[];
  rounds: Rates[];
}

/** In turns, so that a machine that is slow for a while is slow for all of them. */
async function measure(
  world: World,
  { singles, rounds, log }: { singles: number; rounds: number; log: (line: string) => void },
): Promise<Measured> {
  const { fleet, redisUrl, prefix } = world;
  await using stack = new AsyncDisposableStack();
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const real = await provision(fleet);
  const straight = stack.use(await createDirect(world, redis, real));
  const direct = () => straight.run(COMMAND);
  const through = (sandboxId: string) => async () => {
    const { exitCode } = await (await fleet.exec({ sandboxId, command: COMMAND })).result(PATIENCE);
    if (exitCode !== 0) throw new Error(`the command ended with ${exitCode}`);
  };
  const instantly = await provision(fleet);
  const daemon = stack.use(await startProgram(new URL("./instant-execd.ts", import.meta.url), []));
  // No container is like that: the record is told where it is.
  await redis.hset(createKeys(prefix).sandbox(instantly.sandboxId), "address", daemon.told["address"] ?? "");
  const bare = stack.use(await startBareQueue(redisUrl));
  const kinds = { direct, fleet: through(real.sandboxId), instant: through(instantly.sandboxId), bare: bare.run };
  await rate(kinds.instant, WARM_UP.instant);
  for (const run of Object.values(kinds)) await rate(run, WARM_UP.command);

  const measured: Measured = { pairs: [], rounds: [] };
  for (let turn = 0; turn < rounds; turn++) {
    const until = Math.round((singles * (turn + 1)) / rounds);
    while (measured.pairs.length < until)
      measured.pairs.push({ directMs: await took(kinds.direct), fleetMs: await took(kinds.fleet) });
    const rates = {
      direct: await rate(kinds.direct, BURST.command),
      fleet: await rate(kinds.fleet, BURST.command),
      instant: await rate(kinds.instant, BURST.instant),
      bare: await rate(kinds.bare, BURST.bare),
    };
    measured.rounds.push(rates);
    log(
      `a second: ${Object.entries(rates)
        .map(([kind, value]) => `${kind} ${Math.round(value)}`)
        .join(", ")}`,
    );
  }
  return measured;
}

async function provision(fleet: Fleet) {
  return (await fleet.provision({ template: TEMPLATE, cores: 1 })).result(PATIENCE);
}

async function took(run: () => Promise<unknown>): Promise<number> {
  const begun = performance.now();
  await run();
  return performance.now() - begun;
}

/** How many end in a second, with `AT_ONCE` of them at work at every moment. */
async function rate(run: () => Promise<unknown>, count: number): Promise<number> {
  let left = count;
  const lane = async () => {
    while (left-- > 0) await run();
  };
  const tookMs = await took(() => Promise.all(Array.from({ length: AT_ONCE }, lane)));
  return (1_000 * count) / tookMs;
}

/** A client of the daemon alone, as one that had the sandbox's address and token would write it. */
async function createDirect(
  { prefix, secretKey }: World,
  redis: RedisConnection,
  { sandboxId, address }: { sandboxId: string; address: string | null },
) {
  const secrets = createSecretStore(redis, createKeys(prefix), [Buffer.from(secretKey, "hex")]);
  const { execToken } = await secrets.get(sandboxId);
  const agent = new Agent({ connections: AT_ONCE });
  return {
    async run(command: string) {
      const reply = await request(`http://${address}:${EXECD_PORT}/exec`, {
        dispatcher: agent,
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${execToken}` },
        body: JSON.stringify({ command, timeout_ms: 300_000 }),
      });
      const text = await reply.body.text();
      if (!text.includes('"code":0')) throw new Error(`the daemon answered ${reply.statusCode} ${text}`);
    },
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}

async function startBareQueue(redisUrl: string) {
  await using stack = new AsyncDisposableStack();
  const [prefix, name] = ["{bare}", "noop"];
  stack.use(
    await startProgram(new URL("./bare-worker.ts", import.meta.url), [redisUrl, prefix, name, String(AT_ONCE)]),
  );
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const queue = stack.adopt(new Queue(name, { connection: redis, prefix }), (one) => one.close());
  const events = stack.adopt(new QueueEvents(name, { connection: redis, prefix }), (one) => one.close());
  // One listener for all: job.waitUntilFinished adds several for each job, which would slow the queue down.
  const waiting = new Map<string, () => void>();
  events.on("completed", ({ jobId }) => waiting.get(jobId)?.());
  await events.waitUntilReady();
  let count = 0;
  const resources = stack.move();
  return {
    async run() {
      const jobId = `job-${++count}`;
      const ended = new Promise<void>((resolve) => waiting.set(jobId, resolve));
      await queue.add("noop", {}, { jobId, removeOnComplete: { count: 1_000 } });
      await ended;
      waiting.delete(jobId);
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

const overheadsOf = ({ pairs }: Measured) => pairs.map(({ fleetMs, directMs }) => fleetMs - directMs);
const overDirect = ({ rounds }: Measured) => rounds.map(({ fleet, direct }) => fleet / direct);
const overBare = ({ rounds }: Measured) => rounds.map(({ instant, bare }) => instant / bare);

function toReport(measured: Measured): ExecReport {
  const overheads = overheadsOf(measured);
  return {
    overheadMs: { p50: round(quantile(overheads, 0.5), 2), p99: round(quantile(overheads, 0.99), 2) },
    rateOverDirect: round(quantile(overDirect(measured), 0.5), 3),
    rateOverBareQueue: round(quantile(overBare(measured), 0.5), 3),
  };
}

function toText({ overheadMs, rateOverDirect, rateOverBareQueue }: ExecReport, measured: Measured): string {
  const { pairs, rounds } = measured;
  const median = (values: number[]) => round(quantile(values, 0.5), 1);
  const of = (kind: keyof Rates) => `${median(rounds.map((one) => one[kind]))}`;
  return `
one command        median ${median(pairs.map(({ fleetMs }) => fleetMs))} ms of ${pairs.length}, straight to the daemon ${median(pairs.map(({ directMs }) => directMs))} ms
  overhead         median ${overheadMs.p50} ms, p99 ${overheadMs.p99} ms (at most 6 ms and 25 ms are promised)
${AT_ONCE} at once         ${of("fleet")} a second, straight to the daemon ${of("direct")}
  over direct      median ${rateOverDirect} (${spread(overDirect(measured), 3)}; at least 0.6 is promised)
instant daemon     ${of("instant")} a second, bare queue ${of("bare")}
  over bare queue  median ${rateOverBareQueue} (${spread(overBare(measured), 3)}; at least 0.12 is promised)
`;
}
