import { randomBytes } from "node:crypto";
import { type Bell, createBell } from "../../shared/bell.ts";
import { FleetError, unreachable } from "../../shared/errors.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import { toUserError } from "../exec/asked.ts";
import { createLiveOutput, type LiveOutput } from "../exec/live-output.ts";
import { type As, toScriptAs } from "../exec/shell.ts";
import { orAbort } from "../or-abort.ts";
import type { Run } from "../run/run.ts";
import { ownContainer } from "../sandbox/look.ts";
import type { NodeTerminal } from "../ssh/terminal.ts";
import { stayWithNode } from "./exec.ts";
import type { Handler } from "./handler.ts";

export const shell: Handler<"shell"> = {
  async run(run) {
    stayWithNode(run);
    if (run.operation.step?.name === "sent") {
      throw new FleetError("exec_interrupted", "the worker that held the shell has gone, and the shell with it", {
        facts: { sandbox: run.sandbox.id },
      });
    }
    const begun = performance.now();
    const live = createLiveOutput(run.addOutput);
    try {
      const { exitCode, ended } = await hold(run, live);
      const result = { exitCode, ended, durationMs: Math.round(performance.now() - begun) };
      return { result, write: { output: await live.close() } };
    } catch (error) {
      const rest = await live.close();
      if (rest.length > 0) await run.addOutput(rest).catch(() => {});
      throw error;
    }
  },
};

/** As a shell tells of what SIGHUP ended. */
const HUNG_UP = 129;
/** For what a terminal still shows once it was hung up. */
const CLOSING_MS = 1_000;

async function hold(run: Run<"shell">, live: LiveOutput): Promise<Omit<JobOutput<"shell">, "durationMs">> {
  const { user } = run.input;
  const as = user === undefined ? undefined : { user, mark: `fleet-${randomBytes(12).toString("hex")}` };
  const screen = createScreen(live, as);
  const terminal = await open(run, as, screen);
  const stop = new AbortController();
  try {
    const fed = feed(run, terminal, AbortSignal.any([stop.signal, run.signal]));
    const exit = terminal.exit.then((code) => ({ ended: "exit" as const, exitCode: code ?? HUNG_UP }));
    const first = await orAbort(Promise.race([exit, fed.then((ended) => ({ ended, exitCode: HUNG_UP }))]), run.signal);
    if (screen.refusal() !== undefined) throw toUserError(run.sandbox.id, user ?? "", screen.refusal() ?? "");
    return first;
  } finally {
    stop.abort();
    terminal.close();
    screen.stop();
    await Promise.race([terminal.exit.catch(() => {}), run.pause(CLOSING_MS).catch(() => {})]);
  }
}

async function open(run: Run<"shell">, as: As | undefined, screen: Screen): Promise<NodeTerminal> {
  const { shell: ssh, secrets } = run.context;
  const facts = { sandbox: run.sandbox.id };
  if (ssh === null) {
    throw new FleetError(
      "unsupported",
      "a shell needs SSH to the nodes: set FLEET_SSH_KEY for the workers; fleet exec runs commands without it",
      { facts: { ...facts, variables: ["FLEET_SSH_KEY"] } },
    );
  }
  const { place } = await ownContainer(run); // the number alone could be another's by now
  const { env } = secrets.openSandbox(run.sandbox.id, run.sealed.sandbox);
  const { command = "exec /bin/bash -l", cols, rows, term } = run.input;
  const script = toScriptAs(command, { env: { TERM: term, ...env } }, as);
  const terminal = await ssh.open(
    place.node,
    { verb: "shell", vmid: place.vmid, script },
    { cols, rows, term, signal: run.signal, onOutput: screen.show, ready: () => run.begin("sent") },
  );
  screen.slowDown(terminal);
  return terminal;
}

interface Screen {
  show(chunk: Buffer): void;
  /** Lets the terminal wait while more was shown than is written. */
  slowDown(terminal: NodeTerminal): void;
  stop(): void;
  /** Why nobody could become the user that was asked for. */
  refusal(): string | undefined;
}

const BACKLOG = { most: 262_144, least: 65_536 };
const LOOK_MS = 10;

function createScreen(live: LiveOutput, as: As | undefined): Screen {
  let terminal: NodeTerminal | undefined;
  let refusal: string | undefined;
  let waiting: NodeJS.Timeout | undefined;
  const stop = () => {
    clearInterval(waiting);
    waiting = undefined;
  };
  const wait = () => {
    if (live.backlog < BACKLOG.most || waiting !== undefined) return;
    terminal?.pause();
    waiting = setInterval(() => {
      if (live.backlog > BACKLOG.least) return;
      stop();
      terminal?.resume();
    }, LOOK_MS);
  };
  return {
    show(chunk) {
      if (as && chunk.includes(as.mark)) refusal = chunk.toString();
      else live.add("stdout", chunk);
      wait();
    },
    slowDown(of) {
      terminal = of;
      wait();
    },
    stop,
    refusal: () => refusal,
  };
}

/** A message may be lost. */
const REREAD_MS = 1_000;

/** Hands on what is typed, until it is hung up or nobody gives a sign of life any more. */
async function feed(run: Run<"shell">, terminal: NodeTerminal, signal: AbortSignal): Promise<"closed" | "vanished"> {
  const { channels, keys } = run.context;
  const bell = createBell();
  using _ = channels.listen(keys.shellInput(run.id), bell.ring);
  signal.addEventListener("abort", bell.ring, { once: true });
  let after = "0-0";
  let heardAt = performance.now();
  while (!signal.aborted) {
    const entries = await read(run, after, bell);
    for (const { id, input } of entries) {
      after = id;
      heardAt = performance.now();
      switch (input.kind) {
        case "bytes":
          terminal.write(input.bytes);
          break;
        case "size":
          terminal.resize(input.cols, input.rows);
          break;
        case "alive":
          break;
        case "close":
          return "closed";
        default:
          throw unreachable(input);
      }
    }
    if (entries.length > 0) continue;
    if (performance.now() - heardAt > run.input.silenceMs) return "vanished";
    await bell.wait(REREAD_MS);
  }
  return "closed";
}

/** Nothing while Redis is away: the run itself ends when that takes long. */
async function read({ id, context }: Run, after: string, bell: Bell) {
  try {
    return await context.shellInputs.read(context.redis, id, after);
  } catch (error) {
    if (error instanceof FleetError) throw error;
    await bell.wait(REREAD_MS);
    return [];
  }
}
