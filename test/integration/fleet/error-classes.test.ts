/** One error of each class, met by a clone: how long until it is asked for again, and what comes in between. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RequestFault } from "../../pve/faults.ts";
import { type Bed, failure, firstFailure, startBed } from "./harness.ts";

const refusal = (text: string, status = 500) => ({ kind: "refuse", status, text }) as const;

/** `againMs`: the first delay of the class's curve; its jitter is a quarter. */
const CLASSES = {
  lock: { template: 9_001, fault: refusal("CT is locked (backup)"), code: "source_locked", againMs: 2_000 },
  transport: { template: 9_002, fault: refusal("temporary failure"), code: "pve_failed", againMs: 1_000 },
  overload: {
    template: 9_003,
    fault: refusal("cfs-lock 'storage-local-lvm' error: got lock request timeout"),
    code: "pve_overloaded",
    againMs: 5_000,
  },
  "re-place": { template: 9_004, fault: refusal("no space left on device"), code: "storage_full", againMs: 500 },
  "unknown outcome": {
    template: 9_005,
    fault: { kind: "lose-reply", as: 596 },
    code: "outcome_unknown",
    againMs: null,
  },
} as const;

const FORBIDDEN = 9_006;

let bed: Bed;
beforeAll(async () => {
  const templates = [...Object.values(CLASSES).map((one) => one.template), FORBIDDEN];
  bed = await startBed({
    pve: {
      nodes: 1,
      templates: templates.map((vmid) => ({ name: `t${vmid}`, node: "pve1", vmid })),
      timings: { hungTimeout: 100 },
    },
    env: { FLEET_NODE_SLOTS: "8" },
  });
});
afterAll(() => bed.close());

const clonesOf = (template: number) => bed.pve.log().filter(({ path }) => path.endsWith(`/lxc/${template}/clone`));

describe.concurrent("an error of the class", () => {
  test.for(Object.entries(CLASSES))("%s", async ([, { template, fault, code, againMs }]) => {
    const armed: RequestFault = { method: "POST", path: `/lxc/${template}/clone$`, ...fault };
    bed.pve.faults.request(armed);
    const handle = await bed.fleet.provision({ template });
    const met = await firstFailure(handle);
    const { vmid } = await handle.result({ timeoutMs: 60_000 });
    expect(await handle.status()).toMatchObject({ attempts: 1 });
    expect(met).toBe(code);
    const [first, second, ...others] = clonesOf(template);
    expect(others).toEqual([]);
    if (againMs === null) {
      // It was made: the look that comes first finds it, and it is not asked for again.
      expect(second).toBeUndefined();
      expect(first?.params["newid"]).toBe(String(vmid));
    } else {
      const waited = (second?.at ?? 0) - (first?.at ?? 0);
      expect(waited).toBeGreaterThanOrEqual(againMs * 0.75);
      expect(waited).toBeLessThan(againMs * 1.25 + 1_500); // the machine's share
    }
  });

  test("never", async () => {
    bed.pve.faults.request({
      method: "POST",
      path: `/lxc/${FORBIDDEN}/clone$`,
      ...refusal("Permission check failed (/vms/20000, VM.Clone)", 403),
    });
    const handle = await bed.fleet.provision({ template: FORBIDDEN });
    await failure(handle.result({ timeoutMs: 60_000 }), "forbidden");
    expect(clonesOf(FORBIDDEN)).toHaveLength(1);
  });
});
