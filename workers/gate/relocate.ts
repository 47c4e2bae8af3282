/** Where a sandbox is by now: its address may change while it runs, with a DHCP lease or by what goes on in it. */
import type { WorkerContext } from "../context.ts";
import { usableAddresses } from "../sandbox/address.ts";
import { createLimiter } from "./limiter.ts";
import type { Registry, Route } from "./registry.ts";

/** So often PVE is asked about one sandbox whose service can't be reached. */
const EVERY_MS = 5_000;
/** And about all of them: whoever runs sandboxes decides how many of their services refuse connections. */
const OVERALL = { most: 20, perMs: 2_000 };
const ASK_MS = 3_000;
const REMEMBERED = 10_000;

/** Whether a request that could not be connected may be tried again; the registry has forgotten the route then. */
export type Relocate = (route: Route) => Promise<boolean>;

interface Look {
  at: number;
  isElsewhere: Promise<boolean>;
}

export function createRelocate(context: WorkerContext, registry: Registry, closing: AbortSignal): Relocate {
  const { pve, store, config, machines, log } = context;
  const looks = new Map<string, Look>();
  const overall = createLimiter(OVERALL);
  const ask = async ({ sandbox: { id }, address = "" }: Route): Promise<boolean> => {
    const sandbox = await store.loadSandbox(id);
    const { node, vmid, hwaddr } = sandbox ?? {};
    if (sandbox?.state !== "running" || node === undefined || vmid === undefined) return false;
    // Another gate or a run has seen to it.
    if (sandbox.address !== undefined && sandbox.address !== address) return true;
    if (overall.isOver("")) return false;
    overall.count("");
    const signal = AbortSignal.any([closing, AbortSignal.timeout(ASK_MS)]);
    const interfaces = await pve.lxc(node, vmid).interfaces({ signal });
    const [now] = usableAddresses(interfaces ?? [], hwaddr, { allowed: config.sandboxNetworks, machines });
    if (now === undefined || now === address) return false;
    log.info({ sandbox: id, address: now }, "it has another address by now");
    return store.moveAddress(id, address, now);
  };
  const look = async (route: Route): Promise<boolean> => {
    const { id } = route.sandbox;
    try {
      const isElsewhere = await ask(route);
      if (isElsewhere) registry.forget(id);
      return isElsewhere;
    } catch (error) {
      log.debug({ err: error, sandbox: id }, "could not read a sandbox's address");
      return false;
    }
  };
  return async (route) => {
    const { id } = route.sandbox;
    const known = looks.get(id);
    // All that fail meanwhile share what the look finds.
    if (known !== undefined && known.at > performance.now() - EVERY_MS) return known.isElsewhere;
    if (looks.size >= REMEMBERED) looks.clear();
    const isElsewhere = look(route);
    looks.set(id, { at: performance.now(), isElsewhere });
    return isElsewhere;
  };
}
