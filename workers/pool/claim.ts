/** A provision's claim of a member of a pool, so that it need make nothing. */
import type { Write } from "../../shared/state/operations.ts";
import type { Taken } from "../../shared/state/pools.ts";
import { loadTemplates } from "../../shared/state/templates.ts";
import { passOver } from "../pass-over.ts";
import type { Run } from "../run/run.ts";

/** A member that is the provision's as soon as the write is made. */
export interface Claim {
  member: Taken;
  write: Pick<Write, "member" | "also">;
}

/** Of members that turned out to be dead. */
const TRIES = 5;
/** A member that does not answer so soon is as good as none: a new container takes a second or two. */
const ANSWER_MS = 1_000;

/** Null: there is none for it, so it is made. */
export async function claimMember(run: Run<"provision">): Promise<Claim | null> {
  const { context, operation, sandbox, input } = run;
  const { pools, redis, keys } = context;
  const template = operation.warm;
  if (template === undefined) return null;
  return run.timed("claim", async () => {
    // The team's own template of that name comes before everybody's, which the pool's members are made of.
    const own = loadTemplates(redis, keys, operation.team, passOver(context));
    own.catch(() => {}); // awaited below; the taking may end first
    for (let tries = 0; tries < TRIES; tries++) {
      const member = await pools.take(template, sandbox.id, { batch: input.priority === "batch" });
      if ((await own).some(({ replica }) => replica.name === template || replica.tags.includes(template))) return null;
      if (member === null) return null;
      const write = await tryToClaim(run, template, member);
      if (write !== null) return { member, write };
    }
    return null;
  });
}

/** Null: it does not answer, or stands where nothing is to be used any more, as its next probe finds, too. */
async function tryToClaim(
  { context, id, sandbox, sealed, signal, log, check }: Run<"provision">,
  template: string,
  { member, node, address, sealed: sealedToken }: Taken,
): Promise<Claim["write"] | null> {
  const { secrets, pools, nodes, execd } = context;
  const { execToken: token } = secrets.open(member, sealedToken);
  if (token === undefined || nodes.obstacles().has(node)) return null;
  const limited = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
  if (!(await execd.answers({ address, token, signal: limited }))) {
    check();
    log.info({ member }, "a member of a pool does not answer");
    await pools.silent(template, member);
    return null;
  }
  const { env } = secrets.open(id, sealed.operation);
  return { member, also: [secrets.toCommand(sandbox.id, { execToken: token, ...(env ? { env } : {}) })] };
}
