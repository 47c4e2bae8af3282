/** Where a sandbox is by now: its address may change while it runs, with a DHCP lease or by what goes on in it. */
import type { WorkerContext } from "../context.ts";
import { usableAddresses } from "../sandbox/address.ts";
import type { Registry, Route } from "./registry.ts";

/** So often PVE is asked about one sandbox whose service can't be reached. */
const EVERY_MS = 5_000;
const ASK_MS = 3_000;
const REMEMBERED = 10_000;

/** Whether a request that could not be connected may be tried again; the registry has forgotten the route then. */
export type Relocate = (route: Route) => Promise<boolean>;

export function createRelocate(context: WorkerContext, registry: Registry, closing: AbortSignal): Relocate {
  const { pve, store, config, machines, log } = context;
  const asked = new Map<string, number>();
  const look = async ({ sandbox: { id }, address = "" }: Route): Promise<boolean> => {
    const sandbox = await store.loadSandbox(id);
    const { node, vmid, hwaddr } = sandbox ?? {};
    if (sandbox?.state !== "running" || node === undefined || vmid === undefined) return false;
    // Another gate or a run has seen to it.
    if (sandbox.address !== undefined && sandbox.address !== address) return true;
    const signal = AbortSignal.any([closing, AbortSignal.timeout(ASK_MS)]);
    const interfaces = await pve.lxc(node, vmid).interfaces({ signal });
    const [now] = usableAddresses(interfaces ?? [], hwaddr, { allowed: config.sandboxNetworks, machines });
    if (now === undefined || now === address) return false;
    log.info({ sandbox: id, address: now }, "it has another address by now");
    return store.moveAddress(id, address, now);
  };
  return async (route) => {
    const { id } = route.sandbox;
    const now = performance.now();
    if ((asked.get(id) ?? Number.NEGATIVE_INFINITY) > now - EVERY_MS) return false;
    if (asked.size >= REMEMBERED) asked.clear();
    asked.set(id, now);
    try {
      const isElsewhere = await look(route);
      if (isElsewhere) registry.forget(id);
      return isElsewhere;
    } catch (error) {
      log.debug({ err: error, sandbox: id }, "could not read a sandbox's address");
      return false;
    }
  };
}
