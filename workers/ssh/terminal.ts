/** A terminal in a container: a connection of its own, with one channel that has a PTY. */
import type { ClientChannel } from "ssh2";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { SHELL_MARKS, type TerminalCommand, toCommandLine, toTerminalInput } from "../../shared/node-commands.ts";
import type { NodeConnection } from "./connection.ts";
import { lost, notBegun, toRefusal } from "./failures.ts";
import type { Link } from "./link.ts";

/** From the connection to the terminal's first word; a container that is frozen gives none. */
const OPEN_MS = 15_000;
/** Where the mark has not come by then it will not come. */
const MARK_WITHIN = 16_384;
/** What comes after the exit is read until it pauses for so long; a process left behind may hold the terminal. */
const REST_MS = 250;

export interface TerminalCall {
  cols: number;
  rows: number;
  term: string;
  /** Its abort ends the opening; afterwards `close` does. */
  signal: AbortSignal;
  /** Awaited right before the script is sent; what it throws comes through, and nothing is run. */
  ready: () => Promise<void>;
  /** Each piece as it comes. */
  onOutput: (chunk: Buffer) => void;
}

export interface NodeTerminal {
  /** The exit code, null where a signal ended it. Throws `exec_interrupted` where the connection was lost before. */
  readonly exit: Promise<number | null>;
  write(bytes: Uint8Array): void;
  resize(cols: number, rows: number): void;
  /** Output stays there until `resume`; who writes much waits. */
  pause(): void;
  resume(): void;
  /** Hangs up, which ends what runs on the terminal. */
  close(): void;
}

/** Resolves once what was asked for runs. Throws as `NodeShell.run` where nothing was run. */
export async function openTerminal(
  connection: NodeConnection,
  command: TerminalCommand,
  call: TerminalCall,
): Promise<NodeTerminal> {
  const timeUp = AbortSignal.timeout(OPEN_MS);
  const signal = AbortSignal.any([call.signal, connection.closing, timeUp]);
  const link = await connection.dial(signal);
  try {
    const stream = await openChannel(link, connection.node, command, { ...call, signal });
    return await begin(stream, { link, connection, command, call, signal });
  } catch (error) {
    link.destroy();
    call.signal.throwIfAborted();
    if (timeUp.aborted && !(error instanceof FleetError))
      throw notBegun(connection.node, `no terminal within ${OPEN_MS} ms`, error);
    throw error;
  }
}

function openChannel(
  link: Link,
  node: NodeName,
  command: TerminalCommand,
  { cols, rows, term, signal }: TerminalCall,
): Promise<ClientChannel> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    const pty = { cols, rows, term, width: 0, height: 0, modes: {} };
    link.client.exec(toCommandLine(command), { pty }, (error, stream) => {
      signal.removeEventListener("abort", onAbort);
      if (!error) return resolve(stream);
      const text = `node ${node} gives no terminal: the key's line in authorized_keys there needs restrict,pty (fleet node ssh-guard prints it)`;
      reject(link.usable ? new FleetError("ssh_refused", text, { cause: error, facts: { node } }) : error);
    });
  });
}

interface Opening {
  link: Link;
  connection: NodeConnection;
  command: TerminalCommand;
  call: TerminalCall;
  signal: AbortSignal;
}

/** Waits for the marks, sends the script in between; from then on output is what runs there. */
function begin(stream: ClientChannel, { link, connection, command, call, signal }: Opening): Promise<NodeTerminal> {
  const { node } = connection;
  const begun = Promise.withResolvers<NodeTerminal>();
  const end = Promise.withResolvers<number | null>();
  end.promise.catch(() => {}); // the caller may have left
  let ahead: Buffer | null = Buffer.alloc(0);
  let sent = false;
  let exit: { code: number | null } | undefined;
  const onAbort = () => begun.reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  const start = async () => {
    await call.ready();
    signal.throwIfAborted();
    stream.write(toTerminalInput(command));
  };
  let rest: NodeJS.Timeout | undefined;
  const waitForRest = () => {
    clearTimeout(rest);
    rest = setTimeout(() => link.destroy(), REST_MS);
  };
  stream.on("data", (chunk: Buffer) => {
    if (exit) waitForRest();
    if (ahead === null) return call.onOutput(chunk);
    ahead = Buffer.concat([ahead, chunk]).subarray(0, MARK_WITHIN + chunk.length);
    const mark = SHELL_MARKS[sent ? "on" : "ready"];
    const at = ahead.indexOf(mark);
    if (at < 0 || at > MARK_WITHIN) return;
    const rest = ahead.subarray(at + mark.length);
    ahead = sent ? null : rest;
    if (!sent) start().catch(begun.reject);
    else {
      signal.removeEventListener("abort", onAbort);
      begun.resolve(terminal);
      if (rest.length > 0) call.onOutput(rest);
    }
    sent = true;
  });
  stream.stderr.on("data", () => {}); // a terminal has one stream
  stream.on("error", () => {}); // `close` follows
  stream.on("exit", (code: number | null) => {
    exit = { code };
    waitForRest();
  });
  stream.on("close", () => {
    clearTimeout(rest);
    signal.removeEventListener("abort", onAbort);
    const said = ahead?.toString() ?? "";
    begun.reject(
      exit === undefined
        ? notBegun(node, "the connection was lost", undefined)
        : toRefusal(node, command, { code: exit.code, text: said }),
    );
    if (exit === undefined) end.reject(lost(node, command, "the SSH connection was lost"));
    else end.resolve(exit.code);
    link.destroy();
  });
  const terminal: NodeTerminal = {
    exit: end.promise,
    write: (bytes) => void (stream.writable && stream.write(bytes)),
    resize: (cols, rows) => void (stream.writable && stream.setWindow(rows, cols, 0, 0)),
    pause: () => void stream.pause(),
    resume: () => void stream.resume(),
    close: () => link.destroy(),
  };
  return begun.promise;
}
