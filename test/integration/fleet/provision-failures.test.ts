/** Provisions that can't work: each ends with its code, says what was undone, and leaves nothing in PVE. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { JobInput } from "../../../producers/index.ts";
import type { FleetErrorCode } from "../../../shared/errors.ts";
import type { Pve } from "../../pve/index.ts";
import { type Bed, failure, provisionOne, startBed, useUpAttempts, useUpTime } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: {
      nodes: 1,
      templates: [
        { name: "cmux-base" },
        { name: "privileged", privileged: true },
        { name: "on-dir", storage: "local" },
        { name: "no-hook", hookscript: false },
        { name: "no-net", config: { net0: "" } },
        { name: "a-persons", vmid: 150, template: false },
        { name: "dies", guest: { exitsAfterStart: true } },
        { name: "refuses-to-start", guest: { startError: "lxc_init: no such file" } },
      ],
    },
  });
});
afterAll(() => bed.close());

interface Case {
  input: Partial<JobInput<"provision">>;
  code: FleetErrorCode;
  /** Part of the text. */
  says?: RegExp;
  facts?: object;
  /** What was made before it failed. */
  undone?: string[];
  arm?: (pve: Pve) => unknown;
}

const NEVER: Record<string, Case> = {
  "an unknown template": {
    input: { template: "nope" },
    code: "template_not_found",
    says: /templates are: .*cmux-base/,
  },
  "a VMID that nobody has": {
    input: { template: 9_999 },
    code: "template_not_found",
    says: /VMID 9999 is no template that the token sees; templates are: cmux-base \(9001\), /,
    facts: { template: "9999" },
  },
  "a VMID that is an ordinary container's": {
    input: { template: 150 },
    code: "template_not_found",
    says: /VMID 150 is no template/,
  },
  "an unknown snapshot": { input: { template: "snap_0000000000000000" }, code: "snapshot_not_found" },
  "a privileged template": {
    input: { template: "privileged" },
    code: "privileged_template",
    says: /PVE_ALLOW_PRIVILEGED/,
  },
  "a storage that can't link": {
    input: { template: "on-dir" },
    code: "linked_clone_unsupported",
    says: /clone: "full"/,
    facts: { storage: "local" },
  },
  "an unknown node": { input: { node: "pve9" }, code: "invalid_input", facts: { fields: ["node"] } },
  "an unknown storage": {
    input: { clone: "full", storage: "nope" },
    code: "storage_not_found",
    facts: { storage: "nope" },
  },
  "a hostname that is too long once filled": {
    input: { hostname: `${"a".repeat(60)}-{vmid}` },
    code: "invalid_input",
    facts: { fields: ["hostname"] },
  },
  "an unknown pool": { input: { pool: "nope" }, code: "not_configured", says: /pveum pool add nope/ },
  "a leased address without a range": {
    input: { network: { ip: "lease" } },
    code: "not_configured",
    facts: { variables: ["PVE_IP_RANGE"] },
    undone: ["container"],
  },
  "a network of a template without one": {
    input: { template: "no-net", network: { vlan: 7 } },
    code: "invalid_input",
    facts: { fields: ["network.bridge"] },
    undone: ["container"],
  },
  "an exec daemon that takes anybody": {
    input: { template: "no-hook" },
    code: "execd_unprotected",
    undone: ["container"],
  },
  "a token hook that failed": {
    input: {},
    arm: ({ faults }) => faults.hookFailure(1),
    code: "execd_unprotected",
    undone: ["container"],
  },
  "a failing setup command": {
    input: { setup: ["true", "exit 3", "touch never"] },
    code: "setup_failed",
    says: /command 2 of 3 .* exit code 3/,
    facts: { index: 1, exitCode: 3 },
    undone: ["container"],
  },
  "a refusal nobody knows": {
    input: {},
    arm: ({ faults }) =>
      faults.request({ kind: "refuse", status: 500, text: "the moon is full", method: "POST", path: "/clone$" }),
    code: "pve_rejected",
    says: /the moon is full/,
  },
  "a missing privilege": {
    input: {},
    arm: ({ faults }) =>
      faults.request({
        kind: "refuse",
        status: 403,
        text: "Permission check failed (/vms/20000, VM.PowerMgmt)",
        path: "/status/start$",
      }),
    code: "forbidden",
    says: /VM\.PowerMgmt.*pveum acl modify/,
    facts: { privilege: "VM.PowerMgmt" },
    undone: ["container"],
  },
};

/** They heal, so they end only when all attempts are used up. */
const AT_LAST: Record<string, Case> = {
  "a locked template": { input: {}, arm: ({ faults }) => faults.lock(9_001, "backup"), code: "source_locked" },
  "clones that fail": {
    input: {},
    arm: ({ faults }) => faults.task({ type: "vzclone", text: "clone failed: lvcreate said no", times: 2 }),
    code: "task_failed",
    says: /lvcreate said no/,
  },
  "a container that stops at once": { input: { template: "dies" }, code: "start_failed", undone: ["container"] },
  "a container that does not start": {
    input: { template: "refuses-to-start" },
    code: "start_failed",
    undone: ["container"],
  },
  "a configuration that PVE keeps failing": {
    input: {},
    arm: ({ faults }) => faults.request({ kind: "html", method: "PUT", path: "/lxc/2\\d+/config$", times: 2 }),
    code: "outcome_unknown",
    undone: ["container"],
  },
};

async function endsAs({ code, says, facts, undone }: Case, result: Promise<unknown>, ids: { sandboxId: string }) {
  const error = await failure(result, code);
  if (says) expect(error.text).toMatch(says);
  expect(error.facts).toMatchObject({ sandbox: ids.sandboxId, ...facts, ...(undone ? { undone } : {}) });
  if (!undone) expect(error.facts).not.toHaveProperty("undone");
  expect(await bed.fleet.sandboxes.get(ids.sandboxId)).toMatchObject({ state: "failed", endedAt: expect.any(Number) });
  const left = bed.pve.containers().filter(({ config }) => config["description"]?.includes(ids.sandboxId));
  expect(left).toEqual([]);
}

function prepare({ arm }: Case) {
  arm?.(bed.pve);
}

describe("never tried again", () => {
  test.each(Object.entries(NEVER))("%s", async (_, one) => {
    prepare(one);
    const handle = await bed.fleet.provision({ template: "cmux-base", ...one.input });
    await endsAs(one, handle.result({ timeoutMs: 60_000 }), handle);
    expect(await handle.status()).toMatchObject({ status: "failed", lastError: undefined });
  });
});

describe("when its attempts are used up", () => {
  test.each(Object.entries(AT_LAST))("%s", async (_, one) => {
    prepare(one);
    const handle = await bed.fleet.provision({ template: "cmux-base", ...one.input });
    await useUpAttempts(bed, handle, 8);
    expect((await handle.status()).lastError?.code).toBe(one.code);
    await endsAs(one, handle.result({ timeoutMs: 60_000 }), handle);
    bed.pve.faults.clear();
    bed.pve.faults.lock(9_001, null);
  });
});

test("out of time it is undone", async () => {
  bed.pve.faults.task({ type: "vzstart", text: "startup for container '1' failed" });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await useUpTime(bed, handle, 600_000);
  await endsAs({ input: {}, code: "timeout", undone: ["container"] }, handle.result({ timeoutMs: 60_000 }), handle);
});

test("two sandboxes can't have one address", async () => {
  const network = { ip: "127.99.1.1/8" };
  await provisionOne(bed.fleet, { network });
  const handle = await bed.fleet.provision({ template: "cmux-base", network });
  await endsAs(
    { input: {}, code: "address_refused", undone: ["container"] },
    handle.result({ timeoutMs: 60_000 }),
    handle,
  );
});
