/** Takes back what a run has made, or says what only a human can clear. */
import { type ErrorFacts, type FleetError, type FleetErrorCode, toFleetError } from "../../shared/errors.ts";
import { type JobName, jobs } from "../../shared/jobs/index.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Handler } from "../handlers/handler.ts";
import { stopRecordedTask } from "../sandbox/task.ts";
import { NotYet } from "./not-yet.ts";
import type { Run } from "./run.ts";

/** How long an undo is tried: what only a human can clear is told early, an unreachable node is given time. */
const UNDO_PATIENCE_MS = { stuck: 60_000, weather: 600_000 };
const STUCK: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>(["container_locked", "protected", "forbidden"]);

/** Stops the task that still runs and takes back what was made; what can't be taken back is `quarantined`, with its place. */
export async function undo(run: Run, handler: Handler<JobName>): Promise<{ write?: Write; facts?: ErrorFacts }> {
  const call = run.undoing();
  const begun = performance.now();
  for (let attempt = 1; ; attempt++) {
    try {
      await stopRecordedTask(run, call);
      const done = await handler.undo?.(run);
      return {
        ...(done?.write ? { write: done.write } : {}),
        ...(done?.undone.length ? { facts: { undone: done.undone } } : {}),
      };
    } catch (thrown) {
      if (thrown instanceof NotYet) throw thrown;
      const problem = toFleetError(thrown);
      if (problem.code === "lock_lost" || problem.code === "shutting_down") throw problem;
      run.log.warn({ code: problem.code, facts: problem.facts, err: problem.cause }, "could not undo yet");
      const patience = STUCK.has(problem.code) ? UNDO_PATIENCE_MS.stuck : UNDO_PATIENCE_MS.weather;
      const knownStuck = run.operation.abort?.code === "quarantined" && STUCK.has(problem.code);
      if (knownStuck || performance.now() - begun > patience) return quarantine(run, problem);
      await run.pause(Math.min(15_000, 500 * 2 ** Math.min(attempt, 6)), call);
    }
  }
}

/** Whether what could not be undone is a container that nobody would know of. */
const canLose = ({ kind }: Run): boolean => kind === "destroy" || jobs[kind].makesSandbox === true;

/** VMID and reservation stay taken: the container is still there. */
function quarantine(run: Run, problem: FleetError): { write?: Write; facts: ErrorFacts } {
  if (!canLose(run)) return { facts: { undoFailed: problem.code } };
  const node = problem.facts["node"] ?? run.sandbox.node;
  const vmid = problem.facts["vmid"] ?? run.sandbox.vmid;
  run.log.error({ code: "quarantined", node, vmid, problem: problem.code }, "only a human can clear this container");
  return {
    write: { sandbox: { state: "quarantined" } },
    facts: {
      quarantined: true,
      node: node ?? null,
      vmid: vmid ?? null,
      problem: problem.code,
      wayOut: `${clearing(problem, { vmid, node })}, then destroy sandbox ${run.sandbox.id}`,
    },
  };
}

/** What a human does about a container that could not be removed. */
function clearing({ code, facts }: FleetError, { vmid, node }: Record<"vmid" | "node", unknown>): string {
  const container = `container ${vmid} on ${node}`;
  switch (code) {
    case "container_locked":
      return `when no task works on ${container}, clear its lock there: pct unlock ${vmid}`;
    case "protected":
      return `take the protection from ${container}: pct set ${vmid} --protection 0`;
    case "forbidden":
      return `give the token the right to remove ${container}${facts["privilege"] ? ` (${facts["privilege"]})` : ""}`;
    default:
      return `wait until PVE answers for ${container} again (${code})`;
  }
}
