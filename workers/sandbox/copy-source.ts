/**
 * A full copy of a sandbox as it stands: from a snapshot that PVE takes while it runs, or of the stopped one itself. Until
 * it is made the operation stands in the line of its source, too, so that nothing else of the fleet changes that one.
 */
import { FleetError } from "../../shared/errors.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call, LxcConfig } from "../pve/api.ts";
import { storageOf } from "../pve/config-format.ts";
import { addReleased } from "../run/add-jobs.ts";
import type { Run } from "../run/run.ts";
import { CLONE, containerOf, mayHaveCloned, ownContainer, type Place, placeOf } from "./look.ts";
import { makeContainer } from "./make-container.ts";
import { dropSnapshot, findSnapshot, findWhole, keepPaused, removeSnapshot } from "./snapshots.ts";
import { runTask } from "./task.ts";

/** The source as its record has it now; null once it is needed no more. */
export async function loadSource(run: Run): Promise<SandboxRecord | null> {
  const { source } = run.operation;
  return source === undefined ? null : run.context.store.loadSandbox(source);
}

/** Makes the container of the run. `paramsOf`: what the clone gets, its VMID apart. */
export async function copySource(
  run: Run,
  source: SandboxRecord,
  paramsOf: (place: Place) => { hostname: string; description: string; pool?: string; storage?: string },
): Promise<void> {
  // What an earlier run asked for is found by its stamp; the source need not be there for that any more.
  const from = mayHaveCloned(run) ? null : await prepare(run, source);
  await makeContainer(run, {
    clone: (place) => clone(run, from ?? containerOf(run, source).place, { place, params: paramsOf(place) }),
    refused: async (error) => error,
  });
}

/** Lets the source's next operation go, with nothing of ours left on it. */
export async function leaveSource(run: Run): Promise<void> {
  const source = await loadSource(run);
  const place = source && placeOf(source);
  const found = place && (await findSnapshot(run, place, own(run)));
  if (found) await dropSnapshot(run, place, found);
  await addReleased(run.context, await run.leaveSource());
}

/** For an undo. Returns whether there was a snapshot to remove. */
export async function clearSource(run: Run, source: SandboxRecord | null, call: Call): Promise<boolean> {
  const place = source && placeOf(source);
  if (!source || !place) return false;
  if (run.operation.step !== undefined) await keepPaused(run, source, call);
  return removeSnapshot(run, place, { is: ({ name }) => name === nameOf(run), call });
}

/** Of the operation that made the sandbox, since its destroy looks for it, too. */
const nameOf = ({ sandbox }: Run) => `t-${sandbox.operation.slice(3)}`;

const own = (run: Run) => ({ is: ({ name }: { name: string }) => name === nameOf(run), call: run.call });

/** Throws `snapshot_unsupported` for a running sandbox whose storage can't take snapshots. */
async function prepare(run: Run, source: SandboxRecord): Promise<Place> {
  const { place, lxc } = await ownContainer(run, source);
  const { status } = await lxc.status(run.call);
  if (status === "stopped") return place;
  if (!(await lxc.feature("snapshot", {}, run.call))) {
    throw new FleetError(
      "snapshot_unsupported",
      `sandbox ${source.id} runs, and its storage can't take snapshots: stop it for as long as it is copied`,
      { facts: { sandbox: source.id, ...place } },
    );
  }
  if (!(await findWhole(run, place, own(run)))) {
    await runTask(run, {
      step: "snapshot",
      kind: "snapshot",
      type: "vzsnapshot",
      ...place,
      start: () => lxc.snapshot(nameOf(run), { description: `${run.id}, for as long as it copies` }, run.writing),
    });
  }
  await keepPaused(run, source, run.writing);
  return place;
}

async function clone(
  run: Run,
  from: Place,
  { place, params }: { place: Place; params: { hostname: string; description: string; storage?: string } },
): Promise<LxcConfig | null> {
  const { pve, config, inventory } = run.context;
  const lxc = pve.lxc(from.node, from.vmid);
  const snapname = (await findSnapshot(run, from, own(run)))?.name;
  const storage = params.storage ?? storageOf((await lxc.config(run.call)).rootfs ?? "");
  const shared = inventory
    .current()
    .nodes.some(({ storages }) => storages.some((one) => one.name === storage && one.shared));
  const request = () =>
    runTask(run, {
      step: CLONE,
      kind: "full_clone",
      write: { sandbox: { state: "cloning", hostname: params.hostname } },
      start: () =>
        lxc.clone(
          { newid: place.vmid, full: true, ...params, ...(snapname === undefined ? {} : { snapname }) },
          run.writing,
        ),
    });
  const withSource = () => run.withSlot(slotOf.replica(from.node, from.vmid), 1, request);
  if (shared && storage !== undefined)
    await run.withSlot(slotOf.storage(storage), config.FLEET_STORAGE_SLOTS, withSource);
  else await withSource();
  return null;
}
