/** The role `ops`: pages for people, metrics for Prometheus, probes for whatever keeps the process up. */
import fastify from "fastify";
import type { WorkerContext } from "../context.ts";
import { guardOps } from "./access.ts";
import { addBoards } from "./board.ts";
import { createFleetGauges } from "./fleet-gauges.ts";
import { addPages } from "./pages/pages.ts";
import { checkReadiness } from "./readiness.ts";

export interface Ops extends AsyncDisposable {
  /** Where the pages are, e.g. `http://127.0.0.1:3000`. */
  url: string;
}

/** What a request may cost before anybody has logged in. */
const LIMITS = { headerBytes: 16_384, bodyBytes: 65_536, headersMs: 10_000, requestMs: 30_000 };

/** Serves on OPS_HOST:OPS_PORT. */
export async function startOps(context: WorkerContext): Promise<Ops> {
  const { config, log, metrics } = context;
  await using stack = new AsyncDisposableStack();
  const app = fastify({
    forceCloseConnections: true,
    bodyLimit: LIMITS.bodyBytes,
    requestTimeout: LIMITS.requestMs,
    http: { maxHeaderSize: LIMITS.headerBytes, headersTimeout: LIMITS.headersMs },
  });
  stack.defer(() => app.close());
  guardOps(app, { logins: config.OPS_LOGINS, log });
  // Forms bring nothing that is read.
  app.addContentTypeParser("application/x-www-form-urlencoded", { parseAs: "string" }, (_, __, done) => done(null, {}));
  app.get("/healthz", async () => ({ status: "ok" }));
  app.get("/readyz", async (_, reply) => {
    const readiness = await checkReadiness(context);
    return reply.code(readiness.ready ? 200 : 503).send(readiness);
  });
  const readGauges = createFleetGauges(context);
  app.get("/metrics", async (_, reply) => {
    const texts = [await metrics.registry.metrics(), await readGauges()];
    return reply.type(metrics.registry.contentType).send(texts.join("\n"));
  });
  stack.use(addPages(app, context));
  stack.use(await addBoards(app, context));
  const url = await app.listen({ host: config.OPS_HOST, port: config.OPS_PORT });
  log.info({ url }, "ops pages are up");
  const resources = stack.move();
  return { url, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}
