/** Ranges that depend on the cluster: pure, so that producers refuse early and workers check again. */
import { FleetError } from "../errors.ts";

/** PVE's `cpuunits` by cgroup version (pct(1): v1 shares, v2 weight). */
const CPUUNITS = { 1: { least: 2, most: 500_000 }, 2: { least: 1, most: 10_000 } } as const;

/** What of a node decides about ranges. */
export interface RangeNode {
  name: string;
  online: boolean;
  cgroup: 1 | 2;
}

/**
 * Throws `invalid_input` for a value that no node in question takes.
 * In question is the node asked for, else every node that is online; a node that is not known decides nothing.
 */
export function checkRanges(
  input: { cpuunits?: number | undefined; node?: string | undefined },
  nodes: readonly RangeNode[],
): void {
  const { cpuunits } = input;
  if (cpuunits === undefined) return;
  const inQuestion = nodes.filter(({ name, online }) => (input.node === undefined ? online : name === input.node));
  const versions = [...new Set(inQuestion.map(({ cgroup }) => cgroup))].sort();
  const fits = versions.some((version) => cpuunits >= CPUUNITS[version].least && cpuunits <= CPUUNITS[version].most);
  if (versions.length === 0 || fits) return;
  const ranges = versions.map((version) => {
    const { least, most } = CPUUNITS[version];
    return `${least} to ${most} on cgroup v${version}`;
  });
  const where = input.node === undefined ? "the cluster's nodes" : `node ${input.node}`;
  throw new FleetError("invalid_input", `cpuunits: must be ${ranges.join(" or ")}, the range of ${where}`, {
    facts: { fields: ["cpuunits"] },
  });
}
