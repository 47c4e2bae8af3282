/**
 * The address a sandbox is reached at. A guest controls its own addresses, so one counts only when it is
 * on the MAC of net0, inside SANDBOX_CIDRS and claimed by no other sandbox.
 */
import { type BlockList, isIP } from "node:net";
import { FleetError } from "../../shared/errors.ts";
import type { LxcInterface } from "../pve/api.ts";
import type { Run } from "../run/run.ts";

/** Candidates in the order of preference, IPv4 first. Pure. */
export function usableAddresses(
  interfaces: readonly LxcInterface[],
  hwaddr: string | undefined,
  allowed: BlockList,
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
    return family !== 0 && allowed.check(address, family === 6 ? "ipv6" : "ipv4");
  });
  return [...new Set(usable)].sort((a, b) => isIP(a) - isIP(b));
}

/**
 * Claims an address for the run's sandbox; what it had before goes back.
 * Throws `address_refused` when a living sandbox has it already.
 */
export async function claimAddress(run: Run, address: string): Promise<void> {
  const { redis, keys } = run.context;
  if (run.sandbox.address === address) return;
  const id = run.sandbox.id;
  if ((await redis.hsetnx(keys.addresses, address, id)) === 0) {
    const holder = await redis.hget(keys.addresses, address);
    if (
      holder !== null &&
      holder !== id &&
      (await redis.hget(keys.sandbox(holder), "address")) === address &&
      (await isAlive(run, holder))
    ) {
      throw new FleetError("address_refused", `address ${address} belongs to another sandbox`, {
        facts: { sandbox: id },
      });
    }
    await redis.hset(keys.addresses, address, id);
  }
  const before = run.sandbox.address;
  await run.write({ sandbox: { address }, also: before === undefined ? [] : [["HDEL", keys.addresses, before]] });
}

async function isAlive(run: Run, sandbox: string): Promise<boolean> {
  const record = await run.context.store.loadSandbox(sandbox as typeof run.sandbox.id); // ids of the hash are ours
  return record !== null && record.endedAt === undefined;
}
