import { FleetError } from "../../shared/errors.ts";
import { checkRanges } from "../../shared/jobs/check-ranges.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Params } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { changedParams, rootfsGib } from "../sandbox/configure-clone.ts";
import { ownContainer } from "../sandbox/look.ts";
import { reserveAgain } from "../sandbox/reservation.ts";
import { runTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const configure: Handler<"configure"> = {
  async run(run) {
    const { place, lxc, config: before } = await ownContainer(run);
    checkRanges({ cpuunits: run.input.cpuunits, node: place.node }, run.context.inventory.current().nodes);
    const size = rootfsGib(before);
    checkGrowth(run, size);
    const params = changedParams(before, wanted(run));
    await run.begin("configure");
    await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, async () => {
      // The digest makes PVE refuse when somebody else changed the config since we looked.
      if (Object.keys(params).length > 0) await lxc.setConfig({ ...params, digest: before.digest }, run.writing);
      if (run.input.diskGib !== undefined && run.input.diskGib !== size) {
        await runTask(run, {
          step: "resize",
          kind: "resize",
          start: () => lxc.resize("rootfs", `${run.input.diskGib}G`, run.writing),
        });
      }
    });
    const { config } = await ownContainer(run);
    const pending = await lxc.pending(run.call);
    return {
      result: {
        applied: {
          cores: config.cores,
          cpulimit: config.cpulimit,
          cpuunits: config.cpuunits,
          memoryMib: config.memory,
          swapMib: config.swap,
          diskGib: rootfsGib(config),
          onboot: config.onboot,
        },
        pendingUntilReboot: pending,
      },
      write: { also: await reserveAgain(run, place.node, config) },
    };
  },
};

function wanted({ input }: Run<"configure">): Params {
  const { cores, cpulimit, cpuunits, memoryMib, swapMib, onboot } = input;
  return { cores, cpulimit, cpuunits, memory: memoryMib, swap: swapMib, onboot };
}

function checkGrowth({ input }: Run<"configure">, size: number | undefined): void {
  if (input.diskGib !== undefined && size !== undefined && input.diskGib < size) {
    throw new FleetError("invalid_input", `diskGib: a disk can't shrink; it has ${size} GiB`, {
      facts: { fields: ["diskGib"], diskGib: size },
    });
  }
}
