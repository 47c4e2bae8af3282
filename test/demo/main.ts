/** `npm run demo`: the whole product on one screen, on embedded defaults or on a real PVE. */
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { type Fleet, FleetError } from "../../producers/index.ts";
import { runTour, type Tour } from "./tour.ts";
import { startWorld, type World } from "./world.ts";

const HELP = `npm run demo -- [options]

  Starts Redis, a stand-in for Proxmox VE with 3 nodes and the fleet with its ops pages; provisions sandboxes, runs a
  command and a web server in each, exposes and fetches it, takes a snapshot, destroys them all, and shows what it took.
  With PVE_API_URL and PVE_API_TOKEN set it does the same on a real PVE; with REDIS_URL on that Redis.

  --once             end after the tour: exit code 0 when all of it worked
  --json             print the table as JSON (progress goes to stderr)
  --count N          how many sandboxes (6)
  --nodes N          nodes of the stand-in (3)
  --template NAME    what to clone (the first template found)
  --keep             do not destroy the sandboxes at the end of the tour; they go when the demo ends
  --help
`;

/** How long leaving may take when sandboxes must be destroyed first. */
const CLEANUP_MS = 30_000;

const { values } = parseArgs({
  options: {
    once: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    count: { type: "string", default: "6" },
    nodes: { type: "string", default: "3" },
    template: { type: "string" },
    keep: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

if (values.help) process.stdout.write(HELP);
else process.exitCode = await main();

async function main(): Promise<number> {
  const stop = new AbortController();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.on(name, () => stop.abort(new FleetError("canceled", "stopped by signal")));
  const started = performance.now();
  const log = (line: string) =>
    process.stderr.write(`[${((performance.now() - started) / 1000).toFixed(1).padStart(5)} s] ${line}\n`);
  try {
    const count = wholeNumber("--count", values.count, 100);
    await using world = await startWorld(process.env, {
      nodes: wholeNumber("--nodes", values.nodes, 20),
      template: values.template,
      log,
    });
    stop.signal.throwIfAborted();
    const watch = new AbortController();
    const watching = narrate(world.fleet, log, watch.signal);
    try {
      const tour = await runTour(world.fleet, {
        template: world.template,
        count,
        destroy: !values.keep,
        signal: stop.signal,
        log,
      });
      process.stdout.write(values.json ? `${toJson(tour, world)}\n` : `\n${toTable(tour)}\n`);
      if (!values.once) await stay(world, stop.signal);
      return worked(tour, values.keep) ? 0 : 1;
    } finally {
      await destroyRest(world.fleet, log);
      watch.abort();
      await watching;
    }
  } catch (thrown) {
    const reason = stop.signal.aborted ? stop.signal.reason : thrown;
    process.stderr.write(`demo: ${reason instanceof Error ? reason.message : String(reason)}\n`);
    if (!(reason instanceof FleetError)) console.error(reason);
    return stop.signal.aborted ? 130 : 1;
  }
}

function worked({ rows, destroyed }: Tour, kept: boolean): boolean {
  return rows.every(({ fetched }) => fetched === 200) && (kept || destroyed === rows.length);
}

/** Live progress: every state change of a sandbox, as the fleet's own events tell it. */
async function narrate(fleet: Fleet, log: (line: string) => void, signal: AbortSignal): Promise<void> {
  for await (const event of fleet.events({ after: "0", signal })) {
    if (event.type === "sandbox.changed") {
      const { state, node, vmid } = event.data;
      log(
        `${event.sandbox} ${state}${node === undefined ? "" : ` on ${node}`}${vmid === undefined ? "" : ` (VMID ${vmid})`}`,
      );
    } else if (event.type === "operation.failed") {
      log(`${event.operation} failed: ${event.data.code}`);
    }
  }
}

async function stay(world: World, signal: AbortSignal): Promise<void> {
  process.stderr.write(
    `\nStill running, for exploring (Ctrl-C ends it and leaves nothing behind):\n  Ops pages    ${world.pages} (sandboxes, queues in Bull Board)\n  Shell        REDIS_URL=${world.redisUrl} FLEET_PREFIX='${world.prefix}' npm run fleet -- ls\n`,
  );
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve());
    // A pending signal handler keeps no process alive; the servers do.
  });
}

/** What an interrupted tour has made is taken away again; on a real PVE nobody else would. */
async function destroyRest(fleet: Fleet, log: (line: string) => void): Promise<void> {
  const left = await fleet.sandboxes.list();
  if (left.length === 0) return;
  log(`destroying ${left.length} sandboxes`);
  await Promise.all(
    left.map(async ({ id }) => (await fleet.destroy({ sandboxId: id })).result({ timeoutMs: CLEANUP_MS })),
  );
}

function toTable({ rows }: Tour): string {
  const steps = ["clone", "configure", "start", "ready", "provision", "exec", "expose", "fetch", "destroy"];
  const table = new Table({
    head: ["sandbox", "node", "VMID", "URL", ...steps.map((step) => `${step} ms`)],
    style: { head: [], border: [] },
  });
  for (const row of rows)
    table.push([row.sandboxId, row.node, row.vmid, row.url, ...steps.map((step) => row.timings[step] ?? "")]);
  return table.toString();
}

function toJson({ rows, snapshot, destroyed }: Tour, { pages }: World): string {
  return JSON.stringify({ sandboxes: rows, snapshot, destroyed, pages }, null, 2);
}

function wholeNumber(name: string, text: string, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new FleetError("invalid_input", `${name} must be a whole number from 1 to ${most}`, {
    facts: { fields: [name] },
  });
}
