/**
 * The stamp follows the record: what has changed of a sandbox is written into its container's description, from which a
 * lost Redis is rebuilt. A container that an operation changes just now waits for the end of that. PVE's digest makes sure that
 * nobody's text is lost, and that an older record never comes after a newer one.
 */
import { toFleetError } from "../../shared/errors.ts";
import { SandboxId } from "../../shared/ids.ts";
import { ADOPTED } from "../../shared/jobs/adopt.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { hasMac, type Place, placeOf } from "../sandbox/look.ts";
import { addStamp, DESCRIPTION_LIMIT, parseStamp, replaceStamp, type Stamp, toFacts } from "../sandbox/stamp.ts";
import { forEachRecord } from "./for-each-record.ts";

/** In one round; the next begins seconds later. Any of them, so that some that can't be written keep up no others. */
const PAGE = 200;
/** Requests at once on a node: PVE has three workers there, and others wait for them. */
const AT_ONCE = 2;

/** Returns how many stamps were written. */
export async function restamp(context: WorkerContext, signal: AbortSignal): Promise<number> {
  const { redis, keys, store } = context;
  // What a crash left half done is done again.
  if ((await redis.exists(keys.restamp, keys.restamping)) === 0) return 0;
  await redis.multi().sunionstore(keys.restamp, keys.restamp, keys.restamping).del(keys.restamping).exec();
  const ids = await redis.srandmember(keys.restamp, PAGE);
  const due: { id: string; sandbox: SandboxRecord | null }[] = [];
  const read = async ({ id }: { id: string }) =>
    void due.push({ id, sandbox: await store.loadSandbox(SandboxId.parse(id)) });
  await forEachRecord(
    context,
    ids.map((id) => ({ id })),
    read,
  );
  let written = 0;
  const byNode = Map.groupBy(due, ({ sandbox }) => sandbox?.node);
  const lanes = [...byNode.values()].flatMap((some) => {
    const rest = some.values();
    return Array.from({ length: AT_ONCE }, async () => {
      for (const { id, sandbox } of rest) if (await follow(context, id, sandbox, signal)) written += 1;
    });
  });
  await Promise.all(lanes);
  return written;
}

/** Whether its stamp was written. The mark goes first: what changes from here on sets it again. */
async function follow(
  { redis, keys, ...context }: WorkerContext,
  id: string,
  before: SandboxRecord | null,
  signal: AbortSignal,
): Promise<boolean> {
  if (before !== null && (isProvisional(before.state) || (await redis.llen(keys.changes(id))) > 0)) return false;
  if ((await redis.smove(keys.restamp, keys.restamping, id)) === 0) return false;
  let left = false;
  try {
    const [sandbox, inputHash] = await Promise.all([
      context.store.loadSandbox(SandboxId.parse(id)),
      redis.hget(keys.sandbox(id), "inputHash"),
    ]);
    const place = sandbox === null || isGone(sandbox.state) ? null : placeOf(sandbox);
    return sandbox !== null && place !== null && (await write(context, { sandbox, place, inputHash }, signal));
  } catch (error) {
    left = true;
    signal.throwIfAborted();
    const { code, facts } = toFleetError(error);
    if (code === "container_missing") left = false;
    else context.log.info({ ...facts, code, sandbox: id }, "could not write a container's stamp yet");
    return false;
  } finally {
    if (left) await redis.smove(keys.restamping, keys.restamp, id);
    else await redis.srem(keys.restamping, id);
  }
}

async function write(
  { pve, config: settings, origin, log }: Pick<WorkerContext, "pve" | "config" | "origin" | "log">,
  { sandbox, place, inputHash }: { sandbox: SandboxRecord; place: Place; inputHash: string | null },
  signal: AbortSignal,
): Promise<boolean> {
  const lxc = pve.lxc(place.node, place.vmid);
  const config = await lxc.config({ signal });
  const { description: before = "", digest } = config;
  const fleet = settings.FLEET_PREFIX;
  const known = parseStamp(before, place.vmid);
  const isMember = known !== null && known.sandbox === sandbox.member;
  const isNamed = known?.fleet === fleet && (known.sandbox === sandbox.id || isMember);
  if (known === null ? !hasMac(config, sandbox.hwaddr) : !isNamed) {
    log.warn({ ...place, sandbox: sandbox.id }, "container is not this sandbox's any more; its stamp is left");
    return false;
  }
  const stamp: Omit<Stamp, "v"> = {
    at: sandbox.createdAt,
    ...(isMember ? {} : known),
    ...(sandbox.template === ADOPTED ? { adopted: true } : {}),
    fleet,
    vmid: place.vmid,
    sandbox: sandbox.id,
    operation: sandbox.operation,
    team: sandbox.team,
    origin,
    facts: toFacts(sandbox, inputHash ?? undefined),
  };
  const description = known === null ? addStamp(before, stamp) : replaceStamp(before, stamp);
  if (description.trimEnd() === before.trimEnd()) return false;
  if (description.length > DESCRIPTION_LIMIT) {
    log.warn(
      { ...place, sandbox: sandbox.id },
      "the container's notes have no room for the fleet's stamp; shorten them",
    );
    return false;
  }
  const { cut } = parseStamp(description, place.vmid)?.facts ?? {};
  if (cut)
    log.warn({ ...place, ...cut, sandbox: sandbox.id }, "the container's notes have no room for all of its stamp");
  await lxc.setConfig({ description, digest }, { signal });
  return true;
}
