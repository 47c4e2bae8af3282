/** A BullMQ worker that does nothing, without the fleet. Arguments: Redis' URL, prefix, queue, concurrency. */
import { Worker } from "bullmq";
import { connectRedis } from "../../shared/redis/connect.ts";

const [url = "", prefix = "", queue = "", concurrency = "1"] = process.argv.slice(2);
const worker = new Worker(queue, async () => ({}), {
  connection: connectRedis(url),
  prefix,
  concurrency: Number(concurrency),
});
await worker.waitUntilReady();
process.stdout.write("{}\n");
process.once("SIGTERM", () => process.exit());
