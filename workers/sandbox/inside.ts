/** The ways into a sandbox for work that may be begun anew: execd, and where there is no way to it, SSH to the node. */
import { FleetError } from "../../shared/errors.ts";
import { sendFiles } from "../exec/send-files.ts";
import { addressNow, NO_DAEMON, NO_WAY_OVER_SSH, NO_WAY_TO_EXECD } from "../handlers/exec.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import type { NodeShell } from "../ssh/node-shell.ts";
import { ownContainer, type Place } from "./look.ts";

export interface Script {
  /** For /bin/bash, run as root. */
  text: string;
  stdin?: Uint8Array;
  /** Each line of its output, without its end; the next is handed on when this one is done with. */
  onLine?: (line: string) => Promise<void> | void;
}

export interface Inside {
  /** Throws `transfer_interrupted` where it is unknown whether and how it ended. */
  run(script: Script): Promise<{ exitCode: number; stderr: string }>;
  /** Bytes that `stdin` may have. */
  readonly stdinLimit: number;
  /** Sends a tar to execd's `/files`; false where there is none, or it can't unpack. */
  unpack(tar: AsyncIterable<Uint8Array>, length: number): Promise<boolean>;
}

/** Of a script; the operation's own deadline comes first. */
const TIMEOUT_MS = 3_600_000;
const KEEP_BYTES = 16_384;

/** Does `work` on the best way there is; on another when that turns out to be none. `call` says what may stop it. */
export async function goInside<T>(
  run: Run,
  call: Call,
  work: (inside: Inside) => Promise<T>,
  { seek = true }: { seek?: boolean } = {},
): Promise<T> {
  try {
    return await throughExecd(run, call, work, seek);
  } catch (cause) {
    const { shell } = run.context;
    if (shell === null || !(cause instanceof FleetError) || !NO_WAY_TO_EXECD.has(cause.code)) throw cause;
    const { place } = await ownContainer(run); // the number alone could be another's by now
    run.log.info({ code: cause.code, node: place.node }, "execd can't be reached; going over SSH");
    try {
      return await work(overSsh(shell, place, call));
    } catch (error) {
      if (!(error instanceof FleetError) || !NO_WAY_OVER_SSH.has(error.code)) throw error;
      throw cause.with({ ssh: error.code });
    }
  }
}

/** With what is known of address and token; should that be outdated, once more with what is true now. */
async function throughExecd<T>(run: Run, call: Call, work: (inside: Inside) => Promise<T>, seek: boolean): Promise<T> {
  const facts = { sandbox: run.sandbox.id };
  const readToken = async () => (await run.context.secrets.get(run.sandbox.id)).execToken;
  let token = await readToken();
  if (token === undefined) throw new FleetError("not_configured", NO_DAEMON, { facts });
  let address = run.sandbox.address ?? (seek ? await addressNow(run) : null);
  for (let fresh = !seek; ; fresh = true) {
    if (address === null) throw new FleetError("no_address", "the sandbox has no address", { facts });
    try {
      return await work(byExecd(run, { address, token }, call));
    } catch (error) {
      if (fresh || !(error instanceof FleetError)) throw error;
      if (error.code === "execd_unreachable") address = await addressNow(run);
      else if (error.code === "execd_unauthorized") token = (await readToken()) ?? token;
      else throw error;
    }
  }
}

/** A command is one argument of bash, and Linux takes 128 KiB of one (MAX_ARG_STRLEN, execve(2)); in base64, and with the script. */
const EXECD_STDIN = 90_000;

function byExecd(run: Run, to: { address: string; token: string }, { signal, guard }: Call): Inside {
  return {
    stdinLimit: EXECD_STDIN,
    unpack: (tar, length) => sendFiles({ ...to, tar, length, signal, guard }),
    run: ({ text, stdin, onLine }) =>
      interruptible(
        run.context.execd.exec({
          ...to,
          script: stdin === undefined ? text : withInput(text, stdin),
          timeoutMs: TIMEOUT_MS,
          keepBytes: KEEP_BYTES,
          signal,
          ...(guard ? { guard } : {}),
          ...(onLine ? { onOutput: (name, line) => (name === "stdout" ? onLine(line.slice(0, -1)) : undefined) } : {}),
        }),
      ),
  };
}

const withInput = (text: string, stdin: Uint8Array) =>
  `script() {\n${text}\n}\nbase64 -d <<"END" | script\n${Buffer.from(stdin).toString("base64")}\nEND`;

/** Below the 1 MiB that a command's input may have there. */
const SSH_STDIN = 786_432;

function overSsh(shell: NodeShell, { node, vmid }: Place, { signal, guard }: Call): Inside {
  return {
    stdinLimit: SSH_STDIN,
    unpack: async () => false,
    async run({ text, stdin, onLine }) {
      const lines = createLines(onLine);
      const { code, stderr } = await interruptible(
        shell.run(
          node,
          { verb: "exec", vmid, script: text, timeoutMs: TIMEOUT_MS },
          {
            signal: AbortSignal.any([signal, lines.failed]),
            keepBytes: KEEP_BYTES,
            onOutput: (name, chunk) => (name === "stdout" ? lines.add(chunk) : undefined),
            ...(stdin ? { stdin } : {}),
            ...(guard ? { guard } : {}),
          },
        ),
      );
      await lines.done();
      return { exitCode: code ?? 137, stderr };
    },
  };
}

/** Of what has come and is not yet handed on; what is read of a channel can't be slowed down. */
const BACKLOG_LIMIT = 33_554_432;

/** Cuts chunks that come whenever they come into lines that are handed on one after the other. */
export function createLines(onLine: Script["onLine"]): {
  readonly failed: AbortSignal;
  add(chunk: Buffer): void;
  done(): Promise<void>;
} {
  const failed = new AbortController();
  let last: Promise<void> = Promise.resolve();
  let rest = "";
  let waiting = 0;
  const handOn = async (lines: string) => {
    for (const line of lines.split("\n")) await onLine?.(line);
    waiting -= lines.length + 1;
  };
  return {
    failed: failed.signal,
    add(chunk: Buffer) {
      waiting += chunk.length;
      rest += chunk.toString("latin1");
      const end = chunk.lastIndexOf("\n");
      if (end >= 0) {
        const lines = rest.slice(0, end - chunk.length);
        rest = rest.slice(lines.length + 1);
        last = last.then(() => handOn(lines));
        last.catch((error: unknown) => failed.abort(error));
      }
      if (waiting > BACKLOG_LIMIT) {
        failed.abort(new FleetError("transfer_interrupted", "more came over SSH than could be stored in time"));
      }
    },
    done: () => last,
  };
}

/** A transfer may be begun anew where a command may not. */
async function interruptible<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof FleetError) || error.code !== "exec_interrupted") throw error;
    throw new FleetError("transfer_interrupted", "the connection into the sandbox broke in the middle of a transfer", {
      cause: error,
    });
  }
}
