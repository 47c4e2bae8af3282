import type { IncomingMessage, ServerResponse } from "node:http";
import { authenticate, type Identity } from "./access.ts";
import { now, sleep } from "./clock.ts";
import type { FaultBox } from "./fault-box.ts";
import type { RequestFault } from "./faults.ts";
import type { Guests } from "./guest/guests.ts";
import type { PveNode } from "./node.ts";
import { Refusal, refuse } from "./refusal.ts";
import { jsonReply, type Reply, send } from "./reply.ts";
import { checkTransfer, PlainRefusal, readParams } from "./request-body.ts";
import { type RequestLog, safeParams } from "./request-log.ts";
import type { Call, Route, Router } from "./router.ts";
import { verify } from "./schema/rules.ts";
import type { LogEntry } from "./views.ts";
import type { World } from "./world.ts";

const BASE = /^\/api2\/(json|extjs)(?=\/|$)/;

/** [before, after] the work, in ms: GETs take 1–8 ms, config writes 15–55, task starts 20–50. */
const PACES = {
  read: [0.7, 6, 0.3, 2],
  write: [8, 30, 7, 25],
  task: [8, 22, 12, 28],
  // A create looks whether the VMID is free at once, and claims it only some 10 ms later (see api/lxc-make.ts).
  create: [0.5, 2, 8, 20],
} as const;

/** Each heavy task beyond full speed makes task starts this much slower (400 ms under eight starts on two cores). */
const BUSY_MS = 50;

/** A reply with no body: what the proxy says when it gets none from the node. */
class NoAnswer extends Refusal {}

/** From a request to its reply: authentication, parameters, faults, proxying, timing, the error texts. */
export class Exchange {
  readonly #world: World;
  readonly #guests: Guests;
  readonly #router: Router;
  readonly #faults: FaultBox;
  readonly #log: RequestLog;

  constructor(parts: { world: World; guests: Guests; router: Router; faults: FaultBox; log: RequestLog }) {
    this.#world = parts.world;
    this.#guests = parts.guests;
    this.#router = parts.router;
    this.#faults = parts.faults;
    this.#log = parts.log;
  }

  async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const at = now();
    const [target = "/", query = ""] = (request.url ?? "/").split("?");
    const path = decodePath(target);
    const method = request.method ?? "GET";
    const entry: LogEntry = { at, method, path: path.replace(BASE, ""), params: {}, status: 0, reason: "", ms: 0 };
    try {
      const reply = await this.#answer(request, { path, query, entry });
      if (reply === "cut") response.socket?.destroy();
      else {
        entry.status = reply.status;
        entry.reason = reply.reason;
        send(response, reply);
        // What was not read is thrown away, else the reply could be lost to a reset.
        request.resume();
      }
    } catch (error) {
      // The stand-in closes, or the client went away in the middle of its request; anything else is our own mistake.
      if (!this.#world.closing.aborted && !request.destroyed)
        process.emitWarning(error instanceof Error ? error : String(error));
      response.socket?.destroy();
    }
    entry.ms = now() - at;
    this.#log.add(entry);
  }

  async #answer(
    request: IncomingMessage,
    { path, query, entry }: { path: string; query: string; entry: LogEntry },
  ): Promise<Reply | "cut"> {
    let extjs = false;
    try {
      extjs = BASE.exec(path)?.[1] === "extjs";
      checkTransfer(request);
      if (!BASE.test(path)) throw new PlainRefusal(501, "no such uri");
      const by = authenticate(this.#world, request.headers.authorization);
      const params = await readParams(request, query);
      const before = await this.#faultsBefore(entry);
      entry.params = safeParams(params);
      if (before.instead !== undefined) return before.instead;
      const reply = await this.#call({ params, entry, by, noWorker: before.noWorker });
      if (before.lose === "cut") return "cut";
      if (before.lose !== undefined) throw new NoAnswer(before.lose, lostText(before.lose));
      return extjs ? asExtjs(reply) : reply;
    } catch (error) {
      const reply = toReply(error);
      // PVE answers every 401 three seconds later.
      if (reply.status === 401) await sleep(this.#world.timings.authDelay - (now() - entry.at), this.#world.closing);
      return extjs && !(error instanceof PlainRefusal) ? asExtjs(reply) : reply;
    }
  }

  async #faultsBefore(
    entry: LogEntry,
  ): Promise<{ instead?: Reply | "cut"; lose?: 595 | 596 | "cut"; noWorker: boolean }> {
    let noWorker = false;
    for (const { fault, released } of this.#faults.take(entry.method, entry.path)) {
      entry.fault = fault.kind;
      switch (fault.kind) {
        case "delay":
          await sleep(fault.ms, this.#world.closing);
          break;
        case "hang":
          await Promise.race([released, rejectOn(this.#world.closing)]);
          break;
        case "no-worker":
          noWorker = true;
          break;
        case "lose-reply":
          return { lose: fault.as, noWorker };
        default:
          return { instead: insteadOf(fault), noWorker };
      }
    }
    return { noWorker };
  }

  async #call(asked: {
    params: Record<string, string>;
    entry: LogEntry;
    by: Identity;
    noWorker: boolean;
  }): Promise<Reply> {
    const { entry } = asked;
    const found = this.#router.find(entry.method, entry.path);
    if (found === undefined) throw new Refusal(501, `Method '${entry.method} ${entry.path}' not implemented`);
    const { route, variables } = found;
    const params = { ...asked.params, ...variables };
    const own = this.#world.nodes.values().next().value;
    if (own === undefined) throw refuse("no nodes");
    const name = variables["node"];
    if (name !== undefined) entry.node = name;
    const node = name === undefined || name === "localhost" ? own : this.#world.nodes.get(name);
    const call: Call = {
      world: this.#world,
      guests: this.#guests,
      by: asked.by,
      node: node ?? own,
      params,
      arrivedAt: entry.at,
      noWorker: asked.noWorker,
    };
    route.allow?.(call);
    if (node === undefined) {
      const why = "failed to get address info for";
      throw refuse(`hostname lookup '${name}' failed - ${why}: ${name}: Temporary failure in name resolution`);
    }
    await this.#reach(node, own, route.daemon);
    if (!route.daemon) return this.#run(route, call);
    if (node.state === "hung") return this.#runHung(node, route, call);
    return node.inDaemon(() => this.#run(route, call));
  }

  /** The proxy's own refusals, for a node that can't be reached. */
  async #reach(node: PveNode, own: PveNode, daemon: boolean): Promise<void> {
    if (node.state === "unreachable") {
      await sleep(this.#world.timings.unreachableDelay, this.#world.closing);
      throw new NoAnswer(595, "No route to host");
    }
    if (node.state === "refused" && (daemon || node !== own)) throw new NoAnswer(595, "Connection refused");
  }

  /** 596 after the proxy's timeout; the daemon has the request all the same and runs it when it wakes up. */
  async #runHung(node: PveNode, route: Route, call: Call): Promise<Reply> {
    const done = node.awake().then(() => node.inDaemon(() => this.#run(route, call)));
    done.catch(() => {});
    const timeout = sleep(this.#world.timings.hungTimeout, this.#world.closing).then(() => {
      throw new NoAnswer(596, "Connection timed out");
    });
    timeout.catch(() => {});
    return Promise.race([done, timeout]);
  }

  async #run(route: Route, call: Call): Promise<Reply> {
    const { world } = call;
    const [a, b, c, d] = PACES[route.pace];
    const busy =
      route.pace === "task" || route.pace === "create" ? call.node.load.excess * BUSY_MS * world.timings.apiScale : 0;
    verify(call.params, route.rules(world));
    await sleep(world.latency(a, b) + busy, world.closing);
    const data = await route.run(call);
    await sleep(world.latency(c, d), world.closing);
    return jsonReply(data, call.total);
  }
}

function decodePath(target: string): string {
  try {
    return decodeURIComponent(target);
  } catch {
    return target;
  }
}

function lostText(status: 595 | 596): string {
  return status === 595 ? "Connection refused" : "Connection timed out";
}

function insteadOf(
  fault: Exclude<RequestFault, { kind: "delay" | "hang" | "no-worker" | "lose-reply" }>,
): Reply | "cut" {
  switch (fault.kind) {
    case "cut":
      return "cut";
    case "refuse":
      return toReply(new Refusal(fault.status, fault.text, fault.errors));
    case "html":
      return {
        status: fault.status ?? 200,
        reason: "OK",
        body: "<html><body>It works!</body></html>",
        type: "text/html",
      };
    case "empty":
      return { status: fault.status ?? 200, reason: "OK", body: "" };
  }
}

function toReply(error: unknown): Reply {
  if (!(error instanceof Refusal)) throw error;
  const { status, message } = error;
  if (error instanceof PlainRefusal) return { status, reason: message, body: message };
  // Every 401, 595 and 596 comes with an empty body.
  if (error instanceof NoAnswer || status === 401 || status === 595 || status === 596) {
    return { status, reason: message, body: "" };
  }
  const body = {
    data: null,
    message: status === 501 ? message : `${message}\n`,
    ...(error.errors === undefined ? {} : { errors: error.errors }),
  };
  return { status, reason: message, body: JSON.stringify(body), type: "application/json;charset=UTF-8" };
}

/** The web interface's format: always 200, the outcome inside. */
function asExtjs(reply: Reply): Reply {
  if (reply.body === "" || !reply.body.startsWith("{")) return reply;
  const success = reply.status < 400 ? 1 : 0;
  const facts = success === 1 ? { success } : { success, status: reply.status };
  return { ...reply, status: 200, reason: "OK", body: JSON.stringify({ ...facts, ...JSON.parse(reply.body) }) };
}

function rejectOn(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
}
