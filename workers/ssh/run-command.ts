/** One command on one node, from the waiting line to its result. */
import { setTimeout as delay } from "node:timers/promises";
import { FleetError } from "../../shared/errors.ts";
import { type NodeCommand, toCommandLine } from "../../shared/node-commands.ts";
import { orAbort } from "../or-abort.ts";
import { type Channel, openChannel, Unopened } from "./channel.ts";
import type { NodeConnection } from "./connection.ts";
import { lost, notBegun } from "./failures.ts";
import type { Link } from "./link.ts";
import type { CommandResult, ShellCall } from "./node-shell.ts";

const DEADLINE_MS = 30_000;
/** Over the time-out that a script has itself. */
const GRACE_MS = 10_000;
/** Several, as others may have filled the new connection of a server that allows few sessions each. */
const ATTEMPTS = 8;
const FREEING_MS = 20;
const STDIN_LIMIT = 1_048_576;

export async function runCommand(
  connection: NodeConnection,
  command: NodeCommand,
  call: ShellCall,
): Promise<CommandResult & { begun: boolean }> {
  checkInput(command, call);
  const deadlineMs = call.deadlineMs ?? deadlineOf(command);
  const timeUp = AbortSignal.timeout(deadlineMs);
  const { node } = connection;
  const late = `no answer within ${deadlineMs} ms`;
  const signal = AbortSignal.any([call.signal, connection.closing, timeUp]);

  const session = await openSession(connection, command, call, signal).catch((error: unknown) => {
    call.signal.throwIfAborted();
    throw timeUp.aborted && error === signal.reason ? notBegun(node, late, error) : error;
  });
  const { channel, release } = session;
  void channel.closed.then(release);
  try {
    const exit = await orAbort(channel.exit, signal);
    return { ...exit, ...channel.texts(), begun: channel.begun() };
  } catch {
    channel.abandon();
    call.signal.throwIfAborted();
    throw lost(node, command, timeUp.aborted ? late : "the SSH connection was lost");
  }
}

function checkInput(command: NodeCommand, { stdin = "" }: ShellCall): void {
  toCommandLine(command); // throws for a bad number
  if (command.verb === "exec" && command.script.includes("\0")) {
    throw new FleetError("invalid_input", "a command must not hold a NUL byte");
  }
  if (Buffer.byteLength(stdin) > STDIN_LIMIT) {
    throw new FleetError("invalid_input", `stdin is longer than ${STDIN_LIMIT} bytes`);
  }
}

const deadlineOf = (command: NodeCommand): number =>
  command.verb === "exec" ? command.timeoutMs + GRACE_MS : DEADLINE_MS;

interface Session {
  channel: Channel;
  /** Once the channel is closed: its place is free again. */
  release: () => void;
}

/** Waits for a place, connects, opens a channel; a connection that opens none is left for a new one. */
async function openSession(
  connection: NodeConnection,
  command: NodeCommand,
  call: ShellCall,
  signal: AbortSignal,
): Promise<Session> {
  await using stack = new AsyncDisposableStack();
  stack.use(await connection.enter(signal));
  let refusing: Link | null = null;
  for (let attempt = 1; ; attempt += 1) {
    const link = await connection.connect(signal);
    const hold = link.hold();
    try {
      const channel = await openChannel(link, command, call, signal);
      stack.use(hold);
      const held = stack.move();
      return { channel, release: () => void held.disposeAsync() };
    } catch (error) {
      hold[Symbol.dispose]();
      if (!(error instanceof Unopened)) throw error;
      if (attempt === ATTEMPTS) throw notBegun(connection.node, error.message, error.cause);
      if (link.usable && link !== refusing) {
        // sshd frees a session a moment after it has said that its channel is closed.
        refusing = link;
        await orAbort(delay(FREEING_MS), signal);
      } else {
        // Lost while nobody looked, or really out of sessions: those of commands that were given up may last.
        link.retire();
      }
    }
  }
}
