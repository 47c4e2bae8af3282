/** A process that runs a whole fleet once and then has nothing left to do. */
import { provisionOne, run, startBed } from "./harness.ts";

const bed = await startBed({ pve: { nodes: 1 } });
const { sandboxId } = await provisionOne(bed.fleet);
const { stdout } = await run(bed.fleet, "exec", { sandboxId, command: "echo done" });
await run(bed.fleet, "destroy", { sandboxId });
await bed.close();
process.stdout.write(stdout);
