/** What is read from a node, as facts. */

import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { UpidFacts } from "../pve/upid.ts";
import type { NodeShell, ShellCall } from "./node-shell.ts";

const STATES = ["STOPPED", "STARTING", "RUNNING", "STOPPING", "ABORTING", "FREEZING", "FROZEN", "THAWED"] as const;
export type ContainerState = (typeof STATES)[number];

/** LXC's own word for the container's state; PVE calls a frozen one running. Throws `container_missing` and as `run` does. */
export async function readContainerState(
  shell: NodeShell,
  { node, vmid }: { node: NodeName; vmid: Vmid },
  call: ShellCall,
): Promise<ContainerState> {
  const { stdout } = await shell.run(node, { verb: "state", vmid }, call);
  const word = /(\w+)\s*$/.exec(stdout)?.[1];
  const state = STATES.find((one) => one === word);
  if (!state)
    throw new FleetError("pve_bad_reply", `lxc-info on node ${node} told no state`, { facts: { node, vmid } });
  return state;
}

/**
 * Whether a PVE task's worker and all that it started are certainly gone from its node: true only on positive proof.
 * (Their session bears the worker's process id, which is given to nobody else while one of them lives.)
 */
export async function isTaskDead(shell: NodeShell, task: UpidFacts, call: ShellCall): Promise<boolean> {
  const { code, stdout } = await shell.run(task.node, { verb: "process", pid: task.pid }, call);
  const verdict = judgeProcess(stdout, code, task);
  if (verdict === "unclear") {
    throw new FleetError("pve_bad_reply", `the processes of node ${task.node} could not be read`, {
      facts: { node: task.node },
    });
  }
  return verdict === "dead";
}

/** Reads what the verb `process` prints: /proc/uptime, /proc/PID/stat if there is one, process ids of the session. */
export function judgeProcess(
  stdout: string,
  code: number | null,
  { pid, pstart }: Pick<UpidFacts, "pid" | "pstart">,
): "alive" | "dead" | "unclear" {
  const lines = stdout.trim().split("\n");
  // pgrep: 0 some, 1 none, else it failed.
  if (!lines.some((line) => /^\d+\.\d+ \d+\.\d+$/.test(line)) || (code !== 0 && code !== 1)) return "unclear";
  const members = lines.filter((line) => /^\d+$/.test(line)).map(Number);
  if ((code === 0) !== members.length > 0) return "unclear";
  const stat = lines.find((line) => line.startsWith(`${pid} (`));
  if (stat === undefined) return members.length > 0 ? "alive" : "dead";
  // The name in brackets may hold anything; the third field comes after the last bracket (proc(5)).
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [state, start] = [fields[0], Number(fields[22 - 3])];
  if (!state || !Number.isSafeInteger(start)) return "unclear";
  if (start !== pstart) return "dead"; // the number was given away, so of its former session nobody is left
  const others = members.some((member) => member !== pid);
  return state === "Z" && !others ? "dead" : "alive";
}
