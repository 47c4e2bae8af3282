/** One channel of a connection: a command is sent, its output read, its end awaited. */
import type { ClientChannel } from "ssh2";
import type { NodeCommand } from "../../shared/node-commands.ts";
import { toCommandInput, toCommandLine } from "../../shared/node-commands.ts";
import type { Link } from "./link.ts";
import type { ShellCall } from "./node-shell.ts";
import { createOutput, type Texts } from "./output.ts";

/** A server that is up opens a session at once. */
const OPEN_MS = 10_000;
/** What comes after the exit is read until it pauses for so long; a process left behind may hold the streams for ever. */
const REST_MS = 250;
/** For the server to confirm that a channel is closed. */
const CLOSE_MS = 2_000;

export interface Exit {
  code: number | null;
  signal?: string;
}

export interface Channel {
  /** Rejects when the connection is lost. */
  readonly exit: Promise<Exit>;
  /** The session is no more, or nobody says so. */
  readonly closed: Promise<void>;
  /** The script of an `exec` was started. */
  begun(): boolean;
  texts(): Texts;
  /** Gives the command up: what runs in a container ends with its input, other tools get a SIGTERM where sshd allows it. */
  abandon(): void;
}

/** The server opened no session: nothing was run. */
export class Unopened extends Error {}

/** Sends the command. Rejects with `Unopened`, with what the guard throws, or with the signal's reason. */
export function openChannel(link: Link, command: NodeCommand, call: ShellCall, signal: AbortSignal): Promise<Channel> {
  const line = toCommandLine(command);
  return new Promise<Channel>((resolve, reject) => {
    const settle = (run: () => void) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      run();
    };
    let left = false;
    const onAbort = () => settle(() => leave(signal.reason));
    const leave = (reason: unknown) => {
      left = true;
      reject(reason);
    };
    const timer = setTimeout(() => {
      settle(() => leave(new Unopened("no session in time")));
      link.destroy();
    }, OPEN_MS);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      call.guard?.();
    } catch (error) {
      return settle(() => reject(error));
    }
    try {
      link.client.exec(line, (error, stream) => {
        if (left) stream?.close();
        else if (error) settle(() => reject(new Unopened("no session", { cause: error })));
        // At once: its first events may be in the packet that is being read.
        else settle(() => converse(stream, command, call, resolve, reject));
      });
    } catch (error) {
      settle(() => reject(new Unopened("not connected", { cause: error })));
    }
  });
}

function converse(
  stream: ClientChannel,
  command: NodeCommand,
  call: ShellCall,
  resolve: (channel: Channel) => void,
  reject: (error: unknown) => void,
): void {
  const output = createOutput(call, { marked: command.verb === "exec" });
  const end = Promise.withResolvers<Exit>();
  const closed = Promise.withResolvers<void>();
  end.promise.catch(() => {}); // the caller may have left
  let exit: Exit | null = null;
  let rest: NodeJS.Timeout | undefined;
  const waitForRest = () => {
    clearTimeout(rest);
    rest = setTimeout(() => stream.close(), REST_MS);
  };
  const read = (name: "stdout" | "stderr") => (chunk: Buffer) => {
    output.add(name, chunk);
    if (exit) waitForRest();
  };
  stream.on("data", read("stdout"));
  stream.stderr.on("data", read("stderr"));
  stream.on("error", () => {}); // `close` follows
  stream.on("exit", (code: number | null, signal?: string) => {
    exit = { code, ...(signal === undefined ? {} : { signal }) };
    waitForRest();
  });
  let confirm: NodeJS.Timeout | undefined;
  stream.on("close", () => {
    clearTimeout(rest);
    clearTimeout(confirm);
    if (exit) end.resolve(exit);
    else end.reject(new Error("the connection was lost"));
    closed.resolve();
  });
  const abandon = () => {
    if (command.verb !== "exec" && stream.writable) stream.signal("TERM");
    stream.close();
    confirm ??= setTimeout(closed.resolve, CLOSE_MS);
  };
  const { bytes, held } = toCommandInput(command, call.stdin);
  try {
    // Nothing is changed before these are there: this is the moment that counts.
    if (bytes.length > 0) call.guard?.();
  } catch (error) {
    abandon();
    reject(error);
    return;
  }
  stream.write(bytes);
  if (!held) stream.end();
  resolve({ exit: end.promise, closed: closed.promise, begun: output.begun, texts: output.texts, abandon });
}
