/** Whether a service answers, seen from the worker: the guest's port itself, without proxy or gate. */
import { once } from "node:events";
import { connect } from "node:net";
import { request } from "undici";
import { FleetError } from "../../shared/errors.ts";
import type { Run } from "../run/run.ts";
import { readAddress } from "./ready.ts";

const PAUSE = { first: 20, last: 500 };
/** One that neither answers nor refuses. */
const PROBE_MS = 3_000;

/** Resolves once the port takes connections, or answers HTTP below 500. Throws `not_ready` when time is up. */
export async function awaitService(
  run: Run,
  port: number,
  { probe, timeoutMs }: { probe: "tcp" | "http"; timeoutMs: number },
): Promise<void> {
  const until = performance.now() + timeoutMs;
  let seen = "the sandbox has no address";
  for (let pauseMs = PAUSE.first; performance.now() < until; pauseMs = Math.min(pauseMs * 2, PAUSE.last)) {
    const address = run.sandbox.address ?? (await readAddress(run));
    run.check();
    if (address !== null) {
      const limit = AbortSignal.any([
        run.signal,
        AbortSignal.timeout(Math.ceil(Math.max(1, Math.min(PROBE_MS, until - performance.now())))),
      ]);
      const problem = await (probe === "tcp" ? probeTcp(address, port, limit) : probeHttp(address, port, limit));
      if (problem === null) return;
      seen = problem;
    }
    await run.pause(pauseMs);
  }
  throw new FleetError("not_ready", `port ${port} did not answer within ${timeoutMs} ms: ${seen}`, {
    facts: { sandbox: run.sandbox.id, port, waitedMs: timeoutMs },
  });
}

async function probeTcp(host: string, port: number, signal: AbortSignal): Promise<string | null> {
  const socket = connect({ host, port });
  try {
    await once(socket, "connect", { signal });
    return null;
  } catch (error) {
    return `no connection (${codeOf(error)})`;
  } finally {
    socket.destroy();
  }
}

async function probeHttp(host: string, port: number, signal: AbortSignal): Promise<string | null> {
  try {
    const origin = host.includes(":") ? `[${host}]` : host;
    const { statusCode, body } = await request(`http://${origin}:${port}/`, { signal, reset: true });
    body.on("error", () => {}); // an answer without end is cut off
    body.destroy();
    return statusCode < 500 ? null : `it answers ${statusCode}`;
  } catch (error) {
    return `no HTTP answer (${codeOf(error)})`;
  }
}

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "no answer";
