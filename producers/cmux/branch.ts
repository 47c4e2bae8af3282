import { FleetError } from "../../shared/errors.ts";
import type { SandboxId } from "../../shared/ids.ts";
import type { JobInput } from "../../shared/jobs/index.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { InstanceContext } from "./instance.ts";

const MOST = 100;

/** So many copies of a sandbox as its disk is now: all, or none of them stays. The snapshot that they are made from goes. */
export async function branchSandbox(
  context: InstanceContext,
  sandboxId: SandboxId,
  count: number,
): Promise<SandboxId[]> {
  if (!Number.isInteger(count) || count < 1 || count > MOST) {
    throw new FleetError("invalid_input", `count: must be a whole number from 1 to ${MOST}`, {
      facts: { fields: ["count"] },
    });
  }
  const { fleet, done } = context;
  const source = await fleet.sandboxes.get(sandboxId);
  const { snapshotId } = await done(fleet.snapshot({ sandboxId }));
  try {
    return await provisionAll(context, toCopy(source, snapshotId), count);
  } finally {
    // Should this fail, it goes with the sandbox.
    await done(fleet.delete_snapshot({ sandboxId, snapshotId })).catch(() => {});
  }
}

async function provisionAll(
  { fleet, done }: InstanceContext,
  input: JobInput<"provision">,
  count: number,
): Promise<SandboxId[]> {
  const asked = await Promise.allSettled(Array.from({ length: count }, () => fleet.provision(input)));
  const handles = asked.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const refused = asked.filter((one) => one.status === "rejected");
  // Nothing is waited for that is undone anyway.
  const made =
    refused.length > 0 ? [] : await Promise.allSettled(handles.map((handle) => done(Promise.resolve(handle))));
  const [failed] = [...refused, ...made.filter((one) => one.status === "rejected")];
  if (failed === undefined) return handles.map((handle) => handle.sandboxId);
  await Promise.allSettled(handles.map(({ sandboxId }) => done(fleet.destroy({ sandboxId }))));
  throw failed.reason;
}

function toCopy(source: SandboxRecord, snapshotId: string): JobInput<"provision"> {
  const { team, metadata, services, ttlSeconds, ttlAction, idleSeconds, idleAction, wakeOnHttp } = source;
  return {
    template: snapshotId,
    team,
    metadata,
    services: services.map(({ name, port, auth }) => ({ name, port, auth })),
    ttlAction,
    idleAction,
    wakeOnHttp,
    ...(idleSeconds === undefined ? {} : { idleSeconds }),
    ...(source.expiresAt === undefined || ttlSeconds === undefined ? {} : { ttlSeconds }),
  };
}
