import type { Identity } from "./access.ts";
import type { Guests } from "./guest/guests.ts";
import type { PveNode } from "./node.ts";
import type { Rules } from "./schema/rules.ts";
import type { World } from "./world.ts";

/** One API call that has been let in. */
export interface Call {
  world: World;
  guests: Guests;
  by: Identity;
  /** The node that the path names, else the one that was asked. */
  node: PveNode;
  /** Path variables and parameters together, as PVE has them. */
  params: Readonly<Record<string, string>>;
  arrivedAt: number;
  /** Set by a fault: the worker can't be started, and the locks stay. */
  noWorker: boolean;
  /** Set by a handler: the list's full length. */
  total?: number;
}

export type Method = "GET" | "POST" | "PUT" | "DELETE";

/** What of a call's time passes before it is done, and which of them is slow. */
type Pace = "read" | "write" | "task" | "create";

export interface Route {
  method: Method;
  path: string;
  pace: Pace;
  /** Runs in pvedaemon (as root); the others answer also when that hangs. */
  daemon: boolean;
  rules: (world: World) => Rules;
  /** Checked before the parameters are. */
  allow?: (call: Call) => void;
  run: (call: Call) => unknown;
}

interface Step {
  fixed: Map<string, Step>;
  /** `rest`: it takes all that is left of the path, slashes included. */
  variable?: { name: string; step: Step; rest: boolean };
  routes: Map<string, Route>;
}

const newStep = (): Step => ({ fixed: new Map(), routes: new Map() });

export class Router {
  readonly #root = newStep();

  constructor(routes: readonly Route[]) {
    for (const route of routes) {
      let step = this.#root;
      for (const part of route.path.split("/").slice(1)) step = descend(step, part);
      step.routes.set(route.method, route);
    }
  }

  find(method: string, path: string): { route: Route; variables: Record<string, string> } | undefined {
    const variables: Record<string, string> = {};
    let step = this.#root;
    const parts = path.split("/").slice(1);
    for (const [at, part] of parts.entries()) {
      const next = step.fixed.get(part);
      if (next !== undefined) step = next;
      else if (step.variable?.rest) {
        variables[step.variable.name] = parts.slice(at).join("/");
        step = step.variable.step;
        break;
      } else if (step.variable !== undefined && part !== "") {
        variables[step.variable.name] = part;
        step = step.variable.step;
      } else return undefined;
    }
    const route = step.routes.get(method);
    return route === undefined ? undefined : { route, variables };
  }
}

function descend(step: Step, part: string): Step {
  const [, name, rest] = /^\{(.+?)(\.\.\.)?\}$/.exec(part) ?? [];
  if (name !== undefined) {
    step.variable ??= { name, step: newStep(), rest: rest !== undefined };
    return step.variable.step;
  }
  const next = step.fixed.get(part) ?? newStep();
  step.fixed.set(part, next);
  return next;
}

type Details = Partial<Pick<Route, "pace" | "daemon" | "allow">> & { rules?: Rules | ((world: World) => Rules) };

/** GETs are reads that the proxy process answers, the others run in the daemon, unless the details say otherwise. */
export function route(method: Method, path: string, details: Details, run: (call: Call) => unknown): Route {
  const { rules = {}, pace = method === "GET" ? "read" : "write", daemon = method !== "GET" } = details;
  const allow = details.allow === undefined ? {} : { allow: details.allow };
  return { method, path, pace, daemon, rules: typeof rules === "function" ? rules : () => rules, ...allow, run };
}

export function vmidOf(call: Call, name = "vmid"): number {
  return Number(call.params[name]);
}

export function flagOf(call: Call, name: string): boolean {
  return call.params[name] === "1";
}
