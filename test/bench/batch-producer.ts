/** A producer alone in its process: sends one batch and tells how long that took, and how much memory. */
import { createFleet } from "../../producers/index.ts";

const [redis = "", prefix = "", template = "", count = "0"] = process.argv.slice(2);
const fleet = createFleet({ redis, prefix });
const begun = performance.now();
const batch = await fleet.batch({ count: Number(count), template });
const acceptMs = performance.now() - begun;
const { total } = await batch.counts();
const rssMb = process.resourceUsage().maxRSS / 1_024; // libuv tells KiB on every system
process.stdout.write(`${JSON.stringify({ acceptMs: `${acceptMs}`, rssMb: `${rssMb}`, total: `${total}` })}\n`);
await fleet.close();
