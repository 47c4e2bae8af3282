/** Waiting until a started container can be used: it has an address, and execd takes our token and nobody else's. */
import { FleetError } from "../../shared/errors.ts";
import type { Run } from "../run/run.ts";
import { usableAddresses } from "./address.ts";
import { containerOf } from "./look.ts";

/** First and last pause between two looks, in ms; it doubles in between. */
const PAUSE = { first: 20, last: 1_000 };
/** How long a container may take from its start to an answer. */
const READY_PATIENCE_MS = 90_000;

/**
 * Returns the address. `token` null: only the address is waited for.
 * Throws `start_failed` when it stopped again, `no_address` or `not_ready` when patience ends,
 * `execd_unprotected` at once when the daemon takes anybody.
 */
export async function awaitReady(run: Run, token: string | null, patienceMs = READY_PATIENCE_MS): Promise<string> {
  return run.timed("ready", async () => {
    const patience = performance.now() + patienceMs;
    let problem = new FleetError("no_address", "the container got no address inside SANDBOX_CIDRS on the MAC of net0");
    let pauseMs = PAUSE.first;
    while (performance.now() < patience) {
      const found = await readAddress(run);
      if (found !== null) {
        if (token === null) return found;
        const obstacle = await probe(run, found, token);
        if (obstacle === null) return found;
        problem = obstacle;
      }
      await run.pause(pauseMs);
      pauseMs = Math.min(pauseMs * 2, PAUSE.last);
    }
    throw problem.with({ sandbox: run.sandbox.id, waitedMs: patienceMs });
  });
}

/** Null: it is ready. */
async function probe(run: Run, address: string, token: string): Promise<FleetError | null> {
  const answer = await run.context.execd.probe({ address, token, signal: run.signal });
  switch (answer) {
    case "ready":
      return null;
    case "open":
      throw new FleetError(
        "execd_unprotected",
        "the exec daemon takes anybody's commands; the template needs the token hookscript (PVE before 9.1) or a cmux-execd that reads its token",
        { facts: { sandbox: run.sandbox.id } },
      );
    case "wrong_token":
      return new FleetError("not_ready", "the exec daemon has another token than the one handed in");
    case "down":
      return new FleetError("not_ready", "the exec daemon did not answer in time");
  }
}

/** The address now, claimed; null while the container has none. */
export async function readAddress(run: Run): Promise<string | null> {
  const { lxc } = containerOf(run);
  const interfaces = await lxc.interfaces(run.call);
  if (interfaces === null) {
    const status = await lxc.status(run.call);
    if (status.status === "stopped")
      throw new FleetError("start_failed", "the container stopped again right after its start", {
        facts: { sandbox: run.sandbox.id },
      });
    return null;
  }
  const { config, machines } = run.context;
  const [address] = usableAddresses(interfaces, run.sandbox.hwaddr, { allowed: config.sandboxNetworks, machines });
  if (address === undefined) return null;
  await run.claimAddress(address);
  return address;
}

/** The same for a sandbox that was ready before. */
export async function awaitOwnReady(run: Run): Promise<string> {
  const { execToken } = await run.context.secrets.get(run.sandbox.id);
  return awaitReady(run, execToken ?? null);
}
