/** What went wrong on the way to a node or on it, as a FleetError. */
import { FleetError, unreachable } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { GUARD_REFUSED, type NodeCommand, type TerminalCommand } from "../../shared/node-commands.ts";
import type { HostPlace } from "./host-trust.ts";
import type { CommandResult } from "./node-shell.ts";

/** ssh2 marks its errors with where they arose. */
const levelOf = (error: unknown): unknown => (error instanceof Error && "level" in error ? error.level : undefined);
const codeOf = (error: unknown): string | null =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : null;

export function toConnectError(error: unknown, { node, host, port }: HostPlace, user: string): FleetError {
  if (error instanceof FleetError) return error;
  const facts = { node, host, port };
  const where = `node ${node} (${host} port ${port})`;
  if (levelOf(error) === "client-authentication") {
    return new FleetError(
      "ssh_refused",
      `${where} does not take the key of FLEET_SSH_KEY for user ${user}; add its public half to authorized_keys there`,
      { cause: error, facts: { ...facts, user } },
    );
  }
  const timeout = error instanceof Error && error.name === "TimeoutError";
  const reason = timeout ? "no answer in time" : (codeOf(error) ?? "the connection broke");
  return new FleetError("ssh_unreachable", `${where} can't be reached over SSH: ${reason}`, {
    cause: error,
    facts: { ...facts, reason },
  });
}

/** Time ran out, the server opened no session, or the connection was lost before the command was sent: nothing was run. */
export const notBegun = (node: NodeName, reason: string, cause: unknown): FleetError =>
  new FleetError("ssh_unreachable", `node ${node} can't be used over SSH: ${reason}`, {
    cause,
    facts: { node, reason },
  });

/** The command was sent, and how it ended will not be known. */
export function lost(node: NodeName, { verb }: NodeCommand | TerminalCommand, why: string): FleetError {
  const facts = { node, verb };
  switch (verb) {
    case "exec":
    case "shell":
      return new FleetError("exec_interrupted", `${why} on node ${node}; whether the command ended is unknown`, {
        facts,
      });
    case "freeze":
    case "unfreeze":
    case "unlock":
      return new FleetError("outcome_unknown", `${why} on node ${node} in the middle of ${verb}`, { facts });
    case "state":
    case "process":
      return new FleetError("ssh_unreachable", `${why} on node ${node}`, { facts });
    default:
      throw unreachable(verb);
  }
}

/** The result where its code is one; else throws what it means. `begun`: the script of an `exec` was started. */
export function checkResult(
  node: NodeName,
  command: NodeCommand,
  { begun, ...result }: CommandResult & { begun: boolean },
): CommandResult {
  if (begun || (command.verb !== "exec" && result.code === 0)) return result;
  const known = command.verb === "process" && (result.code === 0 || result.code === 1);
  if (known && !isGuards(result.code, lastLine(result.stderr))) return result;
  throw toRefusal(node, command, { ...result, text: result.stderr });
}

const isGuards = (code: number | null, said: string) =>
  code === GUARD_REFUSED.code && said.startsWith(GUARD_REFUSED.prefix);

/** What it means that the guard or a tool of the node ended with a code of its own, and what it said. */
export function toRefusal(
  node: NodeName,
  command: NodeCommand | TerminalCommand,
  result: { code: number | null; signal?: string; text: string },
): FleetError {
  const { verb } = command;
  const text = lastLine(result.text); // warnings come before it
  if (isGuards(result.code, text)) {
    const why = text.slice(GUARD_REFUSED.prefix.length);
    return new FleetError("ssh_refused", `the guard of node ${node} refused ${verb}: ${why}`, {
      facts: { node, verb },
    });
  }
  const facts = { node, verb, code: result.code, ...(command.verb === "process" ? {} : { vmid: command.vmid }) };
  const error = (code: "not_running" | "container_missing" | "container_locked" | "pve_failed") =>
    new FleetError(code, `${verb} on node ${node}: ${text || `ended with ${result.code ?? result.signal}`}`, { facts });
  if (/does not exist|doesn't exist|no such container|is not defined/i.test(text)) return error("container_missing");
  if (/not running|is stopped/i.test(text)) return error("not_running");
  if (/is locked|can't lock file|got timeout/i.test(text)) return error("container_locked");
  return error("pve_failed");
}

/** Of a node's own tool; no output of a sandbox is ever in it. */
const lastLine = (text: string): string =>
  (text.trim().split("\n").at(-1) ?? "").replaceAll(/[^\x20-\x7e]/g, "?").slice(0, 200);
