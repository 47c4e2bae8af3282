/** A sandbox from start to end: made, used, exposed, destroyed. Needs REDIS_URL; TEMPLATE is a template's name in PVE. */
import { createFleetFromEnv, FleetError } from "sandbox-fleet";

const fleet = createFleetFromEnv(process.env);
try {
  const provisioning = await fleet.provision({
    template: process.env["TEMPLATE"] ?? "cmux-base",
    services: [{ name: "web", port: 8000 }],
    metadata: { made: "by an example" },
    ttlSeconds: 3600,
  });
  console.log(`${provisioning.id} was accepted`);
  const sandbox = await provisioning.result({ timeoutMs: 120_000 });
  console.log(`${sandbox.sandboxId} runs on ${sandbox.node}: ${sandbox.services.map(({ url }) => url).join(" ")}`);

  const exec = await fleet.exec({ sandboxId: sandbox.sandboxId, command: "echo hello from $(hostname)" });
  const { exitCode, stdout } = await exec.result();
  console.log(`exit code ${exitCode}: ${stdout.trim()}`);

  await (await fleet.destroy({ sandboxId: sandbox.sandboxId })).result();
  console.log("destroyed");
} catch (error) {
  if (!(error instanceof FleetError)) throw error;
  console.error(error.code, error.text, error.facts); // the text says the way out
  process.exitCode = 1;
} finally {
  await fleet.close();
}
