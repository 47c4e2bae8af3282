/** cmux-execd, the HTTP command daemon in every sandbox (port 39375). Source: cmux's README of execd, see docs. */
import type { Socket } from "node:net";
import { Agent, buildConnector, Client, type Dispatcher, errors, request } from "undici";
import { FleetError } from "../../shared/errors.ts";
import { EXECD_PORT } from "../../shared/jobs/fields.ts";
import { createReply, type ExecOutcome } from "./exec-reply.ts";
import type { Framing } from "./framing.ts";
import { toKill, toMark } from "./leftovers.ts";
import { createSpares, isUnused } from "./spares.ts";

/** The variable through which PVE 9.1 and later hand the token in. */
export const EXECD_TOKEN_ENV = "CMUX_EXECD_AUTH_TOKEN";

export interface ExecCall {
  address: string;
  token: string;
  /** One shell text for /bin/bash -c. */
  script: string;
  /** What it begins can be ended by this name (letters, digits, `_` and `.`), and is when its time is up; see `leftovers.ts`. */
  name?: string | undefined;
  /** 0: for as long as it takes. It ends with 124 when that is over. */
  timeoutMs: number;
  /** Bytes to keep of each stream. */
  keepBytes: number;
  signal: AbortSignal;
  /** The sandbox since it came up; once this command has ended well a connection is made ahead for its next one. */
  guest?: string | undefined;
  /** Of a framed script: what a line of its stdout says was printed, see `framing.ts`. */
  readLine?: Framing["read"] | undefined;
  /** Each line as it comes, also past `keepBytes`, with its line feed; nothing more is read while it is awaited. */
  onOutput?: (stream: "stdout" | "stderr", line: string) => unknown;
  /** Nothing is sent before it is done; what it throws comes through, unless there is no connection either. */
  ready?: Promise<unknown> | undefined;
  /** Called right before the request is written to its connection; what it throws comes through, and nothing is sent. */
  guard?: (() => void) | undefined;
}

export interface Execd extends AsyncDisposable {
  /**
   * Runs a command. Throws `execd_unreachable` when it was certainly not started, `execd_unauthorized` when the token is refused,
   * `exec_interrupted` when the connection broke in the middle, `timeout` when the daemon does not answer any more.
   */
  exec(call: ExecCall): Promise<ExecOutcome>;
  /** Ends what a command of that name left running. Throws as `exec`. */
  kill(call: Pick<ExecCall, "address" | "token" | "signal" | "guard"> & { name: string }): Promise<void>;
  /** Whether the daemon is up and takes our token: part of a probe, at a tenth of its time, since nothing is run. */
  answers(call: { address: string; token: string; signal: AbortSignal }): Promise<boolean>;
  /** Whether the daemon is up and refuses callers without our token: `open` means it takes everybody. */
  probe(call: {
    address: string;
    token: string;
    signal: AbortSignal;
  }): Promise<"ready" | "open" | "wrong_token" | "down">;
}

const PROBE_MS = 3_000;
/**
 * Over a command's own time: execd ends its bash then, and answers once nobody holds its output any more; later, what holds it
 * is ended, too; and later still there is nobody who answers, as in a frozen guest.
 */
const OVERDUE_MS = 500;
const SILENT_MS = 10_000;
const KILL_MS = 3_000;
/** As `timeout(1)` says it, and execd. */
const OUT_OF_TIME = 124;

/** A guest that comes up answers a connect at once or not at all. */
export const CONNECT_MS = 3_000;

export function createExecd(): Execd {
  // For probes alone. A connection that is kept can belong to a container before its reboot, or to the address's last owner.
  const agent = new Agent({
    connections: 64,
    pipelining: 1,
    keepAliveTimeout: 4_000,
    connect: { timeout: CONNECT_MS },
    headersTimeout: PROBE_MS,
  });
  const busy = new Set<Client>();
  const spares = createSpares();

  const status = async (
    address: string,
    token: string | null,
    { command = "true", signal }: { command?: string; signal: AbortSignal },
  ): Promise<number> => {
    const reply = await post(agent, { address, token, body: { command, timeout_ms: PROBE_MS }, signal });
    await reply.body.dump();
    return reply.statusCode;
  };

  const exec = async (call: ExecCall): Promise<ExecOutcome> => {
    call.ready?.catch(() => {}); // without a connection nobody asks for it
    call.signal.throwIfAborted();
    const { address, token, signal, guard, name } = call;
    const guest = call.guest === undefined ? undefined : { name: call.guest, address, port: EXECD_PORT };
    const killAll = () => void (name && kill({ address, token, signal, guard, name }).catch(() => {}));
    // A command gets a connection of its own: a reset on a used one could mean both that it ran and that it never did.
    const client = new Client(originOf(address), {
      pipelining: 1,
      connect: connectMeanwhile(call.ready, guest && spares.take(guest)),
      // execd says nothing before the command does.
      bodyTimeout: 0,
      headersTimeout: 0,
    });
    busy.add(client);
    const close = () => void client.destroy(OVER).finally(() => busy.delete(client));
    try {
      const outcome = await execOn(client, call, killAll);
      // Whoever waits for the outcome need not wait for these.
      setImmediate(() => {
        close();
        if (guest) spares.add(guest);
      });
      return outcome;
    } catch (error) {
      close();
      throw error;
    }
  };
  const kill: Execd["kill"] = async ({ name, ...call }) => {
    await exec({ ...call, script: toKill(name), timeoutMs: KILL_MS, keepBytes: 0 });
  };

  return {
    exec,
    kill,

    async answers({ address, token, signal }) {
      try {
        // It asks for the token first, then refuses the empty command.
        return (await status(address, token, { command: "", signal })) === 400;
      } catch {
        return false;
      }
    },

    async probe({ address, token, signal }) {
      const limited = AbortSignal.any([signal, AbortSignal.timeout(PROBE_MS)]);
      try {
        // Both at once: the refusal without a token is as much a condition as the acceptance with it.
        const [without, withToken] = await Promise.all([
          status(address, null, { signal: limited }),
          status(address, token, { signal: limited }),
        ]);
        if (without === 200) return "open";
        if (withToken === 401) return "wrong_token";
        return without === 401 && withToken === 200 ? "ready" : "down";
      } catch {
        signal.throwIfAborted();
        return "down";
      }
    },

    async [Symbol.asyncDispose]() {
      spares[Symbol.dispose]();
      await Promise.all([agent, ...busy].map((one) => one.destroy()));
    },
  };
}

/** Undici makes an error of its own for each client otherwise, which takes as long as to make the client. */
const OVER = new Error("the command has ended");

const connect = buildConnector({ timeout: CONNECT_MS });

/** Makes the connection while `ready` is on its way, unless `spare` is one, and gives it out when both are there. */
function connectMeanwhile(ready: Promise<unknown> = Promise.resolve(), spare?: Socket): buildConnector.connector {
  let kept = spare;
  const connectOrTake: buildConnector.connector = (options, callback) => {
    const give = (socket: Socket, orElse: () => void) =>
      ready.then(
        () => (isUnused(socket) ? callback(null, socket) : orElse()),
        (error: Error) => {
          socket.destroy();
          callback(error, null);
        },
      );
    const own = kept;
    kept = undefined;
    if (own) return void give(own, () => connectOrTake(options, callback));
    connect(options, (failed, socket) => {
      if (failed) return callback(failed, null);
      give(socket, () => callback(OVER, null));
    });
  };
  return connectOrTake;
}

export const originOf = (address: string) => `http://${address.includes(":") ? `[${address}]` : address}:${EXECD_PORT}`;

interface Post {
  address: string;
  token: string | null;
  body: { command: string; timeout_ms: number };
  signal: AbortSignal;
}

const post = (dispatcher: Dispatcher, { address, token, body, signal }: Post) =>
  request(`${originOf(address)}/exec`, { method: "POST", dispatcher, signal, ...toPost(token, body) });

const toPost = (token: string | null, body: Post["body"]) => ({
  headers: { "content-type": "application/json", ...(token === null ? {} : { authorization: `Bearer ${token}` }) },
  body: JSON.stringify(body),
});

/** Without undici's stream of a reply, which costs a short command as much as all else that is done about it here. */
function execOn(client: Client, call: ExecCall, onOverdue: () => void): Promise<ExecOutcome> {
  const { address, token, name, timeoutMs, signal } = call;
  const script = name === undefined ? call.script : `${toMark(name)}${call.script}`;
  const { promise, resolve, reject } = Promise.withResolvers<ExecOutcome>();
  const reply = createReply(call);
  const gate = createGate(call.guard);
  let isOverdue = false;
  /** Nothing comes after the outcome, and the end of the reply may take a while longer. */
  const settle = (outcome: ExecOutcome | undefined) => {
    if (outcome) resolve(isOverdue ? { ...outcome, exitCode: OUT_OF_TIME } : outcome);
  };
  const fail = (error: unknown) => {
    if (error instanceof FleetError) reject(error);
    else reject(gate.passed() ? interrupted(error) : unreachable(address, error));
  };
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  const overdue = () => {
    isOverdue = true;
    onOverdue();
  };
  const timers =
    timeoutMs === 0
      ? []
      : [
          setTimeout(overdue, timeoutMs + OVERDUE_MS),
          setTimeout(() => reject(silent(address, timeoutMs)), timeoutMs + SILENT_MS),
        ];
  client.dispatch(
    { path: "/exec", method: "POST", ...toPost(token, { command: script, timeout_ms: timeoutMs }) },
    {
      onRequestStart() {
        try {
          gate.open();
        } catch (by) {
          reject(by);
          throw by;
        }
      },
      onResponseStart(_, status) {
        if (status !== 200) reject(refused(address, status));
      },
      onResponseData(controller, chunk) {
        const outcome = reply.add(chunk);
        if (!(outcome instanceof Promise)) return settle(outcome);
        controller.pause();
        outcome.then((after) => {
          settle(after);
          controller.resume();
        }, fail);
      },
      onResponseEnd() {
        if (reply.isOver) return; // as always: to make an error for nothing takes 0.1 ms
        Promise.resolve(reply.end()).then((outcome) => {
          settle(outcome);
          reject(interrupted(undefined));
        }, fail);
      },
      onResponseError: (_, error) => fail(error),
    },
  );
  return promise.finally(() => {
    for (const timer of timers) clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  });
}

/** Runs the guard when the connection stands and the request is about to be written; tells whether it was. */
export function createGate(guard: (() => void) | undefined) {
  let passed = false;
  let refusal: { by: unknown } | undefined;
  const open = () => {
    try {
      guard?.();
    } catch (by) {
      refusal = { by };
      throw by;
    }
    passed = true;
  };
  const interceptor: Dispatcher.DispatcherComposeInterceptor = (dispatch) => (options, handler) =>
    dispatch(options, {
      onRequestStart(controller, context) {
        open();
        handler.onRequestStart?.(controller, context);
      },
      onResponseStart: (...args) => handler.onResponseStart?.(...args),
      onResponseData: (...args) => handler.onResponseData?.(...args),
      onResponseEnd: (...args) => handler.onResponseEnd?.(...args),
      onResponseError: (...args) => handler.onResponseError?.(...args),
    });
  return {
    open,
    interceptor,
    /** false: not a byte was written, so the command was certainly not started. */
    passed: () => passed,
    throwIfRefused() {
      if (refusal) throw refusal.by;
    },
  };
}

/**
 * What an answer other than 200 means. execd itself refuses before it begins: 401, 400 and 415 for what it can't read, 404 and 405
 * for what it does not have. It has no word for what fails later, but what a sandbox has in its place may.
 */
export function refused(address: string, status: number): FleetError {
  const facts = { status };
  if (status === 401 || status === 403)
    return new FleetError("execd_unauthorized", "the exec daemon does not take the sandbox's token", { facts });
  if (status === 400 || status === 413)
    return new FleetError("invalid_input", `the exec daemon refused the command (${status})`, { facts });
  if (status > 400 && status < 500)
    return new FleetError("execd_unreachable", `what answers at ${address} is not the exec daemon (${status})`, {
      facts,
    });
  return new FleetError(
    "exec_interrupted",
    `the exec daemon answered ${status} instead of running the command; whether it began is unknown`,
    { facts },
  );
}

/** execd writes both streams unlocked: where they come at once, what it sends is no HTTP now and then. */
const interrupted = (cause: unknown) =>
  new FleetError(
    "exec_interrupted",
    cause instanceof errors.HTTPParserError
      ? "the exec daemon's reply was damaged, as happens where both streams come at once; exact: true keeps it from that"
      : "the connection to the exec daemon broke; whether the command ended is unknown",
    { cause },
  );

const silent = (address: string, timeoutMs: number) =>
  new FleetError(
    "timeout",
    `the exec daemon at ${address} has not answered, and the command's ${timeoutMs} ms are long over`,
  );

const unreachable = (address: string, cause: unknown) =>
  new FleetError("execd_unreachable", `the exec daemon at ${address} can't be reached`, { cause });
