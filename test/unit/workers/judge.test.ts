/** What becomes of a container that no record owns. */
import { expect, test } from "vitest";
import { NodeName, newOperationId, newSandboxId, TeamId, Vmid } from "../../../shared/ids.ts";
import type { OperationRecord, SandboxRecord, SandboxState } from "../../../shared/state/records.ts";
import { judge, type Memory, type Verdict } from "../../../workers/control/judge.ts";
import type { LxcConfig } from "../../../workers/pve/api.ts";

const place = { node: NodeName.parse("pve1"), vmid: Vmid.parse(20_001) };
const AT = 1_700_000_000_000;
const stamp = {
  v: 1 as const,
  fleet: "{fleet}",
  vmid: place.vmid,
  sandbox: newSandboxId(),
  operation: newOperationId(),
  team: TeamId.parse("default"),
  at: AT,
  origin: "here",
};
const MAC = "BC:24:11:00:00:01";
const config = { description: "", net0: `name=eth0,hwaddr=${MAC}` } as LxcConfig;
const retentionMs = 86_400_000;
const now = AT + 3_600_000;

const sandboxOf = (state: SandboxState, at: Partial<typeof place> = {}): SandboxRecord => ({
  id: stamp.sandbox,
  operation: stamp.operation,
  team: stamp.team,
  template: "base",
  state,
  metadata: {},
  ttlAction: "destroy",
  ttlExtendOnUse: false,
  idleAction: "pause",
  wakeOnHttp: false,
  createdAt: AT,
  services: [],
  ...at,
});
const operationOf = (status: OperationRecord["status"]) => ({ status }) as OperationRecord; // judged by its status alone

/** What Redis tells: it was away from then on, for some seconds. */
const known = (losses: number[], more: Partial<Memory> = {}, awayMs = 5_000) => ({
  losses: losses.map((from) => ({ from, until: from + awayMs })),
  origin: "here",
  retentionMs,
  ...more,
});

test.each<[string, SandboxRecord | null, OperationRecord["status"] | null, number[] | Memory, Verdict]>([
  ["its record lost its lease only", sandboxOf("running", place), "succeeded", [], "own"],
  ["its sandbox has been destroyed", sandboxOf("destroyed", place), "succeeded", [], "remove"],
  ["its provision failed", sandboxOf("failed"), "failed", [], "remove"],
  ["its provision is at work", sandboxOf("placing"), "queued", [], "wait"],
  [
    "its provision is at work elsewhere",
    sandboxOf("cloning", { ...place, vmid: Vmid.parse(20_002) }),
    "running",
    [],
    "wait",
  ],
  [
    "its sandbox stands elsewhere",
    sandboxOf("running", { ...place, vmid: Vmid.parse(20_002) }),
    "succeeded",
    [],
    "remove",
  ],
  ["its record lost where it stands", sandboxOf("running", { node: place.node }), "succeeded", [], "keep"],
  [
    "its sandbox has been destroyed, and a backup of it restored",
    { ...sandboxOf("destroyed", place), hwaddr: MAC },
    "succeeded",
    [],
    "later",
  ],
  [
    "a clone that came late, when its sandbox had been made and destroyed",
    { ...sandboxOf("destroyed", place), hwaddr: "BC:24:11:00:00:02" },
    "succeeded",
    [],
    "remove",
  ],
  ["accepted elsewhere, by a fleet of the same prefix", null, null, known([AT - 500], { origin: "there" }), "keep"],
  ["accepted in a lost second of long ago", null, null, known([AT - 500], { retentionMs: 60_000 }), "later"],
  ["accepted after the copy from which Redis was restored", null, null, known([AT - 60_000], {}, 120_000), "keep"],
  ["accepted right after that copy, which is hours old", null, null, known([AT - 500], {}, 7_200_000), "keep"],
  ["nothing is known of it, and nothing was lost", null, null, [], "later"],
  ["accepted in a lost second", null, null, [AT - 90_000, AT - 500], "remove"],
  ["accepted just before the last beat", null, null, [AT + 900], "remove"],
  ["accepted long before a loss: an old one, or a restored backup", null, null, [AT + 60_000], "later"],
  ["accepted long after a loss", null, null, [AT - 60_000], "later"],
])("%s", (_, sandbox, status, lost, verdict) => {
  const operation = status === null ? null : operationOf(status);
  const memory = Array.isArray(lost) ? known(lost) : lost;
  expect(judge({ place, stamp, config }, { operation, sandbox }, memory, now).verdict).toBe(verdict);
});

test.each<[string, SandboxRecord | null, number[], Verdict]>([
  ["accepted in a lost second", null, [AT - 500], "keep"],
  ["its sandbox has been destroyed, or was never taken in to the end", sandboxOf("failed", place), [], "keep"],
  ["its sandbox stands elsewhere", sandboxOf("running", { ...place, vmid: Vmid.parse(20_002) }), [], "keep"],
  ["its record lost its lease only", sandboxOf("running", place), [], "own"],
])("one that was adopted is never removed: %s", (_, sandbox, losses, verdict) => {
  const adopted = { place, stamp: { ...stamp, adopted: true as const }, config };
  expect(judge(adopted, { operation: null, sandbox }, known(losses), now).verdict).toBe(verdict);
});

test("a template is never removed, whatever is known of it", () => {
  const template = { place, stamp, config: { ...config, template: true } };
  expect(judge(template, { operation: null, sandbox: sandboxOf("destroyed", place) }, known([AT]), now).verdict).toBe(
    "keep",
  );
});
