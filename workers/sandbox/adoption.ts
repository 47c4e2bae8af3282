/** Taking a container that somebody else made into the fleet, and letting it go again: its lease, its stamp, its pool. */

import { FleetError } from "../../shared/errors.ts";
import { SandboxId } from "../../shared/ids.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../shared/state/records.ts";
import { STRAY } from "../../shared/state/strays.ts";
import type { Call, LxcConfig } from "../pve/api.ts";
import { parseNet } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { placeOf } from "./look.ts";
import { toReservation } from "./reservation.ts";
import { addStamp, DESCRIPTION_LIMIT, parseStamp, removeStamp, toFacts } from "./stamp.ts";

const POOL = "pool";
/** Somebody else may write the config at the same moment. */
const MOST_TRIES = 5;

/**
 * Leases its VMID, then stamps it, then puts it in our pool; what has been done is not done again. Returns its config.
 * Throws `not_adoptable`, `already_adopted`, `is_template`, `container_locked`.
 */
export async function takeIn(run: Run<"adopt">): Promise<LxcConfig> {
  const { keys } = run.context;
  const { node, vmid } = run.input;
  const found = await readAdoptable(run);
  const holder = await run.claimVmid(vmid);
  if (holder !== null) throw await heldBy(run, holder);
  const hwaddr = found.net0 === undefined ? undefined : parseNet(found.net0).hwaddr?.toUpperCase();
  await run.begin("stamp", {
    sandbox: { state: "configuring", hostname: found.hostname ?? `ct-${vmid}`, hwaddr: hwaddr ?? null },
    also: reserve(keys, node, run.sandbox.id, toReservation(found)),
  });
  const config = await stamp(run);
  await joinPool(run);
  return config;
}

/** The live config. What a record that is lost has stamped may be taken, too: nobody else will ever know of it. */
async function readAdoptable(run: Run<"adopt">): Promise<LxcConfig> {
  const { pve, store, redis, keys, config: settings } = run.context;
  const { node, vmid } = run.input;
  const facts = { node, vmid };
  const config = await pve
    .lxc(node, vmid)
    .config(run.call)
    .catch((error: unknown) => {
      if (!(error instanceof FleetError) || error.code !== "container_missing") throw error;
      throw new FleetError("not_adoptable", `there is no container ${vmid} on ${node} (any more)`, {
        cause: error,
        facts,
      });
    });
  if (config.template === true)
    throw new FleetError("is_template", `container ${vmid} on ${node} is a template, which provisions clone`, {
      facts,
    });
  const stamp = parseStamp(config.description, vmid);
  if (stamp?.fleet === settings.FLEET_PREFIX && stamp.sandbox === run.sandbox.id) return config;
  if (stamp === null) {
    checkName(run, config.hostname ?? "");
    return config;
  }
  if (stamp.fleet !== settings.FLEET_PREFIX) {
    throw new FleetError("not_adoptable", `container ${vmid} on ${node} belongs to the fleet ${stamp.fleet}`, {
      facts: { ...facts, fleet: stamp.fleet },
    });
  }
  const owner = await store.loadSandbox(stamp.sandbox);
  if (owner === null || (isGone(owner.state) && stamp.adopted === true)) return config;
  if (isGone(owner.state)) {
    const text = `container ${vmid} on ${node} is what is left of sandbox ${owner.id}, which has ended; destroy it by hand, or take its stamp out of its notes`;
    throw new FleetError("not_adoptable", text, { facts: { ...facts, sandbox: owner.id } });
  }
  if (owner.node === node && owner.vmid === vmid) await redis.hsetnx(keys.vmids, String(vmid), owner.id);
  throw alreadyAdopted(run, owner);
}

/** Whoever may ask for sandboxes must not get hold of any container of the cluster. */
function checkName({ input: { node, vmid }, context }: Run<"adopt">, name: string): void {
  const { FLEET_ADOPT_PREFIXES: prefixes } = context.config;
  if (prefixes.some((prefix) => name.startsWith(prefix))) return;
  const text = `container ${vmid} on ${node} has another name than those that may be adopted (FLEET_ADOPT_PREFIXES: ${prefixes.join(", ") || "none"})`;
  throw new FleetError("not_adoptable", text, { facts: { node, vmid, variables: ["FLEET_ADOPT_PREFIXES"] } });
}

async function heldBy(run: Run<"adopt">, holder: string): Promise<FleetError> {
  const { store } = run.context;
  const { node, vmid } = run.input;
  const owner = holder === STRAY ? null : await store.loadSandbox(SandboxId.parse(holder));
  const maker = owner && isProvisional(owner.state) ? await store.load(owner.operation) : null;
  if (owner !== null && (maker === null || maker.kind === "adopt")) return alreadyAdopted(run, owner);
  // A provision that tries this VMID hears from PVE that it is taken, and tries the next.
  const who = owner === null ? "is being removed" : `is tried by the provision of sandbox ${owner.id}`;
  return new FleetError("container_locked", `VMID ${vmid} ${who} just now`, { facts: { node, vmid } });
}

const alreadyAdopted = ({ input: { node, vmid } }: Run<"adopt">, { id }: SandboxRecord): FleetError =>
  new FleetError("already_adopted", `container ${vmid} on ${node} is sandbox ${id} already`, {
    facts: { node, vmid, sandbox: id },
  });

/** In front of what people have written there. Looks after each try, so that a lost answer is none. */
async function stamp(run: Run<"adopt">): Promise<LxcConfig> {
  const { pve, config: settings, origin } = run.context;
  const { node, vmid } = run.input;
  for (let tries = 1; ; tries++) {
    const config = await readAdoptable(run);
    if (parseStamp(config.description, vmid)?.sandbox === run.sandbox.id) return config;
    const description = addStamp(config.description, {
      fleet: settings.FLEET_PREFIX,
      vmid,
      sandbox: run.sandbox.id,
      operation: run.id,
      team: run.sandbox.team,
      at: run.operation.acceptedAt,
      origin,
      adopted: true,
      facts: toFacts(run.sandbox),
    });
    if (description.length > DESCRIPTION_LIMIT) {
      const text = `the notes of container ${vmid} on ${node} have no room for the fleet's stamp; shorten them by ${description.length - DESCRIPTION_LIMIT} characters`;
      throw new FleetError("not_adoptable", text, { facts: { node, vmid } });
    }
    await pve
      .lxc(node, vmid)
      .setConfig({ description, digest: config.digest }, run.writing)
      .catch((error: unknown) => {
        if (!(error instanceof FleetError) || error.code !== "config_changed" || tries === MOST_TRIES) throw error;
      });
  }
}

/** A pool that somebody has put it in stays its pool. */
async function joinPool(run: Run<"adopt">): Promise<void> {
  const { pve, config } = run.context;
  const { PVE_POOL: pool } = config;
  if (pool === undefined || (await poolOf(run, run.call)) !== undefined) return;
  await run.begin(POOL);
  await pve.changePool(pool, { vmid: run.input.vmid }, run.writing);
}

async function poolOf({ context: { pve }, input: { vmid } }: Run<"adopt">, call: Call): Promise<string | undefined> {
  return (await pve.clusterResources({ type: "vm" }, call)).find((guest) => guest.vmid === vmid)?.pool;
}

/** Pauses between tries to let it go: after them the stamp of a sandbox that has ended is void. */
const PATIENCE_MS = [500, 2_000, 8_000];

/** Takes our stamp out, and it out of our pool. Returns whether there was something to take; never leaves the operation open. */
export async function releaseTaken(run: Run<"adopt">, call: Call): Promise<boolean> {
  for (const pauseMs of [...PATIENCE_MS, null]) {
    try {
      return await letGo(run, call);
    } catch (error) {
      if (!(error instanceof FleetError) || error.code === "lock_lost" || error.code === "shutting_down") throw error;
      run.log.warn({ code: error.code, facts: error.facts }, "could not take the stamp out of a container yet");
      if (pauseMs !== null) await run.pause(pauseMs, call);
    }
  }
  return false;
}

async function letGo(run: Run<"adopt">, call: Call): Promise<boolean> {
  const place = placeOf(run.sandbox);
  if (place === null) return false;
  const { pve, config: settings } = run.context;
  const { PVE_POOL: pool } = settings;
  const lxc = pve.lxc(place.node, place.vmid);
  const config = await lxc.config(call).catch((error: unknown) => {
    if (error instanceof FleetError && error.code === "container_missing") return null;
    throw error;
  });
  if (config === null) return false;
  if (run.operation.step?.name === POOL && pool !== undefined && (await poolOf(run, call)) === pool)
    await pve.changePool(pool, { vmid: place.vmid, remove: true }, call);
  if (parseStamp(config.description, place.vmid)?.sandbox !== run.sandbox.id) return false;
  const left = removeStamp(config.description, place.vmid);
  const change = left === "" ? { delete: "description" } : { description: left };
  await lxc.setConfig({ ...change, digest: config.digest }, call);
  return true;
}
