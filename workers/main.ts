#!/usr/bin/env node
/** The worker process: reads the environment, starts the roles, closes on SIGINT and SIGTERM. */
import { loadWorkerConfig } from "../shared/config.ts";
import { toFleetError } from "../shared/errors.ts";
import { startFleetWorkers } from "./fleet.ts";
import { createLogger } from "./log.ts";
import { startOps } from "./ops/board.ts";

try {
  const config = loadWorkerConfig(process.env);
  const log = createLogger(config.LOG_LEVEL);
  await using fleet = await startFleetWorkers(config, log);
  await using _ops = config.FLEET_ROLES.has("ops") ? await startOps(fleet.context) : null;
  const signal = await new Promise<string>((resolve) => {
    for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => resolve(name));
  });
  log.info({ signal }, "closing");
} catch (thrown) {
  const error = toFleetError(thrown);
  process.stderr.write(`fleet worker: ${error.message}\n`);
  if (error.code === "internal") console.error(thrown);
  process.exitCode = 1;
}
