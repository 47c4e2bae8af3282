/** The cmux backend's interface: an instance is started, used and found again. Needs REDIS_URL; TEMPLATE is a template's name in PVE. */
import { createCmuxClient } from "sandbox-fleet/cmux";

const client = createCmuxClient(); // { snapshots: "./pve-lxc-snapshots.json" } for ids such as snapshot_3c251d7c
try {
  const { healthy, workers, pve } = await client.healthCheck();
  if (!healthy) throw new Error(`the fleet is not up: ${JSON.stringify({ workers, pve })}`);
  const { id, networking } = await client.instances.start({
    snapshotId: process.env["TEMPLATE"] ?? "cmux-base",
    ttlSeconds: 3600,
    ttlAction: "pause",
    metadata: { made: "by an example" },
  });
  console.log(`${id} has ${networking.httpServices.map(({ name, url }) => `${name} at ${url}`).join(", ")}`);

  const again = await client.instances.get({ instanceId: id }); // from any process, at any time
  const { exit_code, stdout } = await again.exec("echo hello from $(hostname)");
  console.log(`exit code ${exit_code}: ${stdout}`);
  const { status } = await again.pause();
  console.log(`${status}, ${status === "paused" ? "with" : "without"} its memory`);
  await again.delete();
} finally {
  await client.close();
}
