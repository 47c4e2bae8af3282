import { FleetError } from "../shared/errors.ts";
import type { JobInput } from "../shared/jobs/index.ts";

/**
 * Refuses an input that only one sandbox can have, for `count` of them.
 * Throws `invalid_input` that names the fields and the way out.
 */
export function assertRepeatable(input: JobInput<"provision">, count: number): void {
  if (count <= 1) return;
  const { ip, ip6, hwaddr } = input.network ?? {};
  const problems = [
    ...(ip?.includes("/") ? [{ field: "network.ip", way: 'take ip: "lease" or "dhcp"' }] : []),
    ...(ip6?.includes("/") ? [{ field: "network.ip6", way: 'take ip6: "auto" or "dhcp"' }] : []),
    ...(hwaddr === undefined ? [] : [{ field: "network.hwaddr", way: "leave it out, and PVE makes one each" }]),
    ...(input.instanceId === undefined ? [] : [{ field: "instanceId", way: "leave it out, and each has its own id" }]),
    ...(input.hostname === undefined || /\{(vmid|id)\}/.test(input.hostname)
      ? []
      : [{ field: "hostname", way: "put {vmid} or {id} into it" }]),
  ];
  if (problems.length === 0) return;
  const text = problems.map(({ field, way }) => `${field}: ${count} sandboxes can't share one; ${way}`).join("; ");
  throw new FleetError("invalid_input", text, { facts: { fields: problems.map(({ field }) => field) } });
}
