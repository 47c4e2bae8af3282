/** Commands on the nodes themselves, over SSH: what PVE's API can't do. One pooled connection a node. */
import type { WorkerConfig } from "../../shared/config.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { NodeCommand, TerminalCommand } from "../../shared/node-commands.ts";
import { NodeConnection } from "./connection.ts";
import { checkResult } from "./failures.ts";
import { createTrust } from "./host-trust.ts";
import { parsePrivateKey } from "./private-key.ts";
import { runCommand } from "./run-command.ts";
import { type NodeTerminal, openTerminal, type TerminalCall } from "./terminal.ts";

export interface ShellCall {
  /** Its abort ends the wait at once; a script in a container is killed, as its input ends. */
  signal: AbortSignal;
  /** How long the whole may take, the wait for a free channel included; 30 s, for `exec` its own time-out and 10 s. */
  deadlineMs?: number;
  /** For `exec`: what the script reads. At most 1 MiB. */
  stdin?: string | Uint8Array;
  /** Bytes to keep of each stream; 256 KiB. */
  keepBytes?: number;
  /** Each piece as it comes, also past `keepBytes`. */
  onOutput?: (stream: "stdout" | "stderr", chunk: Buffer) => void;
  /** Called right before the command is sent; what it throws comes through, and nothing is sent. */
  guard?: () => void;
}

export interface CommandResult {
  /** Null where a signal ended it. */
  code: number | null;
  signal?: string;
  stdout: string;
  stderr: string;
  /** All that came, kept or not. */
  stdoutBytes: number;
  stderrBytes: number;
  truncated: boolean;
}

export interface NodeShell extends AsyncDisposable {
  /**
   * Runs one command on a node. A code other than 0 is a result of `exec` (the script's) and of `process`; of the other
   * verbs it is an error: `not_running`, `container_missing`, `container_locked`, `pve_failed`.
   *
   * Throws also `ssh_unreachable` (nothing was run), `ssh_refused` (by key or guard), `ssh_host_key_refused`; when the
   * connection is lost or time is up with the command sent: `exec_interrupted`, of freeze, unfreeze and unlock
   * `outcome_unknown`.
   */
  run(node: NodeName, command: NodeCommand, call: ShellCall): Promise<CommandResult>;
  /** Opens a terminal on a node. Throws what `run` does where nothing was run, and `ssh_refused` where sshd gives none. */
  open(node: NodeName, command: TerminalCommand, call: TerminalCall): Promise<NodeTerminal>;
}

/** Where a node listens, for nodes that FLEET_SSH_HOSTS does not name. Null: not known, its name is tried. */
export type AddressOf = (node: NodeName, signal: AbortSignal) => Promise<string | null>;

/** Null where no key is configured. Throws `not_configured` for a key that can't be used. Connects on first use. */
export function createNodeShell(config: WorkerConfig, addressOf: AddressOf): NodeShell | null {
  if (config.FLEET_SSH_KEY === undefined) return null;
  const privateKey = parsePrivateKey(config.FLEET_SSH_KEY, config.FLEET_SSH_KEY_PASSPHRASE);
  const trustOf = createTrust(config.FLEET_SSH_HOST_KEYS ?? new Map(), config.FLEET_SSH_KNOWN_HOSTS ?? []);
  const connections = new Map<NodeName, NodeConnection>();
  const locate = async (node: NodeName, signal: AbortSignal) => {
    const given = config.FLEET_SSH_HOSTS?.get(node);
    const host = given?.host ?? (await addressOf(node, signal)) ?? node;
    return { host, port: given?.port ?? config.FLEET_SSH_PORT };
  };
  const connectionTo = (node: NodeName): NodeConnection => {
    const known = connections.get(node);
    if (known) return known;
    const made = new NodeConnection({ node, user: config.FLEET_SSH_USER, privateKey, locate, trustOf });
    connections.set(node, made);
    return made;
  };
  return {
    run: async (node, command, call) => checkResult(node, command, await runCommand(connectionTo(node), command, call)),
    open: (node, command, call) => openTerminal(connectionTo(node), command, call),
    async [Symbol.asyncDispose]() {
      await Promise.all([...connections.values()].map((one) => one[Symbol.asyncDispose]()));
    },
  };
}
