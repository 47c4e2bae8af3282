import { FleetError } from "../../shared/errors.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { containerOf, placeOf } from "../sandbox/look.ts";
import { destroyContainer, releaseCommands } from "../sandbox/release.ts";
import type { Handler } from "./handler.ts";

export const destroy: Handler<"destroy"> = {
  async run(run) {
    const place = placeOf(run.sandbox);
    let existed = false;
    if (place && run.sandbox.endedAt === undefined) {
      await run.begin("destroy", { sandbox: { state: "destroying" } });
      const slot = slotOf.node(place.node);
      existed = await run.withSlot(slot, run.context.config.FLEET_NODE_SLOTS, () =>
        run.timed("destroy", () => destroyContainer(run, run)),
      );
    }
    // One that has ended gave everything back then; its numbers may be another's by now.
    const also = run.sandbox.endedAt === undefined ? await releaseCommands(run) : [];
    return { result: { destroyed: true, existed }, write: { sandbox: { state: "destroyed" }, also } };
  },

  /** It could not be destroyed: the record says again what the container is. */
  async undo(run) {
    if (run.operation.step === undefined || !placeOf(run.sandbox)) return { undone: [] };
    try {
      const { status, template } = await containerOf(run).lxc.status(run.undoing());
      return { undone: [], write: { sandbox: { state: template === true ? "template" : status } } };
    } catch (error) {
      // Not there, though the cluster has the VMID: moved to another node by hand.
      if (error instanceof FleetError && error.code === "container_missing")
        return { undone: [], write: { sandbox: { state: "quarantined" } } };
      throw error;
    }
  },
};
