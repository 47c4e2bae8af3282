/**
 * The edges of a worker process: every command to Redis that names the watched operation, every request to PVE and to a
 * guest. Wrapped from outside, in ioredis and undici, so that the product knows nothing of it. A fleet can be held at an
 * edge: from there on not a byte of it leaves the process, which is then killed.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { createHash } from "node:crypto";
import { Redis } from "ioredis";
import { type Dispatcher, Pool } from "undici";
import * as scripts from "../../../shared/state/scripts.ts";

/** `before`: not sent. `sent`: sent, and the answer is never heard. `after`: answered, and the code does not go on. */
export type Moment = "before" | "sent" | "after";

export interface Boundary {
  moment: Moment;
  edge: string;
}

/** One fleet of the process and what is watched of it. */
export interface WatchedFleet {
  readonly name: string;
  /** The operation whose edges count: the first that a run of the fleet claims, or the second. */
  readonly nth: 1 | 2;
  /** Where it is held; null to list the edges. */
  readonly hold: Boundary | null;
  readonly onEdge: (edge: string) => void;
  readonly onHeld: () => void;
}

interface Watch {
  readonly fleet: WatchedFleet;
  readonly claimed: string[];
  /** How often each edge came. */
  readonly times: Map<string, number>;
  held: boolean;
}

const current = new AsyncLocalStorage<Watch>();

/** Starts something of a fleet: all that it and its callbacks send is that fleet's. */
export function runWatched<T>(fleet: WatchedFleet, start: () => T): T {
  return current.run({ fleet, claimed: [], times: new Map(), held: false }, start);
}

/** Once a process, before anything connects. */
export function wrapEdges(): void {
  wrapRedis();
  wrapHttp();
}

/** Resolves never: what waits for it is gone on with by nobody. */
const never = (): Promise<never> => new Promise(() => {});

/** The edge with its number, or null while the operation is not the watched one. */
function countEdge(watch: Watch, name: string): string {
  const times = (watch.times.get(name) ?? 0) + 1;
  watch.times.set(name, times);
  const edge = times === 1 ? name : `${name} #${times}`;
  watch.fleet.onEdge(edge);
  return edge;
}

const isHold = ({ fleet: { hold } }: Watch, moment: Moment, edge: string): boolean =>
  hold?.moment === moment && hold.edge === edge;

function holdFleet(watch: Watch): void {
  watch.held = true;
  watch.fleet.onHeld();
}

/** Only from the claim of the watched operation on. */
const isOn = (watch: Watch): boolean => watch.claimed.length === watch.fleet.nth;

// ---- Redis -------------------------------------------------------------------------------------------------------

const scriptNames = new Map(
  Object.entries(scripts).flatMap(([name, script]) => ("sha" in script ? [[script.sha, name] as const] : [])),
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
    const send = () => sendCommand.call(this, command, stream);
    const watch = current.getStore();
    if (!watch) throw new Error(`a Redis command of no fleet: ${command.name}`);
    if (watch.held) return never();
    const name = nameOfCommand(watch, command);
    if (name === null) return send();
    const edge = countEdge(watch, name);
    if (isHold(watch, "before", edge)) {
      holdFleet(watch);
      return never();
    }
    const heard = (reply: () => unknown) => {
      if (isHold(watch, "after", edge)) holdFleet(watch);
      return watch.held ? never() : reply();
    };
    return (send() as Promise<unknown>).then(
      (reply) => heard(() => reply),
      (error: unknown) => heard(() => Promise.reject(error)),
    );
  };
}

function nameOfCommand(watch: Watch, command: Command): string | null {
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
  if (!isOn(watch) || target === undefined) return null;
  if (!args.some((arg) => arg.includes(target) || /:sbx_/.test(arg))) return null;
  const name = isScript
    ? nameOfScript(known, rest.slice(0, Number(keyCount)), rest.slice(Number(keyCount)))
    : `${command.name} ${(args[0] ?? "").split(":").at(1) ?? ""}`;
  return BY_TIME.has(name) ? null : name;
}

function nameOfScript(known: string | undefined, keys: readonly string[], args: readonly string[]): string {
  const slot = keys[0]?.split(":slot:")[1];
  if (slot !== undefined)
    return keys.length === 1 ? "RENEW" : `${args.length === 6 ? "take" : "release"} ${slot.replace(/-\d+$/, "")}`;
  if (known === "WRITE") return `WRITE ${describeWrite(args[3] ?? "{}")}`;
  return known ?? "unknown script";
}

/** What a fenced write says: the step with its state, or the fields. */
function describeWrite(json: string): string {
  const write = JSON.parse(json) as { operation: { set: string[] }; sandbox?: { set: string[] } }; // shape: scripts.ts
  const fieldsOf = (set: readonly string[]) =>
    new Map(set.flatMap((_, at) => (at % 2 ? [] : [[set[at], set[at + 1]]])));
  const operation = fieldsOf(write.operation.set);
  const step = JSON.parse(operation.get("step") ?? "null") as { name: string; open?: boolean; upid?: string } | null; // as above
  const state = fieldsOf(write.sandbox?.set ?? [])
    .get("state")
    ?.replaceAll('"', "");
  const told = step ? `${step.name}${step.upid ? " upid" : step.open ? " open" : ""}` : [...operation.keys()].join("+");
  return [told, state].filter(Boolean).join(", ");
}

// ---- PVE and guests ----------------------------------------------------------------------------------------------

function wrapHttp(): void {
  const { dispatch } = Pool.prototype;
  Pool.prototype.dispatch = function (options, handler) {
    const watch = current.getStore();
    if (!watch) throw new Error(`a request of no fleet: ${options.method} ${options.path}`);
    if (watch.held) return true;
    const name = isOn(watch) ? nameOfRequest(options) : null;
    if (name === null) return dispatch.call(this, options, handler);
    const edge = countEdge(watch, name);
    if (isHold(watch, "before", edge)) {
      holdFleet(watch);
      return true;
    }
    const sent = dispatch.call(this, options, silenceable(watch, edge, handler));
    if (isHold(watch, "sent", edge)) watch.held = true;
    return sent;
  };
}

/** The handler, which hears of no end any more once its fleet is held. */
function silenceable(watch: Watch, edge: string, handler: Dispatcher.DispatchHandler): Dispatcher.DispatchHandler {
  const ends = new Set<PropertyKey>(["onResponseEnd", "onResponseError"]);
  return new Proxy(handler, {
    get(target, property) {
      const own: unknown = Reflect.get(target, property);
      if (typeof own !== "function") return own;
      return (...args: unknown[]) => {
        if (property === "onRequestStart" && isHold(watch, "sent", edge)) {
          // Not `guard`ed by a held fleet's silence: this very request still goes out.
          setImmediate(watch.fleet.onHeld);
        }
        if (ends.has(property) && isHold(watch, "after", edge) && !watch.held) holdFleet(watch);
        if (ends.has(property) && watch.held) return undefined;
        return Reflect.apply(own, target, args);
      };
    },
  });
}

/** Null for what is read of the cluster as a whole. */
function nameOfRequest({ method, path }: Dispatcher.DispatchOptions): string | null {
  const plain = decodeURIComponent(path.replace(/^\/api2\/json/, "").split("?")[0] ?? "");
  if (plain === "/exec") return "POST execd";
  if (plain === "/cluster/nextid") return "GET nextid";
  const task = /^\/nodes\/[^/]+\/tasks\/UPID:(?:[^:]*:){4}([^:]*):/.exec(plain)?.[1];
  if (task !== undefined) return `${method} task ${task}`;
  const container = /^\/nodes\/[^/]+\/lxc\/(\d+)\/?(.*)$/.exec(plain);
  if (!container || (method === "GET" && Number(container[1]) < 20_000)) return null;
  return `${method} ${(container[2] ?? "") === "" ? "container" : container[2]}`;
}
