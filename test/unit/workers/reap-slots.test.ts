import { expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
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
  expect(await reaped(["pve1"], async () => [running])).toEqual(given ? ["node-pve1"] : []);
});

test("a node that can't be asked keeps the slots of no other", async () => {
  const list = async (node: string) => {
    if (node === "pve1") throw new FleetError("node_unreachable", "pve1 can't be reached");
    return [];
  };
  expect(await reaped(["pve1", "pve2"], list)).toEqual(["node-pve2"]);
});

/** The slots that are given back, where each has a holder that has gone. */
async function reaped(nodes: readonly string[], list: (node: string) => Promise<object[]>): Promise<string[]> {
  const names: string[] = [];
  const context = {
    inventory: { current: () => ({ nodes: nodes.map((name) => ({ name, storages: [] })), replicas: [] }) },
    slots: { expired: async () => [newOperationId()], reap: async (name: string) => void names.push(name) },
    store: { load: async () => null },
    pve: { tasks: { list } },
    config: { PVE_API_TOKEN: "fleet@pve!fleet=secret", PVE_VMID_RANGE: { first: 20_000, last: 29_999 } },
    log: createLogger("silent"),
  } as unknown as WorkerContext; // what the reaper uses of it
  await reapSlots(context, AbortSignal.timeout(1_000));
  return names;
}
