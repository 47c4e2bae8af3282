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

/** What requests may cost before anybody has logged in. */
const LIMITS = {
  headerBytes: 16_384,
  bodyBytes: 65_536,
  headersMs: 10_000,
  requestMs: 30_000,
  /** Without a byte in either direction; between two requests. */
  silentMs: 60_000,
  keepMs: 10_000,
  /** Each takes a file descriptor of the process, of which a worker needs some itself. */
  connections: 512,
};

/** Serves on OPS_HOST:OPS_PORT. */
export async function startOps(context: WorkerContext, limits: Partial<typeof LIMITS> = {}): Promise<Ops> {
  const { config, log, metrics } = context;
  const { headerBytes, bodyBytes, headersMs, requestMs, silentMs, keepMs, connections } = { ...LIMITS, ...limits };
  await using stack = new AsyncDisposableStack();
  const app = fastify({
    forceCloseConnections: true,
    bodyLimit: bodyBytes,
    requestTimeout: requestMs,
    connectionTimeout: silentMs,
    keepAliveTimeout: keepMs,
    // Node looks for requests that take too long every 30 s.
    http: { maxHeaderSize: headerBytes, headersTimeout: headersMs, connectionsCheckingInterval: headersMs / 10 },
  });
  app.server.maxConnections = connections;
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
