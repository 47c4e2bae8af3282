/** Whose turn it is in `place`: the real line, of which the test plays the placer, so that turns can be counted. */
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Fleet } from "../../producers/index.ts";
import { newFence, type OperationId } from "../../shared/ids.ts";
import { PLACE } from "../../shared/queues.ts";
import type { Writer } from "../../shared/state/operations.ts";
import type { WorkerContext } from "../../workers/context.ts";
import { settleAborts } from "../../workers/control/aborts.ts";
import { sweepOperations } from "../../workers/control/sweep.ts";
import { createLogger } from "../../workers/log.ts";
import { createMetrics } from "../../workers/metrics.ts";
import { addReleased } from "../../workers/run/add-jobs.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { createRig, type Rig } from "./producers/rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

interface Picked {
  id: OperationId;
  team: string;
  writer: Writer;
  seq: number;
}

/** The line of a fleet, with a placer that does what it is told. */
function createLine(rig: Rig) {
  const { redis, keys, store, queues } = rig;
  const context = {
    redis,
    keys,
    store,
    queues,
    metrics: createMetrics(),
    log: createLogger("silent"),
  } as unknown as WorkerContext; // what a line needs
  const clients = new Map<string, Fleet>();
  const queue = queues.get(PLACE);

  const arrive = async (team: string, batch = false): Promise<OperationId> => {
    const fleet = clients.get(team) ?? rig.client({ team });
    clients.set(team, fleet);
    const { id } = await fleet.provision({ template: "base", ...(batch ? { priority: "batch" } : {}) });
    return id;
  };
  /** Takes jobs as BullMQ does until one has its turn. */
  const pick = async (): Promise<Picked | null> => {
    while (true) {
      const [jobId] = await redis.zpopmin(`${keys.prefix}:${PLACE}:prioritized`);
      if (jobId === undefined) return null;
      const job = await queue.getJob(jobId);
      if (!job) throw new Error(`no job ${jobId}`);
      const lockKey = `${keys.prefix}:${PLACE}:${jobId}:lock`;
      await redis.set(lockKey, "mine");
      const id = job.data.operation;
      const claim = await store.claim(id, newFence(), { job: jobId, lockKey, lockToken: "mine" });
      await redis.del(lockKey);
      await job.remove();
      if (claim.outcome === "again") await addReleased(context, [id]);
      if (claim.outcome === "claimed")
        return { id, team: claim.operation.team, writer: claim.writer, seq: claim.operation.seq };
    }
  };
  const move = async ({ id, writer, seq }: Picked, to: string) => {
    const operation = { queue: to, seq: seq + 1, job: `${id}.${seq + 1}` };
    await addReleased(context, await store.write(writer, { operation, leavesLine: to !== PLACE }));
  };
  const back = (id: OperationId) => addReleased(context, [id]);
  return {
    context,
    arrive,
    pick,
    /** The team of the next one, which is placed. */
    async serve(): Promise<string | null> {
      const picked = await pick();
      if (picked) await move(picked, "node-pve1");
      return picked?.team ?? null;
    },
    /** The next one can't be placed now; `back` when it is to be looked at again. */
    async aside(): Promise<Picked | null> {
      const picked = await pick();
      if (picked) await addReleased(context, await store.write(picked.writer, { leavesLine: true }));
      return picked;
    },
    back,
    /** Its node gives it back. */
    async giveBack(picked: Picked): Promise<void> {
      await move(picked, PLACE);
      await back(picked.id);
    },
    move,
    async cancel(id: OperationId): Promise<void> {
      await store.abort(id, { code: "canceled", message: "canceled", facts: {} }, undefined);
      await settleAborts(context);
    },
    /** Teams whose turn is to come. */
    turns: (lane = "interactive") => redis.hkeys(`${keys.prefix}:turns:${lane}`),
  };
}

type Line = ReturnType<typeof createLine>;

async function serveAll(line: Line): Promise<string> {
  const served: string[] = [];
  for (let team = await line.serve(); team !== null; team = await line.serve()) served.push(team);
  return served.join(" ");
}

test("teams alternate whatever their backlog; one that comes later has its turn at once", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  for (let i = 0; i < 5; i++) await line.arrive("a");
  for (let i = 0; i < 2; i++) await line.arrive("b");
  expect(await rig.queues.get(PLACE).getJobCounts("prioritized")).toEqual({ prioritized: 2 });
  expect(await line.serve()).toBe("a");
  await line.arrive("c");
  expect(await serveAll(line)).toBe("b a c b a a a");
  expect(await rig.redis.keys(`${rig.prefix}:[lt]*:interactive*`)).toEqual([]);
});

test("interactive work overtakes that of batches, each of which goes all the same once all have overtaken it", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  for (let i = 0; i < 3; i++) {
    await line.arrive("bulk", true);
    await line.arrive("load", true);
  }
  await line.arrive("new0");
  const turns: string[] = [];
  /** By batch team: turns of others that it may still see before its own. */
  const patience = new Map<string, number>();
  for (let i = 1; turns.length < 14; i++) {
    const waiting = [await line.turns(), await line.turns("batch")].flat();
    for (const team of await line.turns("batch")) if (!patience.has(team)) patience.set(team, waiting.length + 1);
    const team = (await line.serve()) ?? "";
    turns.push(team);
    patience.delete(team);
    for (const [other, left] of patience) {
      expect(left, `${other} after ${turns.join(" ")}`).toBeGreaterThan(0);
      patience.set(other, left - 1);
    }
    if (i < 9) await line.arrive(`new${i}`);
  }
  expect(turns[0]).toBe("new0");
  expect(turns.filter((team) => team === "bulk" || team === "load")).toHaveLength(6);
  // Its own team's interactive work needs no such thing.
  await line.arrive("bulk", true);
  for (let i = 0; i < 4; i++) await line.arrive("bulk");
  expect(await serveAll(line)).toBe("new8 bulk bulk bulk bulk bulk");
  expect(await rig.redis.keys(`${rig.prefix}:[lt][iu]*`)).toEqual([]);
});

test("of many that wait only one has a job; another team's single one is second", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  const ids = await Promise.all(Array.from({ length: 50 }, () => line.arrive("a")));
  expect(await rig.queues.get(PLACE).getJobCounts()).toMatchObject({ prioritized: 1, delayed: 0 });
  const waits = await rig.store.load(ids.at(-1) as OperationId);
  expect(waits).toMatchObject({ parked: 1, waitingFor: "earlier provisions of its team" });
  await line.arrive("b");
  expect([await line.serve(), await line.serve()]).toEqual(["a", "b"]);
});

test("many that stood aside and come back together have one turn a round", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  const ids = [await line.arrive("a"), await line.arrive("a"), await line.arrive("a")];
  for (const id of ids) expect((await line.aside())?.id).toBe(id);
  await line.arrive("b");
  for (const id of [...ids].reverse()) await line.back(id);
  await line.arrive("b");
  await line.arrive("c");
  const first = await line.pick();
  expect(first?.team).toBe("b");
  if (first) await line.move(first, "node-pve1");
  expect(await serveAll(line)).toBe("c b a a a");
});

test("what a node gives back waits for a turn like any other, and alone it has it at once", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  const placed: Picked[] = [];
  for (let i = 0; i < 3; i++) await line.arrive("a");
  for (let i = 0; i < 3; i++) {
    const picked = await line.pick();
    if (!picked) throw new Error("unreachable");
    await line.move(picked, "node-pve1");
    const claim = await rig.claim(picked.id);
    placed.push({ ...picked, writer: claim, seq: picked.seq + 1 });
  }
  for (let i = 0; i < 2; i++) await line.arrive("b");
  for (const one of placed) await line.giveBack(one);
  expect(await serveAll(line)).toBe("b b a a a");
});

test("the next of a team takes the place of one that was canceled", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  const ids = [await line.arrive("a"), await line.arrive("a"), await line.arrive("a")];
  for (const team of ["b", "c", "d"]) await line.arrive(team);
  for (const id of ids.slice(0, 2)) await line.cancel(id);
  expect(await serveAll(line)).toBe("a b c d");
});

test("a turn whose record somebody removed is passed on", async () => {
  await using rig = createRig(server);
  const line = createLine(rig);
  const first = await line.arrive("a");
  const second = await line.arrive("a");
  await rig.redis.del(rig.keys.operation(first));
  await sweepOperations(line.context, new AbortController().signal);
  expect(await rig.queues.get(PLACE).getJob(second)).toBeDefined();
});

test("whatever comes, goes, stands aside and is given back: nobody waits longer than for one turn of each other team", async () => {
  const step = fc.record({
    what: fc.constantFrom(
      "arrive",
      "arrive",
      "arrive",
      "newcomer",
      "serve",
      "serve",
      "cancel",
      "aside",
      "back",
      "giveBack",
    ),
    which: fc.nat(50),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 20, maxLength: 60 }), async (steps) => {
      await using rig = createRig(server);
      const line = createLine(rig);
      const waiting: OperationId[] = [];
      const aside: OperationId[] = [];
      const placed: Picked[] = [];
      /** By team: turns that others may still have before it has its own. */
      const patience = new Map<string, number>();
      let newcomers = 0;
      const lookAtTurns = async () => {
        const turns = await line.turns();
        for (const team of patience.keys()) if (!turns.includes(team)) patience.delete(team);
        for (const team of turns) if (!patience.has(team)) patience.set(team, turns.length - 1);
      };
      const serve = async () => {
        const picked = await line.pick();
        if (!picked) return false;
        await line.move(picked, "node-pve1");
        waiting.splice(waiting.indexOf(picked.id), 1);
        placed.push(picked);
        patience.delete(picked.team);
        for (const [team, left] of patience) {
          expect(left, `${team} waits too long`).toBeGreaterThan(0);
          patience.set(team, left - 1);
        }
        return true;
      };
      const take = <T>(list: T[], which: number): T | undefined => list.splice(which % Math.max(1, list.length), 1)[0];
      for (const { what, which } of steps) {
        if (what === "arrive") waiting.push(await line.arrive(`t${which % 4}`));
        else if (what === "newcomer") waiting.push(await line.arrive(`n${newcomers++}`));
        else if (what === "serve") await serve();
        else if (what === "cancel") {
          const id = take(waiting, which);
          if (id) await line.cancel(id);
        } else if (what === "aside") {
          const picked = await line.aside();
          if (picked) {
            aside.push(...waiting.splice(waiting.indexOf(picked.id), 1));
            patience.delete(picked.team); // it has had its turn
          }
        } else if (what === "back") {
          const id = take(aside, which);
          if (id) {
            waiting.push(id);
            await line.back(id);
          }
        } else {
          const picked = take(placed, which);
          if (picked) {
            waiting.push(picked.id);
            await line.giveBack({ ...picked, writer: await rig.claim(picked.id), seq: picked.seq + 1 });
          }
        }
        await lookAtTurns();
      }
      while (await serve()) await lookAtTurns();
      expect(waiting).toEqual([]);
    }),
    { numRuns: 8 },
  );
});
