/** A provision's claim of a member of a pool, so that it need make nothing. */
import { isDeepStrictEqual } from "node:util";
import { toFleetError } from "../../shared/errors.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Taken } from "../../shared/state/pools.ts";
import { loadTemplates } from "../../shared/state/templates.ts";
import type { Run } from "../run/run.ts";
import { markOwner } from "./owner-mark.ts";
import { adoptPool } from "./probe.ts";

/** A member that is the provision's as soon as the write is made. */
export interface Claim {
  member: Taken;
  write: Pick<Write, "member" | "also">;
}

/** Of members that turned out to be dead, or of adoptions that another start of Redis overtook. */
const TRIES = 5;

/** Null: there is none for it, so it is made. */
export async function claimMember(run: Run<"provision">): Promise<Claim | null> {
  const { context, operation, sandbox, input } = run;
  const { pools, redis, keys } = context;
  const template = operation.warm;
  if (template === undefined) return null;
  return run.timed("claim", async () => {
    // The team's own template of that name comes before everybody's, which the pool's members are made of.
    const own = loadTemplates(redis, keys, operation.team);
    for (let tries = 0; tries < TRIES; tries++) {
      const taken = await pools.take(template, sandbox.id, { batch: input.priority === "batch" });
      if ((await own).some(({ replica }) => replica.name === template || replica.tags.includes(template))) return null;
      if (taken === null) return null;
      if ("unadopted" in taken) await adoptPool(context, template, taken.unadopted, run.signal);
      else {
        const write = await tryToClaim(run, taken);
        if (write !== null) return { member: taken, write };
      }
    }
    return null;
  });
}

/** Null: it does not answer, stands where nothing is to be used any more, or is another's, which its next probe finds. */
async function tryToClaim(run: Run<"provision">, taken: Taken): Promise<Claim["write"] | null> {
  const { context, id, sandbox, sealed, log } = run;
  const { secrets, pools, nodes } = context;
  const { member, node, address } = taken;
  const { execToken: token } = secrets.open(member, taken.sealed);
  if (token === undefined || nodes.obstacles().has(node)) return null;
  const owner = { sandbox: sandbox.id, operation: id };
  try {
    const marked = await markOwner(context, owner, { address, token, signal: run.signal, guard: run.check });
    if (!isDeepStrictEqual(marked, owner)) {
      log.warn({ member, owner: marked }, "a member of a pool is somebody's already");
      return null;
    }
  } catch (error) {
    run.check();
    log.info({ member, code: toFleetError(error).code }, "a member of a pool does not answer");
    await pools.silent(run.operation.warm ?? "", member);
    return null;
  }
  const { env } = secrets.open(id, sealed.operation);
  return { member, also: [secrets.toCommand(sandbox.id, { execToken: token, ...(env ? { env } : {}) })] };
}
