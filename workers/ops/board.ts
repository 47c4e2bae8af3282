/** Bull Board: every queue of the fleet, grouped by node. A board that only shows for viewers, one that acts for operators. */
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { FastifyAdapter } from "@bull-board/fastify";
import type { Queue } from "bullmq";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { CONTROL, execQueue, nodeQueue, PLACE } from "../../shared/queues.ts";
import { loadTargets } from "../../shared/state/webhooks.ts";
import type { WorkerContext } from "../context.ts";
import { visitorOf } from "./access.ts";

export const BOARD = { viewer: "/board", operator: "/operate" } as const;

const REFRESH_MS = 5_000;
/** The board groups names by what is before it. */
const DELIMITER = ":";

/** Jobs hold ids alone, so there is nothing secret to show. Taking a job away takes nothing from its operation: it gets another. */
export async function addBoards(app: FastifyInstance, context: WorkerContext): Promise<Disposable> {
  const show = [
    await addBoard(app, { path: BOARD.viewer, acts: false }),
    await addBoard(app, { path: BOARD.operator, acts: true }),
  ];
  const { queues, redis, keys, inventory, log } = context;
  const showAll = async () => {
    const targets = await loadTargets(redis, keys);
    const all: [string, Queue][] = [
      ["", queues.get(PLACE)],
      ["", queues.get(CONTROL)],
      ...inventory
        .current()
        .nodes.flatMap(({ name }) => [nodeQueue(name), execQueue(name)].map((one) => [name, queues.get(one)] as const))
        .map(([group, queue]): [string, Queue] => [group, queue]),
      ...targets.map(({ name }): [string, Queue] => ["webhooks", queues.webhook(name)]),
    ];
    for (const add of show) for (const [group, queue] of all) add(group, queue);
  };
  await showAll();
  const timer = setInterval(() => {
    showAll().catch((error: unknown) => log.debug({ err: error }, "could not look for new queues"));
  }, REFRESH_MS);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

async function addBoard(app: FastifyInstance, { path, acts }: { path: string; acts: boolean }) {
  const serverAdapter = new FastifyAdapter();
  serverAdapter.setBasePath(path);
  const board = createBullBoard({
    queues: [],
    serverAdapter,
    options: {
      uiConfig: {
        boardTitle: acts ? "sandbox-fleet: act" : "sandbox-fleet",
        overview: { groupByDelimiter: true },
        miscLinks: [{ text: "Fleet", url: "/" }],
        hideDocsLink: true,
      },
    },
  });
  await app.register(async (part) => {
    part.addHook("onRequest", async (request, reply) => {
      if (acts && visitorOf(request).role !== "operator") return reply.redirect(BOARD.viewer);
    });
    await part.register(serverAdapter.registerPlugin(), { prefix: path });
  });
  const shown = new Set<string>();
  return (group: string, queue: Queue) => {
    if (shown.has(queue.name)) return;
    shown.add(queue.name);
    board.addQueue(toAdapter(queue, { group, acts }));
  };
}

/** Of a job's data and result what is shown; more than ids is in neither. */
const Shown = z.looseObject({ sandbox: z.string().optional(), team: z.string().optional() });
const JobOfOperation = z.looseObject({ data: z.looseObject({ operation: z.string() }) });

function toAdapter(queue: Queue, { group, acts }: { group: string; acts: boolean }): BullMQAdapter {
  const adapter = new BullMQAdapter(queue, {
    readOnlyMode: !acts,
    delimiter: DELIMITER,
    ...(group === "" ? {} : { prefix: `${group}${DELIMITER}` }),
    externalJobUrl(job) {
      const parsed = JobOfOperation.safeParse(job);
      if (!parsed.success) return { displayText: "Fleet", href: "/" };
      const { operation } = parsed.data.data;
      return { displayText: "Operation and sandbox", href: `/operations/${encodeURIComponent(operation)}` };
    },
  });
  adapter.setFormatter("name", (job: { name?: unknown; data?: unknown; returnvalue?: unknown }) => {
    const { sandbox, team } = Shown.safeParse(job.data).data ?? {};
    return [String(job.name), sandbox, team].filter((part) => part !== undefined).join(" · ");
  });
  return adapter;
}
