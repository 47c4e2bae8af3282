/**
 * Sandboxes whose container is gone and whose record says otherwise, because Redis lost the end of their destroy: they are
 * destroyed again, which gives back what they hold. Only after such a loss: what a human removes is told to its users.
 */
import { SandboxId, Vmid } from "../../shared/ids.ts";
import type { SandboxState } from "../../shared/state/records.ts";
import { STRAY } from "../../shared/state/strays.ts";
import type { WorkerContext } from "../context.ts";
import { destroySandbox } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

/** For so long after a loss it is looked: PVE may be away, too. */
const WATCH_MS = 600_000;
/** A container must be there; in all other states an operation is at work, and looks itself. */
const STANDING: ReadonlySet<SandboxState> = new Set<SandboxState>(["running", "stopped", "paused"]);

export async function destroyMissing(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const { redis, keys, store, strays, pve } = context;
  const lostAt = (await strays.losses())[0]?.until;
  if (lostAt === undefined || Date.now() - lostAt > WATCH_MS) return;
  const leases = Object.entries(await redis.hgetall(keys.vmids)).filter(([, holder]) => holder !== STRAY);
  const guests = await pve.clusterResources({ type: "vm" }, { signal });
  const there = new Set(guests.map(({ vmid }) => String(vmid)));
  const absent = leases.filter(([vmid]) => !there.has(vmid)).map(([vmid, id]) => ({ id, vmid }));
  await forEachRecord(context, absent, async ({ id, vmid }) => {
    const sandbox = await store.loadSandbox(SandboxId.parse(id));
    if (!sandbox || !STANDING.has(sandbox.state) || String(sandbox.vmid) !== vmid) return;
    // The list lags, shows nothing of a node that is away, and may hide what the token must not see.
    const node = context.inventory.current().nodes.find(({ name }) => name === sandbox.node);
    if (!node?.online || (await pve.list(node.name, { signal })).some((one) => String(one.vmid) === vmid)) return;
    if (!(await pve.isFree(Vmid.parse(Number(vmid)), { signal }))) return;
    await destroySandbox(context, sandbox, {
      idempotencyKey: `missing ${sandbox.id}`,
      why: "its container went in a second that Redis lost",
    });
  });
}
