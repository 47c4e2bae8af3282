#!/usr/bin/env node
/** The worker process: reads the environment, starts the roles, closes on SIGINT and SIGTERM. */
import { z } from "zod";
import { loadWorkerConfig } from "../shared/config.ts";
import { FleetError, toFleetError } from "../shared/errors.ts";
import { startFleetWorkers } from "./fleet.ts";
import { startGate } from "./gate/gate.ts";
import { createLogger } from "./log.ts";
import { addProcessMetrics } from "./metrics.ts";
import { startOps } from "./ops/server.ts";

const TakenPort = z.object({ code: z.literal("EADDRINUSE"), port: z.number() });

function explain(thrown: unknown): FleetError {
  const { data } = TakenPort.safeParse(thrown);
  if (data === undefined) return toFleetError(thrown);
  const text = `port ${data.port} is taken; choose another (OPS_PORT, GATE_PORT), or end who has it`;
  return new FleetError("not_configured", text, { facts: { variables: ["OPS_PORT", "GATE_PORT"] } });
}

let started = false;
const told = new Promise<string>((resolve) => {
  // Before the start is done there is nothing to hand back; from the first job on there is.
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.on(name, () => (started ? resolve(name) : process.exit(0)));
});

try {
  const config = loadWorkerConfig(process.env);
  const log = createLogger(config.LOG_LEVEL);
  await using fleet = await startFleetWorkers(config, log);
  started = true;
  addProcessMetrics(fleet.context.metrics.registry);
  await using _ops = config.FLEET_ROLES.has("ops") ? await startOps(fleet.context) : null;
  await using _gate = config.FLEET_ROLES.has("gate") ? await startGate(fleet.context) : null;
  log.info({ signal: await told }, "closing");
} catch (thrown) {
  const error = explain(thrown);
  process.stderr.write(`fleet worker: ${error.message}\n`);
  if (error.code === "internal") console.error(thrown);
  process.exitCode = 1;
}
