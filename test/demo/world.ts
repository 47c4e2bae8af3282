/** What the demo runs on: Redis, PVE (the stand-in, or a real one), the fleet with its ops pages, and a client. */
import { randomBytes } from "node:crypto";
import { createFleet, type Fleet, FleetError } from "../../producers/index.ts";
import { loadWorkerConfig } from "../../shared/config.ts";
import { startFleetWorkers } from "../../workers/fleet.ts";
import { createLogger } from "../../workers/log.ts";
import { startOps } from "../../workers/ops/server.ts";
import { startPve } from "../pve/index.ts";
import { startEmbeddedRedis } from "../redis.ts";

export interface World extends AsyncDisposable {
  fleet: Fleet;
  /** Where the ops pages are. */
  pages: string;
  redisUrl: string;
  prefix: string;
  nodes: readonly string[];
  /** The template that the tour clones. */
  template: string;
}

const BOARD_PORT = 3000;

type Env = Readonly<Record<string, string | undefined>>;

/** Starts everything on embedded defaults; REDIS_URL, PVE_API_URL with PVE_API_TOKEN, and every other setting win over them. */
export async function startWorld(
  env: Env,
  options: { nodes: number; template: string | undefined; log: (line: string) => void },
): Promise<World> {
  const { log } = options;
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await startEmbeddedRedis({ log }));
  const pve = env["PVE_API_URL"] ? env : await startStandIn(stack, options.nodes, log);
  const config = loadWorkerConfig({
    FLEET_SECRET_KEY: randomBytes(32).toString("hex"),
    LOG_LEVEL: "warn",
    FLEET_SHUTDOWN_SECONDS: "1",
    // A prefix of its own, so that a demo on somebody's Redis meets nobody's fleet.
    FLEET_PREFIX: `{demo-${randomBytes(4).toString("hex")}}`,
    ...env,
    ...pve,
    REDIS_URL: redis.url,
  });
  const workers = stack.use(await startFleetWorkers(config, createLogger(config.LOG_LEVEL)));
  const ops = stack.use(await startBoard(workers.context, env["OPS_PORT"] === undefined));
  const secretKey = config.FLEET_SECRET_KEY;
  const fleet = stack.use(createFleet({ redis: redis.url, prefix: config.FLEET_PREFIX, secretKey }));
  const { nodes, replicas } = workers.context.inventory.current();
  const template = options.template ?? replicas[0]?.name;
  if (template === undefined)
    throw new FleetError(
      "template_not_found",
      "the cluster has no LXC template that this token may see; make one, or name it with --template",
    );
  log(`ops pages, Bull Board among them: ${ops.url}`);
  const resources = stack.move();
  return {
    fleet,
    pages: ops.url,
    redisUrl: redis.url,
    prefix: config.FLEET_PREFIX,
    nodes: nodes.map(({ name }) => name),
    template,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

async function startStandIn(stack: AsyncDisposableStack, nodes: number, log: (line: string) => void): Promise<Env> {
  // No search domain: names of a stand-in's containers resolve nowhere, their addresses answer.
  const specs = Array.from({ length: nodes }, (_, at) => ({ name: `pve${at + 1}`, dnsSearch: "" }));
  const pve = stack.use(await startPve({ nodes: specs }));
  log(`PVE: a stand-in with ${nodes} nodes at ${pve.url} (set PVE_API_URL and PVE_API_TOKEN for a real one)`);
  return {
    PVE_API_URL: pve.url,
    PVE_API_TOKEN: pve.token,
    PVE_TLS_FINGERPRINT: pve.fingerprint,
    SANDBOX_CIDRS: "127.0.0.0/8",
  };
}

/** The usual port; another one where that is taken and nobody asked for it by name. */
async function startBoard(context: Parameters<typeof startOps>[0], mayMove: boolean) {
  try {
    return await startOps(context);
  } catch (error) {
    const taken = error instanceof Error && "code" in error && error.code === "EADDRINUSE";
    if (!taken) throw error;
    if (!mayMove)
      throw new FleetError("not_configured", `OPS_PORT ${context.config.OPS_PORT} is taken; choose another`, {
        facts: { variables: ["OPS_PORT"] },
      });
    return startOps({
      ...context,
      config: { ...context.config, OPS_PORT: context.config.OPS_PORT === BOARD_PORT ? 0 : BOARD_PORT },
    });
  }
}
