import { Pool } from "undici";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { createConnector, type TlsTrust } from "./connector.ts";
import { withDeadline } from "./deadline.ts";
import { type PveCall, toData, toPveError, toTransportError } from "./errors.ts";
import { evidenceOf } from "./evidence.ts";
import { type Answer, BrokenExchange, exchange } from "./exchange.ts";
import { type Params, secretsIn, toEndpoint, toWire } from "./wire.ts";

export type { Params } from "./wire.ts";

/** Where PVE's API is and how to be let in. */
export interface PveTarget {
  /** `https://10.0.0.1:8006`: any API hosts of the cluster. Tried in order, the last good one first. */
  hosts: readonly string[];
  /** `user@realm!tokenid=uuid` */
  token: string;
  tls: TlsTrust;
  /** PVE has 3 workers a node; default 4. */
  connectionsPerNode?: number;
}

/** What every call takes along. */
export interface Call {
  signal: AbortSignal;
  /** Called synchronously right before each attempt is sent; throws when this run may not act any more. */
  guard?: () => void;
  /** Over all attempts; 35 s by default, since PVE itself answers 596 after 30 s. */
  deadlineMs?: number;
  /** Asks the node although it has not answered lately; whoever probes draws the conclusion himself. */
  probe?: boolean;
}

export interface PveRequest extends Call {
  method: "GET" | "POST" | "PUT" | "DELETE";
  /** Without `/api2/json`, segments encoded: see `pvePath`. */
  path: string;
  /** The node that is to answer; requests of one node share their connections. */
  node?: NodeName;
  params?: Params;
}

export interface PveHttp extends AsyncDisposable {
  /** PVE's `data`. Throws FleetError; a broken-off write is `outcome_unknown`, an aborted one throws the signal's reason. */
  request(request: PveRequest): Promise<unknown>;
  close(): Promise<void>;
}

export interface RequestReport {
  method: string;
  /** The path with `{node}`, `{vmid}`, `{upid}` and `{snapname}` in place of values. */
  endpoint: string;
  node?: NodeName;
  /** 0: no answer. */
  status: number;
  ms: number;
}

/** Knows which nodes do not answer, from what each exchange tells of the node it was for. */
export interface NodeHealth {
  /** Throws `node_unreachable` where a request would only wait for nothing; it was not sent then. */
  assertUp(node: NodeName): void;
  /** `alive`: the node's daemon has answered; else the node did not, though the host that we asked did. */
  saw(node: NodeName, alive: boolean): void;
}

export interface PveHttpOptions {
  /** Called once per attempt. */
  onRequest?: (report: RequestReport) => void;
  health?: NodeHealth;
}

const DEADLINE_MS = 35_000;
const CONNECT_TIMEOUT_MS = 5_000;
/** A node that has been silent for this long counts as one that does not answer; a shorter wait may just be a busy one. */
const SILENT_MS = 9_000;
/** pveproxy closes an idle connection after 5 s; we want to be first, so that no request runs into that. */
const KEEP_ALIVE_MS = 4_000;
/** For so long after a 401 nothing is sent: PVE takes three seconds for each, and all calls bring the same token. */
const REFUSED_MS = 3_000;
/** The one call that then asks for all has this long. */
const PROBE_MS = 10_000;
/** The resources of a cluster of 20,000 guests take about 10 MiB. */
const MAX_BODY_BYTES = 32 * 1024 * 1024;
const TOKEN = /^[^\s@!=]+@[^\s@!=]+![^\s@!=]+=[^\s]+$/;

/** Connects at the first request. Throws `not_configured` for a target that can't work. */
export function createPveHttp(target: PveTarget, options: PveHttpOptions = {}): PveHttp {
  return new PooledHttp(target, options);
}

class PooledHttp implements PveHttp {
  readonly #hosts: readonly string[];
  readonly #token: { header: string; id: string; secret: string };
  readonly #connections: number;
  readonly #connector: ReturnType<typeof createConnector>;
  readonly #onRequest: PveHttpOptions["onRequest"];
  readonly #health: NodeHealth | undefined;
  /** When each host answered last, and for which node. */
  readonly #answers = new Map<string, { node: NodeName | undefined; at: number }>();
  /** One per node and host, so that a node that hangs holds up nothing but itself. */
  readonly #pools = new Map<string, Pool>();
  #lastGood = 0;
  /** PVE's last 401, until another answer comes. */
  #refusal: { answer: Answer; until: number } | undefined;
  #closed = false;

  constructor(target: PveTarget, options: PveHttpOptions) {
    this.#hosts = target.hosts.map(toOrigin);
    if (this.#hosts.length === 0) throw new FleetError("not_configured", "no PVE API host");
    this.#token = parseToken(target.token);
    this.#connections = target.connectionsPerNode ?? 4;
    this.#connector = createConnector(target.tls, { timeoutMs: CONNECT_TIMEOUT_MS });
    this.#onRequest = options.onRequest;
    this.#health = options.health;
  }

  async request(request: PveRequest): Promise<unknown> {
    request.signal.throwIfAborted();
    if (this.#closed) throw new FleetError("shutting_down", "the PVE client is closed");
    const { node } = request;
    const health = request.probe === true ? undefined : this.#health;
    if (node !== undefined) health?.assertUp(node);
    const call: PveCall = {
      method: request.method,
      path: request.path,
      ...(request.node === undefined ? {} : { node: request.node }),
      tokenId: this.#token.id,
      secrets: [this.#token.secret, ...secretsIn(request.params)],
    };
    this.#throwWhileRefused(call);
    const answer = await withDeadline(request.signal, request.deadlineMs ?? DEADLINE_MS, (signal) =>
      this.#overHosts(request, call, signal),
    );
    this.#refusal = answer.status === 401 ? { answer, until: performance.now() + REFUSED_MS } : undefined;
    const evidence = evidenceOf(request, answer);
    if (node !== undefined && evidence !== null) health?.saw(node, evidence === "alive");
    return toData(answer, call);
  }

  #throwWhileRefused(call: PveCall): void {
    if (this.#refusal === undefined) return;
    const { answer, until } = this.#refusal;
    if (performance.now() < until) throw toPveError({ ...answer, ...call });
    this.#refusal = { answer, until: performance.now() + PROBE_MS };
  }

  async #overHosts(request: PveRequest, call: PveCall, signal: AbortSignal): Promise<Answer> {
    const read = request.method === "GET";
    const first = this.#lastGood;
    const startedAt = performance.now();
    const failures: { host: string; broken: BrokenExchange }[] = [];
    let unreached: Answer | undefined;
    for (let turn = 0; turn < this.#hosts.length && !signal.aborted; turn++) {
      const index = (first + turn) % this.#hosts.length;
      const host = this.#hosts[index] ?? "";
      const result = await this.#onHost(host, request, signal, read ? 2 : 1);
      if (result instanceof BrokenExchange) {
        request.signal.throwIfAborted();
        failures.push({ host, broken: result });
        if (result.sent && !read) break;
      } else if (result.status === 595 && read) {
        // This host does not reach the node; another one may. A write is left to the caller, who looks first.
        unreached ??= result;
      } else {
        this.#lastGood = index;
        return result;
      }
    }
    if (unreached !== undefined) return unreached;
    const { node, probe } = request;
    const silent = failures.some(({ host, broken }) => broken.sent && this.#isNodeSilent(node, host, startedAt));
    if (silent && node !== undefined && probe !== true) this.#health?.saw(node, false);
    throw toTransportError(failures, call);
  }

  /** Whether the host went on answering for others while a request waited for its node. */
  #isNodeSilent(node: NodeName | undefined, host: string, sentAt: number): boolean {
    const last = this.#answers.get(host);
    return performance.now() - sentAt >= SILENT_MS && last !== undefined && last.at > sentAt && last.node !== node;
  }

  /** A connection that is kept alive can be closed by PVE at any reuse: a read is sent again, once. */
  async #onHost(host: string, request: PveRequest, signal: AbortSignal, attempts: number) {
    for (let attempt = 1; ; attempt++) {
      const result = await this.#attempt(host, request, signal);
      const again = result instanceof BrokenExchange && result.sent && attempt < attempts && !signal.aborted;
      if (!again) return result;
    }
  }

  async #attempt(host: string, request: PveRequest, signal: AbortSignal): Promise<Answer | BrokenExchange> {
    const { method, node, guard } = request;
    const { path, body } = toWire(method, request.path, request.params);
    const startedAt = performance.now();
    let status = 0;
    try {
      const answer = await exchange(
        this.#pool(host, node),
        {
          method,
          path,
          headers: {
            authorization: this.#token.header,
            accept: "application/json",
            ...(body === undefined ? {} : { "content-type": "application/x-www-form-urlencoded" }),
          },
          ...(body === undefined ? {} : { body }),
        },
        { signal, maxBodyBytes: MAX_BODY_BYTES, ...(guard === undefined ? {} : { guard }) },
      );
      status = answer.status;
      this.#answers.set(host, { node, at: performance.now() });
      return answer;
    } catch (error) {
      if (error instanceof BrokenExchange) return error;
      throw error;
    } finally {
      const ms = performance.now() - startedAt;
      const endpoint = toEndpoint(request.path);
      this.#onRequest?.({ method, endpoint, status, ms, ...(node === undefined ? {} : { node }) });
    }
  }

  #pool(host: string, node: NodeName | undefined): Pool {
    const key = `${node ?? ""} ${host}`;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new Pool(host, {
        connect: this.#connector,
        connections: this.#connections,
        pipelining: 1,
        allowH2: false,
        keepAliveTimeout: KEEP_ALIVE_MS,
        keepAliveMaxTimeout: KEEP_ALIVE_MS,
        // The deadline of each request is what counts; these only catch what it should never let through.
        headersTimeout: 10 * 60_000,
        bodyTimeout: 10 * 60_000,
      });
      this.#pools.set(key, pool);
    }
    return pool;
  }

  async close(): Promise<void> {
    this.#closed = true;
    const pools = [...this.#pools.values()];
    this.#pools.clear();
    await Promise.all(pools.map((pool) => pool.destroy(new FleetError("shutting_down", "the PVE client was closed"))));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function toOrigin(host: string): string {
  const url = URL.parse(host);
  // The token would go out in the clear.
  if (url?.protocol !== "https:")
    throw new FleetError("not_configured", `a PVE host is https://NAME:8006, not ${host}`);
  return url.origin;
}

function parseToken(token: string): { header: string; id: string; secret: string } {
  if (!TOKEN.test(token)) {
    throw new FleetError("not_configured", "the PVE API token must look like user@realm!tokenid=secret");
  }
  const cut = token.indexOf("=");
  return { header: `PVEAPIToken=${token}`, id: token.slice(0, cut), secret: token.slice(cut + 1) };
}
