/** A clone's claim of its VMID, and never two containers for one operation. */
import { FleetError } from "../../shared/errors.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { LxcConfig } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { CLONE, lookAt, lookUntilClear, mayHaveCloned, type Place } from "./look.ts";
import { destroyContainer } from "./release.ts";
import { mayBeWorkedOn } from "./stale-lock.ts";
import { runTask } from "./task.ts";

/** A lock whose task we can't see is given this long. */
const LOCK_PATIENCE_MS = 30_000;
/** And one whose task has ended. */
const DEAD_PATIENCE_MS = 5_000;

export interface CloneSteps {
  /** Has the clone made; returns its config where it was read in passing, else null. */
  clone(place: Place): Promise<LxcConfig | null>;
  /** What a refusal means, nothing having been made. */
  refused(error: unknown): Promise<unknown>;
}

/**
 * Makes the sandbox's container, or adopts the one that an earlier run made. Returns its config where it was read in
 * passing, else null. The same VMID is asked for again after an unknown outcome: PVE's claim of it is atomic, so at most one exists.
 */
export async function makeContainer(run: Run, { clone, refused }: CloneSteps): Promise<LxcConfig | null> {
  const node = run.sandbox.node;
  if (node === undefined) throw new FleetError("node_unavailable", "the sandbox has no node yet");
  while (true) {
    const vmid = run.sandbox.vmid ?? (await run.leaseVmid());
    const place = { node, vmid };
    if (mayHaveCloned(run)) {
      const { is } = await adopt(run, place);
      if (is === "ours" && (await isWhole(run, place))) {
        // An earlier run may have kept the slots of the clone; the container is there, so they are free.
        await run.releaseSlots((name) => name === slotOf.node(node));
        return null;
      }
      if (is === "foreign") {
        await leaseNext(run);
        continue;
      }
    }
    try {
      // An earlier attempt may have kept slots: of two clones that keep one and wait for the other's, none would go on.
      if (run.operation.claims > 1 || run.operation.attempts > 0)
        await run.releaseSlots((name) => name === slotOf.node(node));
      return await clone(place);
    } catch (error) {
      if (mayHaveCloned(run)) {
        // An earlier request of ours may be what took the VMID; the next round looks.
        if (error instanceof FleetError && error.code === "vmid_taken") continue;
        throw error;
      }
      const taken = error instanceof FleetError && error.code === "vmid_taken";
      if (taken && (await lookAt(run, place, run.call)).is === "ours") {
        // Redis lost that an earlier run of ours asked for it.
        await run.begin(CLONE, { open: false });
        continue;
      }
      await run.write({ sandbox: { state: "placing" } }); // refused: nothing of ours can be there
      if (!taken) throw await refused(error);
    }
    await leaseNext(run);
  }
}

async function leaseNext(run: Run): Promise<void> {
  run.log.info({ vmid: run.sandbox.vmid }, "VMID is taken by somebody else; leasing the next");
  await run.leaseVmid();
  await run.begin("lease", { sandbox: { state: "placing" } });
}

/** What became of a clone that was asked for: its task is waited for, then the container says how it ended. */
async function adopt(run: Run, place: Place) {
  if (run.operation.step?.open === true && run.operation.step.upid !== undefined) {
    const start = () => Promise.reject(new Error("a recorded task is not started again"));
    await runTask(run, { step: CLONE, kind: "clone", start }).catch((error: unknown) => {
      if (!(error instanceof FleetError) || !["task_lost", "task_failed"].includes(error.code)) throw error;
    });
  }
  const dead = run.operation.step?.open !== true;
  // The source is free again, and what is left may wait for a human.
  if (dead) await run.releaseSlots((name) => name === slotOf.node(place.node));
  try {
    return await lookUntilClear(run, place, { call: run.call, patienceMs: dead ? DEAD_PATIENCE_MS : LOCK_PATIENCE_MS });
  } catch (error) {
    if (run.context.shell !== null || !(error instanceof FleetError) || error.code !== "container_locked") throw error;
    if (!dead && (await mayBeWorkedOn(run.context, place, run.id, run.call))) throw error;
    throw new FleetError(
      "quarantined",
      `a clone died and left container ${place.vmid} on ${place.node} locked; only pct unlock there clears it`,
      { cause: error, facts: { ...place, ...error.facts } },
    );
  }
}

/**
 * Whether our container has a root disk: a clone writes it last. One without it was left by a clone whose worker died or
 * never started ("start worker failed"), and unlocked by hand; it is removed, since nothing will ever finish it.
 */
async function isWhole(run: Run, place: Place): Promise<boolean> {
  const { rootfs } = await run.context.pve.lxc(place.node, place.vmid).config(run.call);
  if (rootfs !== undefined) return true;
  run.log.warn({ ...place }, "container is half made; removing it");
  await destroyContainer(run, { call: run.call, writing: run.writing });
  return false;
}
