/** Templates as the cmux backend makes and drops them: saved environments. */
import { randomBytes } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { SandboxId } from "../../shared/ids.ts";
import { get } from "./find.ts";
import type { InstanceContext } from "./instance.ts";

export interface SavedTemplate {
  templateVmid: number;
  /** For `start({ snapshotId })`. */
  snapshotId: string;
}

export interface OrphanedTemplate {
  vmid: number;
  hostname: string;
}

/** Metadata of a template that is being made, and of one whose maker has heard of it. */
const MARK = "cmux.template";
const UNCLAIMED = "unclaimed";
/** Its maker may just be about to hear of it. */
const GRACE_MS = 600_000;

/** A template of a sandbox as it stands, which goes on as it is. */
export async function saveTemplate({ fleet, done }: InstanceContext, sandboxId: SandboxId): Promise<SavedTemplate> {
  const name = `cmux-template-${randomBytes(4).toString("hex")}`;
  const { templateId, vmid } = await done(fleet.template({ sandboxId, name, metadata: { [MARK]: UNCLAIMED } }));
  // Before the caller has it: what is in use must never look like an orphan.
  await done(fleet.update({ sandboxId: templateId, metadata: { [MARK]: "claimed" } }));
  return { templateVmid: vmid, snapshotId: templateId };
}

/** Only what the fleet made: others' templates are not in its hands. */
export async function deleteTemplate({ fleet, done }: InstanceContext, vmid: number): Promise<void> {
  const record = await get(fleet, vmid);
  if (record?.state !== "template") {
    throw new FleetError("template_not_found", `${vmid} is no template that the fleet made`, { facts: { vmid } });
  }
  await done(fleet.destroy({ sandboxId: record.id }));
}

/**
 * Templates that were made for somebody who never heard of them, because his process ended or he stopped waiting: nobody
 * knows their ids, no manifest names them (`known`: its VMIDs), and no sandbox was made from them. All others may be
 * somebody's saved environment.
 */
export async function listOrphans(
  { fleet }: InstanceContext,
  { known, now }: { known: ReadonlySet<number>; now: number },
): Promise<OrphanedTemplate[]> {
  const unclaimed = await fleet.sandboxes.list({ state: "template", metadata: { [MARK]: UNCLAIMED } });
  if (unclaimed.length === 0) return [];
  // It may be made of one of them.
  const onUnreadable = (error: FleetError) => {
    throw error;
  };
  const [templates, sandboxes] = await Promise.all([
    fleet.templates.list(),
    fleet.sandboxes.list({}, { onUnreadable }),
  ]);
  const used = new Set(sandboxes.map(({ template }) => template));
  const ids = new Set(unclaimed.map(({ id }) => id));
  return templates.flatMap(({ id, vmid, name, createdAt = now }) => {
    const isOrphan =
      id !== undefined &&
      ids.has(id) &&
      now - createdAt > GRACE_MS &&
      !known.has(vmid) &&
      ![id, String(vmid), name].some((one) => used.has(one));
    return isOrphan ? [{ vmid, hostname: name }] : [];
  });
}
