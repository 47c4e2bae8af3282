/** Looking at a container before acting on it: live config, never `cluster/resources`, which lags. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import { jobs } from "../../shared/jobs/index.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { Call, LxcApi, LxcConfig } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { clearStaleLock } from "./stale-lock.ts";
import { parseStamp } from "./stamp.ts";
import { failedStep } from "./task.ts";

/** Name of the step that makes a container. */
export const CLONE = "clone";

export type Sight =
  | { is: "missing" }
  | { is: "foreign" }
  | { is: "ours"; config: LxcConfig }
  /** There is one, but whose it is can't be told yet: half made, not in our pool, or not on this node. */
  | { is: "unclear" };

/**
 * What stands at the sandbox's VMID. `ours` means: stamped with this sandbox, or with the member of a pool that it was, or, where somebody edited the notes,
 * with the MAC address that we recorded (a clone never has its source's).
 */
export async function lookAt(
  run: Run,
  place: Place,
  call: Call,
  sandbox: Pick<SandboxRecord, "id" | "hwaddr" | "member"> = run.sandbox,
): Promise<Sight> {
  const { pve, config: settings } = run.context;
  try {
    const config = await pve.lxc(place.node, place.vmid).config(call);
    const stamp = parseStamp(config.description, place.vmid);
    const names = stamp?.sandbox === sandbox.id || (stamp !== null && stamp.sandbox === sandbox.member);
    const stamped = names && stamp?.fleet === settings.FLEET_PREFIX;
    if (stamped || (stamp === null && hasMac(config, sandbox.hwaddr))) return { is: "ours", config };
    // PVE claims the VMID first and writes the description a moment later.
    return stamp === null && config.lock === "create" ? { is: "unclear" } : { is: "foreign" };
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    // Not here is not gone: it may have been migrated. And a token that is limited to our pool hears 403 both of what is
    // not there and of a clone that is not in the pool yet. The cluster knows whether the VMID is taken.
    if (error.code === "container_missing" || error.code === "forbidden") {
      return { is: (await pve.isFree(place.vmid, call)) ? "missing" : "unclear" };
    }
    throw error;
  }
}

/**
 * Whether the VMID is that of somebody else's guest on another node, or of a QEMU machine. Which guests there are and
 * where is live in `cluster/resources`, unlike what it says about them; a token that is limited to our pool sees none.
 */
async function isTakenElsewhere(run: Run, place: Place, call: Call): Promise<boolean> {
  const guests = await run.context.pve.clusterResources({ type: "vm" }, call);
  const guest = guests.find(({ vmid }) => vmid === place.vmid);
  if (guest?.type === "qemu") return true;
  if (guest?.node === undefined || guest.node === place.node) return false;
  return (await lookAt(run, { ...place, node: guest.node }, call)).is === "foreign";
}

export const hasMac = (config: LxcConfig, hwaddr: string | undefined): boolean =>
  hwaddr !== undefined && config.net0?.toUpperCase().includes(`HWADDR=${hwaddr.toUpperCase()}`) === true;

/** A locked or half-made container is looked at this often. */
const LOOK_MS = 250;
/** A task that ends well takes its lock along within this time. */
const UNLOCK_AFTER_MS = 2_000;
/** One that can't be told is sought in the whole cluster after so many looks, and at the end. */
const LOOKS_BEFORE_SEARCH = 4;

/**
 * Looks until the picture is clear: whole and ours, somebody else's, or not there. A clone to another node stands on its
 * source's node until its last moment, so both are looked at. After an unknown outcome, `missing` is believed only from
 * `believeMissingAt` (ms since the epoch) on. Throws `container_locked` when a lock of ours outlasts `patienceMs`.
 */
export async function lookUntilClear(
  run: Run,
  place: Place,
  { call, patienceMs, believeMissingAt = 0 }: { call: Call; patienceMs: number; believeMissingAt?: number },
): Promise<{ is: "ours" | "foreign" | "missing"; place: Place }> {
  const source = run.operation.step?.node;
  const places = source === undefined || source === place.node ? [place] : [place, { node: source, vmid: place.vmid }];
  const asked = mayBeOurs(run);
  const patience = performance.now() + patienceMs;
  let unlockAt = performance.now() + UNLOCK_AFTER_MS;
  for (let looks = 1; ; looks++) {
    const sights = await Promise.all(places.map(async (one) => ({ place: one, sight: await lookAt(run, one, call) })));
    const found = sights.find(({ sight }) => sight.is === "ours") ?? sights.find(({ sight }) => sight.is !== "missing");
    const impatient = performance.now() > patience;
    if (!found) {
      if (Date.now() >= believeMissingAt) return { is: "missing", place };
    } else if (found.sight.is === "foreign" || (found.sight.is === "unclear" && impatient && !asked)) {
      return { is: "foreign", place: found.place };
    } else if (
      found.sight.is === "unclear" &&
      (looks === LOOKS_BEFORE_SEARCH || impatient) &&
      (await isTakenElsewhere(run, found.place, call))
    ) {
      return { is: "foreign", place: found.place };
    } else if (found.sight.is === "unclear" && impatient) {
      throw new FleetError(
        "container_locked",
        `whose container ${place.vmid} on ${found.place.node} is can't be told yet`,
        {
          facts: { ...found.place },
        },
      );
    } else if (found.sight.is === "ours") {
      const { lock } = found.sight.config;
      if (lock === undefined) return { is: "ours", place: found.place };
      const stale = { place: found.place, lock, owner: run.id };
      // Where SSH is set up, a proof that nobody works on it ends the wait.
      if (performance.now() > unlockAt) {
        unlockAt = performance.now() + UNLOCK_AFTER_MS;
        if (await clearStaleLock(run.context, stale, call)) continue;
      }
      if (impatient) {
        throw new FleetError(
          "container_locked",
          `container ${place.vmid} on ${found.place.node} stays locked (${lock})`,
          {
            facts: { ...found.place, lock },
          },
        );
      }
    }
    await run.pause(LOOK_MS, call);
  }
}

export interface Place {
  node: NodeName;
  vmid: Vmid;
}

/** Node and VMID of a sandbox, or null while it has none. */
export function placeOf(sandbox: SandboxRecord): Place | null {
  return sandbox.node !== undefined && sandbox.vmid !== undefined ? { node: sandbox.node, vmid: sandbox.vmid } : null;
}

/** The container of a sandbox that must have one. Throws `sandbox_gone`. */
export function containerOf(run: Run, sandbox: SandboxRecord = run.sandbox): { place: Place; lxc: LxcApi } {
  const place = placeOf(sandbox);
  if (!place)
    throw new FleetError("sandbox_gone", `sandbox ${sandbox.id} has no container`, {
      facts: { sandbox: sandbox.id },
    });
  return { place, lxc: run.context.pve.lxc(place.node, place.vmid) };
}

/**
 * Whether what stands at the sandbox's VMID is ours until the contrary is seen: a clone joins our pool only at its end,
 * so that a limited token can't read it before. Not so while no clone of ours can be there.
 */
function mayBeOurs(run: Run): boolean {
  const { state } = run.sandbox;
  return jobs[run.kind].makesSandbox !== true || (state !== "placing" && state !== "cloning") || mayHaveCloned(run);
}

/** Whether a clone was asked for of which something may be there: it is open, has been closed well, or has failed. A refused one is none of these. */
export function mayHaveCloned({ operation: { step } }: Run): boolean {
  return (step?.name === CLONE && step.open !== undefined) || step?.name === failedStep(CLONE);
}

/** A container that must be there and ours before it is changed. Throws `sandbox_gone`, `is_template`. */
export async function ownContainer(
  run: Run,
  sandbox: SandboxRecord = run.sandbox,
): Promise<{ place: Place; lxc: LxcApi; config: LxcConfig }> {
  refuseTemplate(sandbox);
  const { place, lxc } = containerOf(run, sandbox);
  const sight = await lookAt(run, place, run.call, sandbox);
  if (sight.is === "ours") {
    const { lock } = sight.config;
    // It stopped an earlier attempt already.
    if (lock !== undefined && run.operation.lastError?.code === "container_locked")
      await clearStaleLock(run.context, { place, lock, owner: run.id }, run.writing);
    return { place, lxc, config: sight.config };
  }
  const what = {
    missing: "is gone, removed by somebody else",
    foreign: "is no longer this sandbox's",
    unclear: "is not there; its VMID is in use elsewhere, or the token may not see it",
  }[sight.is];
  const text = `container ${place.vmid} on ${place.node} ${what}; destroy sandbox ${sandbox.id} to give back what it holds`;
  throw new FleetError("sandbox_gone", text, { facts: { sandbox: sandbox.id, ...place } });
}

/** A template is provisioned and destroyed, and nothing else. */
export function refuseTemplate({ id, state }: SandboxRecord): void {
  if (state !== "template") return;
  throw new FleetError("is_template", `${id} is a template: it can be provisioned and destroyed, and nothing else`, {
    facts: { sandbox: id },
  });
}
