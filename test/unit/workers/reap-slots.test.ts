import { expect, test } from "vitest";
import { newOperationId } from "../../../shared/ids.ts";
import type { WorkerContext } from "../../../workers/context.ts";
import { reapSlots } from "../../../workers/control/reap-slots.ts";
import { createLogger } from "../../../workers/log.ts";

const task = (type: string, id: string, user: string) => ({
  upid: `UPID:pve1:00000A01:00000B01:66000000:${type}:${id}:${user}:`,
});

test.each<[string, { upid: string }, boolean]>([
  ["a backup that runs for hours", task("vzdump", "", "root@pam"), true],
  ["a human's work on one of our containers", task("vzsnapshot", "20001", "root@pam"), true],
  ["work of ours, whosever it is", task("vzstart", "20001", "fleet@pve!fleet"), false],
  ["a clone of ours", task("vzclone", "9001", "fleet@pve!fleet"), false],
])("beside %s the slot of a forgotten operation is given back or not", async (_, running, given) => {
  const holder = newOperationId();
  const reaped: string[] = [];
  const context = {
    inventory: { current: () => ({ nodes: [{ name: "pve1", storages: [] }], replicas: [] }) },
    slots: { expired: async () => [holder], reap: async (_name: string, id: string) => void reaped.push(id) },
    store: { load: async () => null },
    pve: { tasks: { list: async () => [running] } },
    config: { PVE_API_TOKEN: "fleet@pve!fleet=secret", PVE_VMID_RANGE: { first: 20_000, last: 29_999 } },
    log: createLogger("silent"),
  } as unknown as WorkerContext; // what the reaper uses of it
  await reapSlots(context, AbortSignal.timeout(1_000));
  expect(reaped).toEqual(given ? [holder] : []);
});
