import { FleetError } from "../../shared/errors.ts";
import { type SandboxId, SnapshotId } from "../../shared/ids.ts";
import type { Sandboxes } from "../index.ts";

/** What people call a snapshot of a sandbox: its id, or its name. */
export async function resolveSnapshot(
  text: string,
  sandbox: SandboxId,
  sandboxes: Pick<Sandboxes, "snapshots">,
): Promise<SnapshotId> {
  const id = SnapshotId.safeParse(text);
  if (id.success) return id.data;
  const all = await sandboxes.snapshots(sandbox);
  const found = all.find(({ name }) => name === text);
  if (found) return found.id;
  const names = all.map(({ name }) => name).join(", ") || "none";
  throw new FleetError("snapshot_not_found", `sandbox ${sandbox} has no snapshot ${text}; it has ${names}`, {
    facts: { sandbox, snapshot: text },
  });
}
