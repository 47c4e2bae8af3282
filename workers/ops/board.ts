/** Bull Board: every queue of the fleet, read-only, on a local port. */
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { FastifyAdapter } from "@bull-board/fastify";
import type { Queue } from "bullmq";
import fastify from "fastify";
import { CONTROL, execQueue, nodeQueue, PLACE } from "../../shared/queues.ts";
import { loadTargets } from "../../shared/state/webhooks.ts";
import type { WorkerContext } from "../context.ts";

export interface Ops extends AsyncDisposable {
  /** Where the board is, e.g. `http://127.0.0.1:3000`. */
  url: string;
}

const REFRESH_MS = 5_000;

/** Serves the board on OPS_HOST:OPS_PORT. Jobs hold ids only, so there is nothing secret to show; nothing can be changed here. */
export async function startOps(context: WorkerContext): Promise<Ops> {
  const { config, redis, keys, queues, inventory, log } = context;
  const app = fastify({ forceCloseConnections: true });
  const serverAdapter = new FastifyAdapter();
  serverAdapter.setBasePath("/");
  const shown = new Set<string>();
  const board = createBullBoard({ queues: [], serverAdapter, options: { uiConfig: { boardTitle: "sandbox-fleet" } } });
  const show = (queue: Queue) => {
    if (shown.has(queue.name)) return;
    shown.add(queue.name);
    board.addQueue(new BullMQAdapter(queue, { readOnlyMode: true }));
  };
  const showAll = async () => {
    const nodes = inventory.current().nodes.flatMap(({ name }) => [nodeQueue(name), execQueue(name)]);
    for (const name of [PLACE, CONTROL, ...nodes]) show(queues.get(name));
    for (const { name } of await loadTargets(redis, keys)) show(queues.webhook(name));
  };
  await showAll();
  const timer = setInterval(() => {
    showAll().catch((error: unknown) => log.debug({ err: error }, "could not look for new queues"));
  }, REFRESH_MS);
  app.get("/healthz", async () => ({ status: "ok" }));
  await app.register(serverAdapter.registerPlugin(), { prefix: "/" });
  const url = await app.listen({ host: config.OPS_HOST, port: config.OPS_PORT });
  log.info({ url }, "Bull Board is up");
  return {
    url,
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await app.close();
    },
  };
}
