/**
 * The address a sandbox is reached at. A guest controls its own addresses, so one counts only when it is
 * on the MAC of net0, inside SANDBOX_CIDRS, none of the fleet's own machines' and claimed by no other sandbox.
 */
import { type BlockList, isIP } from "node:net";
import type { OwnMachines } from "../own-machines.ts";
import type { LxcInterface } from "../pve/api.ts";

/** Candidates in the order of preference, IPv4 first. Pure. */
export function usableAddresses(
  interfaces: readonly LxcInterface[],
  hwaddr: string | undefined,
  { allowed, machines }: { allowed: BlockList; machines: OwnMachines },
): string[] {
  const onNet0 = interfaces.filter(
    (one) => hwaddr !== undefined && (one.hwaddr ?? one["hardware-address"])?.toUpperCase() === hwaddr.toUpperCase(),
  );
  const all = onNet0.flatMap((one) => [
    ...(one["ip-addresses"] ?? []).map((address) => address["ip-address"]),
    one.inet,
    one.inet6,
  ]);
  const addresses = all.filter((text) => text !== undefined).map((text) => text.split("/")[0] ?? "");
  const usable = addresses.filter((address) => {
    const family = isIP(address);
    return family !== 0 && allowed.check(address, family === 6 ? "ipv6" : "ipv4") && !machines.has(address);
  });
  return [...new Set(usable)].sort((a, b) => isIP(a) - isIP(b));
}
