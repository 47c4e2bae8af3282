/** Bull Board: every queue of the fleet, grouped by node. A board that only shows for viewers, one that acts for operators. */
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { FastifyAdapter } from "@bull-board/fastify";
import type { Job, Queue } from "bullmq";
import type { FastifyInstance } from "fastify";
import type { OpsRole } from "../../shared/logins.ts";
import { CONTROL, execQueue, nodeQueue, PLACE, WARM } from "../../shared/queues.ts";
import { loadTargets } from "../../shared/state/webhooks.ts";
import type { WorkerContext } from "../context.ts";
import { startEvery } from "../control/every.ts";
import { visitorOf } from "./access.ts";
import { type Glance, JobData, loadGlances, toShort, toTitle } from "./glance.ts";

export const BOARD = { viewer: "/board", operator: "/operate" } as const;

const REFRESH_MS = 5_000;
/** Its page asks Google for a font, which ours may not. */
const FOREIGN_FONTS = /<link [^>]*fonts\.googleapis\.com[^>]*>/;
/** The board groups names by what is before it. */
const DELIMITER = ":";

/** Where a board shows a job. */
export function jobUrl(role: OpsRole, queue: string, job: string): string {
  const [, node] = /^(?:node|exec)-(.+)$/.exec(queue) ?? [];
  const name = node === undefined ? queue : `${node}${DELIMITER}${queue}`;
  return `${BOARD[role]}/queue/${encodeURIComponent(name)}/${encodeURIComponent(job)}`;
}

/** Jobs hold ids alone, so there is nothing secret to show. Taking a job away takes nothing from its operation: it gets another. */
export async function addBoards(app: FastifyInstance, context: WorkerContext): Promise<Disposable> {
  const show = [
    await addBoard(app, context, { path: BOARD.viewer, acts: false }),
    await addBoard(app, context, { path: BOARD.operator, acts: true }),
  ];
  const { queues, redis, keys, inventory, log } = context;
  const showAll = async () => {
    const targets = await loadTargets(redis, keys);
    const all: [string, Queue][] = [
      ["", queues.get(PLACE)],
      ["", queues.get(WARM)],
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
  return startEvery(REFRESH_MS, showAll, (error) => log.debug({ err: error }, "could not look for new queues"));
}

async function addBoard(app: FastifyInstance, context: WorkerContext, { path, acts }: { path: string; acts: boolean }) {
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
    part.addHook("onSend", async (_request, reply, payload) => {
      const isPage = typeof payload === "string" && String(reply.getHeader("content-type")).startsWith("text/html");
      return isPage ? payload.replace(FOREIGN_FONTS, "") : payload;
    });
    await part.register(serverAdapter.registerPlugin(), { prefix: path });
  });
  const shown = new Set<string>();
  return (group: string, queue: Queue) => {
    if (shown.has(queue.name)) return;
    shown.add(queue.name);
    board.addQueue(toAdapter(queue, context, { group, acts }));
  };
}

/** Asks, with a page of jobs, for what their operations' records say of them. */
class OperationsAdapter extends BullMQAdapter {
  readonly #context: WorkerContext;
  /** By a job's data, which is what formatters are given. */
  readonly #glances = new WeakMap<object, Glance>();

  constructor(queue: Queue, context: WorkerContext, options: ConstructorParameters<typeof BullMQAdapter>[1]) {
    super(queue, options);
    this.#context = context;
    this.setFormatter("name", ({ name, data }: Job) => toTitle(String(name), this.#glances.get(data) ?? {}));
    this.setFormatter("data", (data) => toShort(this.#glances.get(data) ?? data));
    this.setFormatter("returnValue", (value) => toShort(value));
  }

  override async getJobs(...asked: Parameters<BullMQAdapter["getJobs"]>): Promise<Job[]> {
    return this.#look(await super.getJobs(...asked));
  }

  override async getJob(id: string): Promise<Job | undefined> {
    const [job] = await this.#look([await super.getJob(id)].filter((one) => one !== undefined));
    return job;
  }

  async #look(jobs: Job[]): Promise<Job[]> {
    const carriers = jobs.filter(({ data }) => typeof data === "object" && data !== null && "operation" in data);
    const glances = await loadGlances(this.#context, carriers);
    for (const [at, { data }] of carriers.entries()) this.#glances.set(data, glances[at] ?? {});
    return jobs;
  }
}

function toAdapter(queue: Queue, context: WorkerContext, { group, acts }: { group: string; acts: boolean }) {
  return new OperationsAdapter(queue, context, {
    readOnlyMode: !acts,
    delimiter: DELIMITER,
    ...(group === "" ? {} : { prefix: `${group}${DELIMITER}` }),
    externalJobUrl({ data }) {
      const { operation } = JobData.safeParse(data).data ?? {};
      if (operation === undefined) return { displayText: "Fleet", href: "/" };
      return { displayText: "Operation and sandbox", href: `/operations/${encodeURIComponent(operation)}` };
    },
  });
}
