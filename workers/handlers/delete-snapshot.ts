import { slotOf } from "../../shared/state/slots.ts";
import { ownContainer } from "../sandbox/look.ts";
import { dropSnapshot, findSnapshot } from "../sandbox/snapshots.ts";
import type { Handler } from "./handler.ts";

export const delete_snapshot: Handler<"delete_snapshot"> = {
  async run(run) {
    const { keys, store, config } = run.context;
    const { snapshotId } = run.input;
    const { id: sandbox } = run.sandbox;
    const { place } = await ownContainer(run);
    const snapshot = await store.loadSnapshot(snapshotId);
    if (snapshot?.sandbox !== sandbox) return { result: { deleted: true, existed: false } };
    const { name } = snapshot;
    const found = await findSnapshot(run, place, { is: (one) => one.name === name, call: run.call });
    if (found !== undefined)
      await run.withSlot(slotOf.node(place.node), config.FLEET_NODE_SLOTS, () => dropSnapshot(run, place, name));
    return {
      result: { deleted: true, existed: found !== undefined || run.operation.step !== undefined },
      write: {
        also: [
          ["DEL", keys.snapshot(snapshotId)],
          ["SREM", keys.sandboxSnapshots(sandbox), snapshotId],
        ],
      },
    };
  },
};
