/** From cmux's snapshot ids to what a sandbox is cloned from. */
import { readFile } from "node:fs/promises";
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import { Vmid } from "../../shared/ids.ts";
import { sayIssue, toProblems } from "../../shared/jobs/problems.ts";

const Label = z.union([z.string(), z.number()]).optional();

const Manifest = z.object({
  presets: z.array(
    z.object({
      presetId: z.string(),
      label: Label,
      cpu: Label,
      memory: Label,
      disk: Label,
      versions: z.array(
        z.object({ version: Label, snapshotId: z.string().min(1), templateVmid: Vmid, capturedAt: Label }),
      ),
    }),
  ),
});
/** cmux's presets and their versions, as JSON has them. */
export type SnapshotManifest = z.input<typeof Manifest>;

/** The VMID or name of the template that a snapshot id stands for. */
export type SnapshotResolver = (
  snapshotId: string,
) => { templateVmid: number } | number | string | Promise<{ templateVmid: number } | number | string>;

/** A manifest, the path of its file, or a function. */
export type Snapshots = SnapshotManifest | string | URL | SnapshotResolver;

const Resolved = z.union([
  Vmid,
  z.string().min(1),
  z.object({ templateVmid: Vmid }).transform((one) => one.templateVmid),
]);

/** What the fleet itself has given out. */
const OWN_ID = /^(snap|sbx)_[0-9a-z]{16}$/;
/** What only a manifest can tell. */
const MANIFEST_ID = /^snapshot_/;

/**
 * What `provision` takes as template: `templateVmid` if given, else what the snapshot id stands for. Ids of the fleet's own
 * snapshots and templates, and names of templates, stand for themselves.
 * Throws `invalid_input`, or `not_configured` that says what is wrong with the manifest.
 */
export async function resolveTemplate(
  { snapshotId, templateVmid }: { snapshotId?: string | undefined; templateVmid?: number | undefined },
  snapshots: Snapshots | undefined,
): Promise<number | string> {
  if (templateVmid !== undefined) return templateVmid;
  if (snapshotId === undefined) throw refuse("is missing; give it, or templateVmid");
  if (OWN_ID.test(snapshotId)) return snapshotId;
  if (typeof snapshots === "function") return askResolver(snapshotId, snapshots);
  const known = snapshots === undefined ? undefined : (await loadManifest(snapshots)).get(snapshotId);
  if (known !== undefined) return known;
  if (!MANIFEST_ID.test(snapshotId)) return snapshotId;
  throw refuse(
    snapshots === undefined
      ? `${snapshotId} is an id of a manifest, and the client was made without one; give snapshots, or templateVmid`
      : `${snapshotId} is not in the manifest of snapshots; add it there, or give templateVmid`,
  );
}

/** The VMIDs that a manifest names; none where snapshots are a function's. Throws `not_configured`. */
export async function listManifest(snapshots: Snapshots | undefined): Promise<ReadonlySet<number>> {
  if (snapshots === undefined || typeof snapshots === "function") return new Set();
  return new Set((await loadManifest(snapshots)).values());
}

const refuse = (problem: string): FleetError =>
  new FleetError("invalid_input", `snapshotId: ${problem}`, { facts: { fields: ["snapshotId"] } });

async function askResolver(snapshotId: string, resolve: SnapshotResolver): Promise<number | string> {
  const parsed = Resolved.safeParse(await resolve(snapshotId));
  if (parsed.success) return parsed.data;
  throw misconfigured(`the function must give { templateVmid } for ${snapshotId}: a VMID of 100 or more`);
}

/** Read anew for each start, since a file may be replaced while the client lives. */
async function loadManifest(source: SnapshotManifest | string | URL): Promise<Map<string, Vmid>> {
  const isFile = typeof source === "string" || source instanceof URL;
  const parsed = Manifest.safeParse(isFile ? await readJson(source) : source, { error: sayIssue });
  if (!parsed.success) {
    const problems = toProblems("the manifest", parsed.error);
    throw misconfigured(
      problems.map(({ text }) => text).join("; "),
      problems.map(({ field }) => field),
    );
  }
  const templates = new Map<string, Vmid>();
  for (const { snapshotId, templateVmid } of parsed.data.presets.flatMap(({ versions }) => versions)) {
    const before = templates.get(snapshotId) ?? templateVmid;
    if (before !== templateVmid) throw misconfigured(`${snapshotId} stands for both ${before} and ${templateVmid}`);
    templates.set(snapshotId, templateVmid);
  }
  return templates;
}

async function readJson(file: string | URL): Promise<unknown> {
  const text = await readFile(file, "utf8").catch((cause: unknown) => {
    throw misconfigured(`${String(file)} can't be read`, [], cause);
  });
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw misconfigured(`${String(file)} is no JSON`, [], cause);
  }
}

const misconfigured = (problem: string, fields: readonly string[] = [], cause?: unknown): FleetError =>
  new FleetError("not_configured", `snapshots: ${problem}`, { cause, facts: { options: ["snapshots"], fields } });
