import { ownContainer } from "../sandbox/look.ts";
import { forgetCommands, removeRecorded } from "../sandbox/snapshots.ts";
import type { Handler } from "./handler.ts";

export const delete_snapshot: Handler<"delete_snapshot"> = {
  async run(run) {
    const { keys, store } = run.context;
    const { id: sandbox } = run.sandbox;
    await ownContainer(run);
    const snapshot = await store.loadSnapshot(run.input.snapshotId);
    if (snapshot?.sandbox !== sandbox) return { result: { deleted: true, existed: false } };
    const existed = await removeRecorded(run, snapshot);
    return {
      result: { deleted: true, existed: existed || run.operation.step !== undefined },
      write: { also: forgetCommands(keys, snapshot) },
    };
  },
};
