/** A short-lived process of a backend, as a serverless action is one: `node client-process.ts start|use INSTANCE`. */
import { createCmuxClient } from "../../../producers/cmux/index.ts";

const [what, instanceId = ""] = process.argv.slice(2);
await using client = createCmuxClient();
if (what === "start") {
  const { id, vmid } = await client.instances.start({ snapshotId: "cmux-base", instanceId });
  process.stdout.write(`${JSON.stringify({ id, vmid })}\n`);
  await new Promise(() => setInterval(() => {}, 1_000)); // until it is killed
}
const instance = await client.instances.get({ instanceId });
const { stdout } = await instance.exec("cat left.txt");
await instance.exposeHttpService("web", 8_080);
const { id, vmid, status, networking } = instance;
process.stdout.write(`${JSON.stringify({ id, vmid, status, networking, stdout })}\n`);
