/** A request's way to its service: who may pass, waits for a sandbox that it wakes and for the service in it. */
import type { IncomingMessage } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import type { FleetErrorCode } from "../../shared/errors.ts";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { Activity } from "./activity.ts";
import { isNavigation } from "./answers.ts";
import type { Decision } from "./decide.ts";
import type { AskedTarget, Judge, Limited } from "./judge.ts";
import type { Route } from "./registry.ts";
import type { Upstream } from "./upstream.ts";
import { canWake, type Waker } from "./waker.ts";

export type Outcome =
  | Decision
  | Limited
  /** It takes longer than the one who asks would wait. */
  | { is: "waking"; route: Route }
  | { is: "unwakeable"; code: FleetErrorCode };

/** What a person waits for before a page says why. */
const PAGE_AFTER_MS = 1_000;

export interface EnterOptions {
  judge: Judge;
  waker: Waker;
  upstream: Upstream;
  activity: Activity;
  /** How long API clients wait. */
  wakeMs: number;
  signal: AbortSignal;
}

export type Enter = (request: IncomingMessage, asked: AskedTarget, client: string) => Promise<Outcome>;

export function createEnter({ judge, waker, upstream, activity, wakeMs, signal }: EnterOptions): Enter {
  return async (request, asked, client) => {
    const waitsMs = !asked.upgrade && isNavigation(asked.method, request.headers) ? PAGE_AFTER_MS : wakeMs;
    const untilMs = performance.now() + waitsMs;
    for (;;) {
      const decision = await judge.ask(request, asked, client);
      if (decision.is === "forward") {
        const { route } = decision;
        const isUp = await upstream.isUp(route, { untilMs, signal });
        activity.touch(route.sandbox);
        return isUp ? decision : { is: "waking", route };
      }
      if (decision.is !== "asleep" || !canWake(decision.route)) return decision;
      const { route } = decision;
      const leftMs = Math.max(0, untilMs - performance.now());
      const wake = await within(leftMs, waker.wake(parseHostHeader(request.headers.host) ?? "", route, client));
      if (wake === null) return { is: "waking", route };
      if (wake.is !== "awake") return wake;
    }
  };

  /** Null: not in that time. */
  async function within<T>(ms: number, promise: Promise<T>): Promise<T | null> {
    const done = new AbortController();
    const late = delay(ms, null, { signal: AbortSignal.any([signal, done.signal]) });
    try {
      return await Promise.race([promise, late]);
    } finally {
      done.abort();
    }
  }
}
