/**
 * The edges of a worker process: every command to Redis that names the watched operation, every request to PVE and to a
 * guest. Wrapped from outside, in ioredis, undici and BullMQ, so that the product knows nothing of it. At an edge a fleet,
 * or one run of it, can be held: not a byte of it leaves the process until it is released, if ever.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { createHash } from "node:crypto";
import { Worker } from "bullmq";
import { Redis } from "ioredis";
import { type Dispatcher, Pool } from "undici";
import * as acceptScripts from "../../../shared/state/accept-scripts.ts";
import * as claimScripts from "../../../shared/state/claim-scripts.ts";
import * as contentScripts from "../../../shared/state/content-scripts.ts";
import * as leaseScripts from "../../../shared/state/lease-scripts.ts";
import * as streamScripts from "../../../shared/state/stream-scripts.ts";
import * as sweepScripts from "../../../shared/state/sweep-scripts.ts";
import * as writeScripts from "../../../shared/state/write-scripts.ts";

/** `before`: not sent. `sent`: sent, and the answer is not heard. `after`: answered, and the code does not go on. */
export type Moment = "before" | "sent" | "after";

export interface Boundary {
  moment: Moment;
  edge: string;
}

/** One fleet of the process and what is watched of it. */
export interface WatchedFleet {
  readonly name: string;
  /** The operation whose edges count, by when a run of the fleet claims it: the first, the second, …. */
  readonly nth: number;
  /** Where it is held; null to list the edges. */
  readonly hold: Boundary | null;
  /** What is held: all of the fleet in this process, or the run alone that came to the edge. */
  readonly scope: "fleet" | "run";
  readonly onEdge: (edge: string) => void;
  readonly onHeld: () => void;
  /** The run that was held and released has changed something: PVE was sent a change, or the record took a write. */
  readonly onActed: (edge: string) => void;
  /** The run that was held and released has come to its end. */
  readonly onOver: () => void;
}

export interface Watch {
  /** Lets what is held go on. */
  release(): void;
}

class FleetWatch implements Watch {
  readonly fleet: WatchedFleet;
  readonly claimed: string[] = [];
  readonly #times = new Map<string, number>();
  readonly #released = Promise.withResolvers<void>();
  #held: "no" | "now" | "past" = "no";
  #heldRun: Run | null = null;

  constructor(fleet: WatchedFleet) {
    this.fleet = fleet;
  }

  /** Only from the claim of the watched operation on. */
  get isOn(): boolean {
    return this.claimed.length === this.fleet.nth;
  }

  get released(): Promise<void> {
    return this.#released.promise;
  }

  /** The edge with its number. */
  count(name: string): string {
    const times = (this.#times.get(name) ?? 0) + 1;
    this.#times.set(name, times);
    const edge = times === 1 ? name : `${name} #${times}`;
    this.fleet.onEdge(edge);
    return edge;
  }

  isHold(moment: Moment, edge: string): boolean {
    return this.#held === "no" && this.fleet.hold?.moment === moment && this.fleet.hold.edge === edge;
  }

  hold(run: Run | null): void {
    this.#held = "now";
    this.#heldRun = run;
  }

  isSilent(run: Run | null): boolean {
    return this.#held === "now" && (this.fleet.scope === "fleet" || run === this.#heldRun);
  }

  /** Whether this is the run that was held, gone on again. */
  isPast(run: Run | null): boolean {
    return this.#held === "past" && run !== null && run === this.#heldRun;
  }

  release(): void {
    this.#held = "past";
    this.#released.resolve();
  }
}

/** One processing of a job, told apart by identity. */
interface Run {
  readonly job: string;
}

interface Context {
  readonly watch: FleetWatch;
  readonly run: Run | null;
}

const current = new AsyncLocalStorage<Context>();

function contextOf(what: string): Context {
  const context = current.getStore();
  if (!context) throw new Error(`of no fleet: ${what}`);
  return context;
}

/** Starts something of a fleet: all that it and its callbacks send is that fleet's. */
export function runWatched<T>(fleet: WatchedFleet, start: () => T): { watch: Watch; started: T } {
  const watch = new FleetWatch(fleet);
  return { watch, started: current.run({ watch, run: null }, start) };
}

/** Once a process, before anything connects. */
export function wrapEdges(): void {
  wrapJobs();
  wrapRedis();
  wrapHttp();
}

function wrapJobs(): void {
  const { processJob } = Worker.prototype;
  Worker.prototype.processJob = function (job, ...rest) {
    const { watch } = contextOf("a job");
    const run = { job: String(job.id) };
    return current
      .run({ watch, run }, () => processJob.call(this, job, ...rest))
      .finally(() => {
        if (watch.isPast(run)) watch.fleet.onOver();
      });
  };
}

// ---- Redis -------------------------------------------------------------------------------------------------------

const scriptNames = new Map(
  Object.entries({
    ...acceptScripts,
    ...claimScripts,
    ...contentScripts,
    ...leaseScripts,
    ...streamScripts,
    ...sweepScripts,
    ...writeScripts,
  }).flatMap(([name, script]) => (typeof script === "object" ? [[script.sha, name] as const] : [])),
);
/** What a run or the clockwork repeats by time: it changes nothing that the operation is made of. */
const BY_TIME = new Set(["extendLock", "INSPECT", "RENEW", "hget op"]);

type Command = Parameters<Redis["sendCommand"]>[0];

function wrapRedis(): void {
  const { sendCommand, defineCommand } = Redis.prototype;
  Redis.prototype.defineCommand = function (name, definition) {
    scriptNames.set(createHash("sha1").update(definition.lua).digest("hex"), name.replace(/:.*/, ""));
    defineCommand.call(this, name, definition);
  };
  Redis.prototype.sendCommand = function (command, stream) {
    const { watch, run } = contextOf(command.name);
    if (watch.isSilent(run)) return watch.released.then(() => this.sendCommand(command, stream));
    const send = () => sendCommand.call(this, command, stream);
    const name = nameOfCommand(watch, command);
    if (name === null) return noteTaken(watch, command, send());
    const edge = watch.count(name);
    const exchange = async () => {
      const answer = await settled(send() as Promise<unknown>); // ioredis' own type is unknown
      if (watch.isHold("after", edge)) {
        watch.hold(run);
        watch.fleet.onHeld();
      } else if (watch.isPast(run) && hasActed(name, answer)) watch.fleet.onActed(edge);
      if (watch.isSilent(run)) await watch.released;
      return answer.status === "fulfilled" ? answer.value : Promise.reject(answer.reason);
    };
    if (!watch.isHold("before", edge)) return exchange();
    watch.hold(run);
    watch.fleet.onHeld();
    return watch.released.then(exchange);
  };
}

/** In the queue of pools a job is taken and claimed in one step: what was claimed, its reply tells. */
function noteTaken(watch: FleetWatch, { name, args }: Command, sent: unknown): unknown {
  if (name !== "evalsha" || args[4] !== "warm") return sent;
  const note = (reply: unknown) => {
    const [job, claim] = reply as [unknown[], unknown]; // see take.ts
    const id = typeof job[1] === "string" && claim !== null ? job[1] : undefined;
    if (id !== undefined && !watch.claimed.includes(id)) watch.claimed.push(id);
  };
  return (sent as Promise<unknown>).then((reply) => {
    note(reply);
    return reply;
  });
}

async function settled(promise: Promise<unknown>): Promise<PromiseSettledResult<unknown>> {
  const [outcome] = await Promise.allSettled([promise]);
  return outcome;
}

/** Whether a fenced script took the change. */
function hasActed(name: string, answer: PromiseSettledResult<unknown>): boolean {
  if (answer.status === "rejected" || !/^(WRITE|END|CLAIM|LEASE|take|release)/.test(name)) return false;
  const [outcome] = [answer.value].flat();
  return outcome === "ok" || outcome === "claimed" || outcome === 1;
}

function nameOfCommand(watch: FleetWatch, command: Command): string | null {
  const args = command.args.map(String);
  // Sent once more with its text, where the server did not know it: the same edge.
  if (command.name === "eval") return null;
  const isScript = command.name === "evalsha";
  const [script = "", keyCount = "0", ...rest] = args;
  const known = isScript ? scriptNames.get(script) : undefined;
  if (known === "CLAIM") {
    const operation = rest[Number(keyCount) + 1] ?? "";
    if (!watch.claimed.includes(operation)) watch.claimed.push(operation);
  }
  const target = watch.claimed[watch.fleet.nth - 1];
  if (!watch.isOn || target === undefined) return null;
  // What the clockwork asks for names a sandbox in JSON.
  if (known !== "ACCEPT" && !args.some((arg) => arg.includes(target) || /:sbx_/.test(arg))) return null;
  const name = isScript
    ? nameOfScript(known, rest.slice(0, Number(keyCount)), rest.slice(Number(keyCount)))
    : `${command.name} ${(args[0] ?? "").split(":").at(1) ?? ""}`;
  return BY_TIME.has(name) ? null : name;
}

function nameOfScript(known: string | undefined, keys: readonly string[], args: readonly string[]): string {
  const slot = keys[0]?.split(":slot:")[1];
  if (slot !== undefined)
    return keys.length === 1 ? "RENEW" : `${args.length > 4 ? "take" : "release"} ${slot.replace(/-\d+$/, "")}`;
  if (known === "WRITE") return `WRITE ${describeWrite(args[3] ?? "{}")}`;
  return known ?? "unknown script";
}

/** What a fenced write says: the step with its state, or the fields. */
function describeWrite(json: string): string {
  const write = JSON.parse(json) as { operation: { set: string[] }; sandbox?: { set: string[] }; also: string[][] }; // shape: write-scripts.ts
  const fieldsOf = (set: readonly string[]) =>
    new Map(set.flatMap((_, at) => (at % 2 ? [] : [[set[at], set[at + 1]]])));
  const operation = fieldsOf(write.operation.set);
  const step = JSON.parse(operation.get("step") ?? "null") as { name: string; open?: boolean; upid?: string } | null; // as above
  const state = fieldsOf(write.sandbox?.set ?? [])
    .get("state")
    ?.replaceAll('"', "");
  const told = step ? `${step.name}${step.upid ? " upid" : step.open ? " open" : ""}` : [...operation.keys()].join("+");
  const [also] = write.also.map(([command, key]) => `${command} ${key?.split(":").at(1)}`);
  return [told, state].filter(Boolean).join(", ") || (also ?? "nothing");
}

// ---- PVE and guests ----------------------------------------------------------------------------------------------

function wrapHttp(): void {
  const { dispatch } = Pool.prototype;
  Pool.prototype.dispatch = function (options, handler) {
    const { watch, run } = contextOf(`${options.method} ${options.path}`);
    if (watch.isSilent(run)) {
      void watch.released.then(() => this.dispatch(options, handler));
      return true;
    }
    const name = watch.isOn ? nameOfRequest(options) : null;
    if (name === null) return dispatch.call(this, options, handler);
    const edge = watch.count(name);
    const send = () => dispatch.call(this, options, heldAt({ watch, run }, edge, handler));
    if (watch.isHold("before", edge)) {
      watch.hold(run);
      watch.fleet.onHeld();
      void watch.released.then(send);
      return true;
    }
    if (!watch.isHold("sent", edge)) return send();
    const sent = send();
    watch.hold(run);
    return sent;
  };
}

/** The handler, which hears of its end no sooner than what holds it allows. */
function heldAt(
  { watch, run }: Context,
  edge: string,
  handler: Dispatcher.DispatchHandler,
): Dispatcher.DispatchHandler {
  const ends = new Set<PropertyKey>(["onResponseEnd", "onResponseError"]);
  const wasSent = watch.isHold("sent", edge);
  return new Proxy(handler, {
    get(target, property) {
      const own: unknown = Reflect.get(target, property);
      if (typeof own !== "function") return own;
      return (...args: unknown[]) => {
        const go = () => Reflect.apply(own, target, args);
        if (property === "onRequestStart") {
          go(); // throws where the run may not act any more
          if (wasSent) setImmediate(watch.fleet.onHeld);
          if (watch.isPast(run) && !/^(GET|probe) /.test(edge)) watch.fleet.onActed(edge);
          return undefined;
        }
        if (!ends.has(property)) return go();
        if (watch.isHold("after", edge)) {
          watch.hold(run);
          watch.fleet.onHeld();
        }
        return watch.isSilent(run) ? void watch.released.then(go) : go();
      };
    },
  });
}

/** Null for what is read of the cluster as a whole. */
function nameOfRequest({ method, path }: Dispatcher.DispatchOptions): string | null {
  const plain = decodeURIComponent(path.replace(/^\/api2\/json/, "").split("?")[0] ?? "");
  if (plain === "/exec") return "probe execd";
  if (plain === "/cluster/nextid") return "GET nextid";
  const task = /^\/nodes\/[^/]+\/tasks\/UPID:(?:[^:]*:){4}([^:]*):/.exec(plain)?.[1];
  if (task !== undefined) return `${method} task ${task}`;
  if (/\/vzdump$/.test(plain)) return `${method} archive`;
  if (/\/storage\/[^/]+\/content/.test(plain)) return `${method} archives`;
  if (method === "POST" && /^\/nodes\/[^/]+\/lxc$/.test(plain)) return "POST container";
  const container = /^\/nodes\/[^/]+\/lxc\/(\d+)\/?(.*)$/.exec(plain);
  if (!container || (method === "GET" && Number(container[1]) < 20_000)) return null;
  // A snapshot's name is another in each fleet.
  const what = (container[2] ?? "").replace(/^snapshot\/[^/]+/, "snapshot/*");
  return `${method} ${what || "container"}`;
}
