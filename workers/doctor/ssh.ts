/** Whether commands on the nodes themselves would work. */
import { toFleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { NodeShell } from "../ssh/node-shell.ts";
import { readContainerState } from "../ssh/node-tools.ts";
import { type Finding, ok, problem } from "./finding.ts";

const DEADLINE_MS = 8_000;

/** Connects, logs in and asks LXC for a container's state at both ends of the range, which a guard must cover. */
export async function examineSsh(
  shell: NodeShell,
  nodes: readonly NodeName[],
  { first, last, signal }: { first: Vmid; last: Vmid; signal: AbortSignal },
): Promise<Finding[]> {
  const findings = nodes.map(async (node): Promise<Finding> => {
    try {
      for (const vmid of [first, last]) await ask(shell, { node, vmid }, signal);
      return ok("ssh", `${node}: host key, login and LXC's tools`);
    } catch (error) {
      return problem("ssh", toFleetError(error).text);
    }
  });
  return Promise.all(findings);
}

async function ask(shell: NodeShell, place: { node: NodeName; vmid: Vmid }, signal: AbortSignal): Promise<void> {
  try {
    await readContainerState(shell, place, { signal, deadlineMs: DEADLINE_MS });
  } catch (error) {
    // The tool ran, and knows of no such container.
    if (toFleetError(error).code !== "container_missing") throw error;
  }
}
