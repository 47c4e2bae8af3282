import { describe, expect, test } from "vitest";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import type { Replica } from "../../../shared/state/inventory.ts";
import { whyNeedless } from "../../../workers/control/retire-replicas.ts";

const replica = (vmid: number, more: Partial<Replica> = {}): Replica => ({
  vmid: Vmid.parse(vmid),
  node: NodeName.parse("a"),
  name: "base",
  tags: [],
  storage: "ceph",
  shared: true,
  unprivileged: true,
  hookscript: false,
  diskBytes: 0,
  memoryMib: 512,
  locked: false,
  online: true,
  configHash: "one",
  ...more,
});
const copy = (configHash = "one") =>
  replica(20_000, { node: NodeName.parse("b"), copyOf: { vmid: Vmid.parse(9_001), configHash } });
const HOUR = 3_600_000;
const ask = (all: Replica[], { configHash = "one", usedAt = 0, now = HOUR, idleMs = 10 * HOUR } = {}) =>
  whyNeedless({ createdAt: 0, replica: copy(configHash) }, all, { idleMs, usedAt, now });

describe("a replica", () => {
  test("is needed while it is used, and no longer", () => {
    expect(ask([replica(9_001)])).toBeNull();
    expect(ask([replica(9_001)], { now: 11 * HOUR })).toContain("for long");
    expect(ask([replica(9_001)], { now: 11 * HOUR, usedAt: 2 * HOUR })).toBeNull();
    expect(ask([replica(9_001)], { now: 11 * HOUR, idleMs: 0 })).toBeNull();
  });

  test("is needless once its original has changed", () => {
    expect(ask([replica(9_001, { configHash: "two" })])).toContain("has changed");
  });

  test("stays where it may be the last one", () => {
    expect(ask([], { now: 99 * HOUR })).toBeNull();
    expect(ask([replica(9_001, { online: false })], { now: 99 * HOUR })).toBeNull();
  });
});
