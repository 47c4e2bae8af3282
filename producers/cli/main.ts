#!/usr/bin/env node
import { runProgram } from "./program.ts";
import { createCli } from "./session.ts";
import { createTerminal } from "./terminal.ts";

const exit = (code: number): never => process.exit(code);
const terminal = createTerminal(process, process.env, exit);
// Not process.exit: what was written to a pipe must get through first, and nothing of ours keeps the process alive.
process.exitCode = await runProgram(createCli({ terminal, env: process.env, exit }), process.argv.slice(2));
