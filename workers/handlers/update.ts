import { FleetError } from "../../shared/errors.ts";
import type { Write } from "../../shared/state/operations.ts";
import { isGone } from "../../shared/state/records.ts";
import type { Run } from "../run/run.ts";
import type { Handler } from "./handler.ts";

/** Legal in every state of a live sandbox: it changes the record alone, in one step. */
export const update: Handler<"update"> = {
  async run(run) {
    const { id, state } = run.sandbox;
    const gone = new FleetError("sandbox_gone", `sandbox ${id} has ended`, { facts: { sandbox: id } });
    if (isGone(state)) throw gone;
    // Once: what came after it must not be undone by a run that is repeated.
    if (run.operation.step?.name !== "written") await run.begin("written", toWrite(run));
    const sandbox = await run.context.store.loadSandbox(id);
    if (!sandbox) throw gone;
    const {
      metadata,
      ttlAction,
      ttlExtendOnUse,
      expiresAt = null,
      idleSeconds = null,
      idleAction,
      wakeOnHttp,
    } = sandbox;
    return { result: { metadata, ttlAction, ttlExtendOnUse, expiresAt, idleSeconds, idleAction, wakeOnHttp } };
  },
};

function toWrite({ input }: Run<"update">): Write {
  const {
    metadata,
    replaceMetadata: replace,
    ttlSeconds,
    extend,
    ttlAction,
    ttlExtendOnUse,
    idleSeconds,
    idleAction,
    wakeOnHttp,
  } = input;
  const ttl = [ttlSeconds, ttlAction, ttlExtendOnUse].some((one) => one !== undefined);
  const idle = [idleSeconds, idleAction].some((one) => one !== undefined);
  const changed = { metadata: metadata !== undefined, ttl, idle, wakeOnHttp: wakeOnHttp !== undefined };
  return {
    sandbox: { ttlAction, ttlExtendOnUse, idleSeconds, idleAction, wakeOnHttp, ...(extend ? {} : { ttlSeconds }) },
    patch: {
      metadata,
      replace,
      endsIn: ttlSeconds === null ? "never" : ttlSeconds,
      extend,
      fields: Object.entries(changed).flatMap(([name, is]) => (is ? [name] : [])),
    },
  };
}
