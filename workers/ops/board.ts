/** Bull Board: every queue of the fleet, read-only, on a local port. */
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { FastifyAdapter } from "@bull-board/fastify";
import fastify from "fastify";
import { CONTROL, execQueue, nodeQueue, PLACE } from "../../shared/queues.ts";
import type { WorkerContext } from "../context.ts";

export interface Ops extends AsyncDisposable {
  /** Where the board is, e.g. `http://127.0.0.1:3000`. */
  url: string;
}

const REFRESH_MS = 5_000;

/** Serves the board on OPS_HOST:OPS_PORT. Jobs hold ids only, so there is nothing secret to show; nothing can be changed here. */
export async function startOps(context: WorkerContext): Promise<Ops> {
  const { config, queues, inventory, log } = context;
  const app = fastify({ forceCloseConnections: true });
  const serverAdapter = new FastifyAdapter();
  serverAdapter.setBasePath("/");
  const shown = new Set<string>();
  const board = createBullBoard({ queues: [], serverAdapter, options: { uiConfig: { boardTitle: "sandbox-fleet" } } });
  const showAll = () => {
    const names = [
      PLACE,
      CONTROL,
      ...inventory.current().nodes.flatMap(({ name }) => [nodeQueue(name), execQueue(name)]),
    ];
    for (const name of names.filter((one) => !shown.has(one))) {
      shown.add(name);
      board.addQueue(new BullMQAdapter(queues.get(name), { readOnlyMode: true }));
    }
  };
  showAll();
  const timer = setInterval(showAll, REFRESH_MS);
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
