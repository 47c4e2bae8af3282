#!/usr/bin/env node
/** Looks at all that a worker depends on, with the worker's settings, and says what is wrong and what to do about it. */
import { Command, CommanderError } from "commander";
import { diagnose, isWell } from "./doctor/diagnose.ts";
import { toLines } from "./doctor/finding.ts";

const HELP = `
It reads the variables of a worker, changes nothing and prints no secret. Each line is ok, a warning or a problem.

Exit codes:
  0  no problem
  1  a problem
  2  wrong usage`;

const program = new Command("fleet doctor")
  .description("Check settings, Redis, Proxmox VE, the token's rights, templates and SSH.")
  .option("--json", "one JSON value: {ok, checks: [{check, level, text, wayOut?}]}")
  .option("--probe [template]", "make a sandbox through the fleet, run a command in it and destroy it")
  .addHelpText("after", HELP)
  .exitOverride();

try {
  program.parse();
  const { json, probe } = program.opts<{ json?: true; probe?: string | true }>();
  const checks = await diagnose(process.env, { probe: probe === true ? "" : probe });
  process.stdout.write(json ? `${JSON.stringify({ ok: isWell(checks), checks })}\n` : toLines(checks));
  process.exitCode = isWell(checks) ? 0 : 1;
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? 0 : 2;
}
