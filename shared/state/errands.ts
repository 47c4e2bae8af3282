/** What operators ask of the fleet's own clockwork: done by one worker at a time, once, and again where that one dies. */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { type ErrorRecord, FleetError } from "../errors.ts";
import { NodeName, SandboxId, TeamId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";
import { ErrorRecordSchema } from "./records.ts";

/** One difference between PVE and the records, and what was done about it. */
export const Finding = z.object({
  /**
   * `orphan`: a container that no sandbox owns; `stranger`: one without our stamp where only ours should be;
   * `ghost`: a sandbox without its container; `drift`: one that somebody changed; `lock`: a lock that no task holds;
   * `restart`: one to be started since its node was; `restored`: a record made anew from its container.
   */
  what: z.enum(["orphan", "stranger", "ghost", "drift", "lock", "restart", "restored"]),
  node: NodeName,
  vmid: Vmid,
  name: z.string().optional(),
  sandbox: SandboxId.optional(),
  team: TeamId.optional(),
  /** `waits`: looked at again by itself; `left`: only an operator can decide; `to …`: what a dry run would have done. */
  done: z.enum([
    "removed",
    "to remove",
    "taken in",
    "to take in",
    "cleared",
    "to clear",
    "asked for",
    "to ask for",
    "waits",
    "left",
  ]),
  /** Why, and the way out where there is one; for people. */
  text: z.string(),
  /** When it will be removed, ms since the epoch. */
  at: z.number().optional(),
});
export type Finding = z.output<typeof Finding>;

const Reconcile = z.object({
  kind: z.literal("reconcile"),
  dryRun: z.boolean(),
  /** Records are made anew of containers with our stamp that have none. */
  rebuild: z.boolean(),
  /** Containers in quarantine go now, also those that no rule would remove. */
  removeOrphans: z.boolean(),
});
/** The sandboxes of a node that is no more end as `lost`. */
const Forget = z.object({ kind: z.literal("forget"), node: NodeName });
export const ErrandInput = z.discriminatedUnion("kind", [Reconcile, Forget]);
export type ErrandInput = z.output<typeof ErrandInput>;

export const Errand = z.object({
  id: z.string(),
  input: ErrandInput,
  status: z.enum(["queued", "running", "succeeded", "failed"]),
  /** How often a worker began it. */
  runs: z.number(),
  /** How many are done with so far, while it runs. */
  done: z.number(),
  findings: Finding.array().optional(),
  error: ErrorRecordSchema.optional(),
});
export type Errand = z.output<typeof Errand>;

/** For whoever asked, or comes back to ask. */
const KEPT_SEC = 3_600;

export interface Errands {
  /** Returns its id. */
  ask(input: ErrandInput): Promise<string>;
  /** Throws `operation_unknown`. */
  load(id: string): Promise<Errand>;
  /** The oldest that has not ended. */
  next(): Promise<Errand | null>;
  save(errand: Errand): Promise<void>;
  end(errand: Errand, result: { findings: Finding[] } | { error: ErrorRecord }): Promise<void>;
}

export function createErrands(redis: RedisConnection, keys: Keys): Errands {
  const save = async (errand: Errand) => {
    await redis.set(keys.errand(errand.id), JSON.stringify(errand), "EX", KEPT_SEC);
  };
  const find = async (id: string) => {
    const text = await redis.get(keys.errand(id));
    return text === null ? null : Errand.parse(JSON.parse(text));
  };
  return {
    async ask(input) {
      const id = randomUUID();
      await save({ id, input, status: "queued", runs: 0, done: 0 });
      await redis.rpush(keys.errands, id);
      return id;
    },
    async load(id) {
      const errand = await find(id);
      if (errand) return errand;
      throw new FleetError("operation_unknown", "what was asked of the workers is not known any more; ask again");
    },
    async next() {
      const [id] = await redis.lrange(keys.errands, 0, 0);
      if (id === undefined) return null;
      const errand = await find(id);
      if (errand?.status === "queued" || errand?.status === "running") return errand;
      await redis.lrem(keys.errands, 0, id);
      return null;
    },
    save,
    async end(errand, result) {
      await save({ ...errand, ...result, status: "error" in result ? "failed" : "succeeded" });
      await redis.lrem(keys.errands, 0, errand.id);
    },
  };
}
