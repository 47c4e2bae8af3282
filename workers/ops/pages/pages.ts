/** The fleet page and its like: rendered here, with actions for operators that ask once more before they act. */
import type { FastifyInstance, FastifyReply } from "fastify";
import { z } from "zod";
import { createFleet } from "../../../producers/index.ts";
import { FleetError } from "../../../shared/errors.ts";
import { NodeName, OperationId, POOL_TEAM, SandboxId } from "../../../shared/ids.ts";
import type { WorkerContext } from "../../context.ts";
import { passOver } from "../../pass-over.ts";
import { type Visitor, visitorOf } from "../access.ts";
import { html } from "./html.ts";
import { LIVE, layout, type Page, STYLE } from "./layout.ts";
import { batchTable, overview } from "./overview.ts";
import { readFleet, readSandboxes, SandboxQuery } from "./read.ts";
import { confirmation, operationPage, sandboxList, sandboxPage } from "./sandboxes.ts";

const send = (reply: FastifyReply, page: Page) =>
  reply.type("text/html; charset=utf-8").header("cache-control", "no-store").send(layout(page));

const acts = ({ role }: Visitor) => role === "operator";

export function addPages(app: FastifyInstance, context: WorkerContext): AsyncDisposable {
  const { store, log, config, redis } = context;
  const fleet = createFleet({ redis, prefix: config.FLEET_PREFIX });
  app.get("/style.css", (_, reply) => reply.type("text/css").header("cache-control", "max-age=300").send(STYLE));
  app.get("/live.js", (_, reply) => reply.type("text/javascript").header("cache-control", "max-age=300").send(LIVE));

  app.get("/", async (request, reply) => {
    const visitor = visitorOf(request);
    const main = overview(await readFleet(context), { acts: acts(visitor) });
    return send(reply, { title: "Fleet", visitor, main, live: true });
  });
  app.get("/sandboxes", async (request, reply) => {
    const query = SandboxQuery.parse(request.query);
    const main = sandboxList(await readSandboxes(context, query), query);
    return send(reply, { title: "Sandboxes", visitor: visitorOf(request), main, live: true });
  });
  app.get("/batches", async (request, reply) => {
    const main = batchTable(await context.batches.list(passOver(context)));
    return send(reply, { title: "Batches", visitor: visitorOf(request), main, live: true });
  });

  const loadSandbox = async (params: unknown) => {
    const { id } = fromPath(z.object({ id: SandboxId }), params);
    const sandbox = await store.loadSandbox(id);
    if (sandbox === null)
      throw new FleetError("sandbox_not_found", `there is no sandbox ${id}`, { facts: { sandbox: id } });
    return sandbox;
  };
  const loadOperation = async (params: unknown) => {
    const { id } = fromPath(z.object({ id: OperationId }), params);
    const operation = await store.load(id);
    if (operation === null)
      throw new FleetError("operation_unknown", `there is no operation ${id} (any more)`, { facts: { operation: id } });
    return operation;
  };
  app.get("/sandboxes/:id", async (request, reply) => {
    const visitor = visitorOf(request);
    const sandbox = await loadSandbox(request.params);
    const main = sandboxPage(sandbox, { acts: acts(visitor), maker: await store.load(sandbox.operation) });
    return send(reply, { title: `Sandbox ${sandbox.id}`, visitor, main, live: true });
  });
  app.get("/operations/:id", async (request, reply) => {
    const visitor = visitorOf(request);
    const operation = await loadOperation(request.params);
    const main = operationPage(operation, { acts: acts(visitor) });
    return send(reply, { title: `Operation ${operation.id}`, visitor, main, live: true });
  });

  /** GET asks, POST does. `access.ts` lets operators alone through to a POST. */
  const action = (
    path: string,
    ask: (params: unknown) => Promise<{ text: string; back: string }>,
    /** Where to go then; back when that is nowhere. */
    act: (params: unknown, by: string) => Promise<string | undefined>,
  ) => {
    app.get(path, async (request, reply) => {
      const visitor = visitorOf(request);
      if (!acts(visitor)) return reply.redirect("/");
      const { text, back } = await ask(request.params);
      const main = confirmation({ action: new URL(request.url, "http://here").pathname, text, back });
      return send(reply, { title: "Are you sure?", visitor, main });
    });
    app.post(path, async (request, reply) => {
      const by = visitorOf(request).name ?? "ops";
      const { back } = await ask(request.params);
      const to = await act(request.params, by);
      log.info(
        { by, action: path, ...z.record(z.string(), z.string()).parse(request.params) },
        "asked for on the ops pages",
      );
      return reply.redirect(to ?? back, 303);
    });
  };
  const nodeOf = (params: unknown) => fromPath(z.object({ node: NodeName }), params).node;
  action(
    "/nodes/:node/cordon",
    async (params) => ({ text: `Place nothing new on ${nodeOf(params)}? What is there stays.`, back: "/" }),
    async (params, by) => void (await fleet.nodes.cordon(nodeOf(params), { by })),
  );
  action(
    "/nodes/:node/uncordon",
    async (params) => ({ text: `Place sandboxes on ${nodeOf(params)} again?`, back: "/" }),
    async (params) => void (await fleet.nodes.uncordon(nodeOf(params))),
  );
  action(
    "/nodes/:node/drain",
    async (params) => {
      const node = nodeOf(params);
      const { sandboxes } = await fleet.nodes.rest(node);
      const text = `Cordon ${node} and destroy the ${sandboxes.length} sandboxes on it, with all that is in them?`;
      return { text, back: "/" };
    },
    async (params, by) => {
      const node = nodeOf(params);
      await fleet.nodes.cordon(node, { by, reason: "drained" });
      const { sandboxes } = await fleet.nodes.rest(node);
      for (const { id, state } of sandboxes) {
        if (state === "placing") continue;
        await fleet.destroy({ sandboxId: id }).catch((error: unknown) => {
          if (!(error instanceof FleetError) || error.code !== "sandbox_gone") throw error; // ended by itself meanwhile
        });
      }
    },
  );
  action(
    "/sandboxes/:id/destroy",
    async (params) => {
      const { id, team } = await loadSandbox(params);
      const whose = team === POOL_TEAM ? "a pool, which makes another" : `team ${team}`;
      return { text: `Destroy sandbox ${id} of ${whose}, with all that is in it?`, back: `/sandboxes/${id}` };
    },
    async (params) => void (await fleet.destroy({ sandboxId: (await loadSandbox(params)).id })),
  );
  action(
    "/operations/:id/cancel",
    async (params) => {
      const { id, kind } = await loadOperation(params);
      return { text: `Cancel ${kind} ${id}, and undo what it has made?`, back: `/operations/${id}` };
    },
    async (params) => void (await (await fleet.operation((await loadOperation(params)).id)).cancel()),
  );
  action(
    "/operations/:id/retry",
    async (params) => {
      const { id, kind, team } = await loadOperation(params);
      return { text: `Ask for ${kind} ${id} once more, for team ${team}?`, back: `/operations/${id}` };
    },
    async (params) => `/operations/${(await fleet.retry((await loadOperation(params)).id)).id}`,
  );

  app.setErrorHandler((error, request, reply) => {
    const known = error instanceof FleetError ? error : null;
    const status = error instanceof NoSuchPage ? 404 : known ? statusOf(known) : statusOfHttp(error);
    if (status >= 500) log.warn({ err: error }, "an ops page could not be shown");
    const text = known?.message ?? (status === 404 ? "there is no such page" : "this page can't be shown just now");
    return send(reply.code(status), {
      title: "That did not work",
      visitor: visitorOf(request),
      main: html`<p>${text}</p>`,
    });
  });
  app.setNotFoundHandler((request, reply) =>
    send(reply.code(404), {
      title: "Not found",
      visitor: visitorOf(request),
      main: html`<p>There is no such page.</p>`,
    }),
  );
  return fleet;
}

class NoSuchPage extends Error {}

function fromPath<S extends z.ZodType>(schema: S, params: unknown): z.output<S> {
  const parsed = schema.safeParse(params);
  if (parsed.success) return parsed.data;
  throw new NoSuchPage();
}

function statusOf({ code }: FleetError): number {
  if (code === "sandbox_not_found" || code === "operation_unknown") return 404;
  return code === "redis_unavailable" ? 503 : 400;
}

const statusOfHttp = (error: unknown): number =>
  z.object({ statusCode: z.number().int().min(400).max(599) }).safeParse(error).data?.statusCode ?? 500;
