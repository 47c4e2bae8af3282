import { Agent, request } from "undici";
import type { Pve } from "./index.ts";

export interface Answer {
  status: number;
  reason: string;
  body: string;
  ms: number;
}

/** Asks like any form-posting client, one fresh connection a request where `close` is set. */
export class Client implements AsyncDisposable {
  readonly pve: Pve;
  readonly #agent: Agent;

  constructor(pve: Pve) {
    this.pve = pve;
    this.#agent = new Agent({ connect: { ca: pve.caPem } });
  }

  async ask(
    method: string,
    path: string,
    params: Record<string, string | number> = {},
    options: { token?: string; headers?: Record<string, string>; body?: string } = {},
  ): Promise<Answer> {
    const begun = performance.now();
    const form = new URLSearchParams(
      Object.entries(params).map(([key, value]): [string, string] => [key, String(value)]),
    ).toString();
    const inQuery = method === "GET" || method === "DELETE";
    const query = inQuery && form !== "" ? `?${form}` : "";
    const body = options.body ?? (inQuery || form === "" ? null : form);
    const answer = await request(`${this.pve.url}/api2/json${encodeURI(path)}${query}`, {
      dispatcher: this.#agent,
      method,
      headers: {
        authorization: `PVEAPIToken=${options.token ?? this.pve.token}`,
        ...(body !== null && options.body === undefined ? { "content-type": "application/x-www-form-urlencoded" } : {}),
        ...options.headers,
      },
      body,
    });
    const text = await answer.body.text();
    return { status: answer.statusCode, reason: answer.statusText, body: text, ms: performance.now() - begun };
  }

  /** The `data` of a call that must work. */
  async data(method: string, path: string, params: Record<string, string | number> = {}): Promise<unknown> {
    const { status, reason, body } = await this.ask(method, path, params);
    if (status !== 200) throw new Error(`${method} ${path}: ${status} ${reason}`);
    return (JSON.parse(body) as { data: unknown }).data;
  }

  /** Runs a task to its end; returns its UPID. */
  async task(method: string, path: string, params: Record<string, string | number> = {}): Promise<string> {
    const upid = String(await this.data(method, path, params));
    await this.ended(upid);
    return upid;
  }

  async ended(upid: string): Promise<void> {
    await this.pve.waitForTask((task) => task.upid === upid, AbortSignal.timeout(60_000));
  }

  /** Resolves when no task runs. */
  async quiet(): Promise<void> {
    for (const task of this.pve.tasks()) if (task.endedAt === undefined) await this.ended(task.upid);
  }

  close(): Promise<void> {
    return this.#agent.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
