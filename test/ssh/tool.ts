/** A node's tool, as its wrapper on the PATH runs it: tool.ts CONTROL_URL NODE TOOL ARGS… */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import type { Entered, ToolEnd } from "../pve/node-tools.ts";

const [url = "", node = "", tool = "", ...args] = process.argv.slice(2);
const reply = await fetch(`${url}/node-tool`, { method: "POST", body: JSON.stringify({ node, tool, args }) });
const end = (await reply.json()) as ToolEnd | Entered; // of our own stand-in
if ("argv" in end) {
  const [program = "", ...words] = end.argv;
  // As lxc-attach: the same streams, and (as PVE 8 has it) the node's environment under the container's.
  const child = spawn(program, words, { cwd: end.cwd, env: { ...process.env, ...end.env }, stdio: "inherit" });
  const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
  process.exitCode = code ?? 128 + constants.signals[signal ?? "SIGKILL"];
} else {
  process.stdout.write(end.stdout ?? "");
  process.stderr.write(end.stderr ?? "");
  process.exitCode = end.code;
}
