/**
 * What people have today: a client inside a web process that asks for each task every 2 s, as scripts around PVE do, and
 * sleeps 3 s after a start instead of looking whether the container answers.
 */
import { setTimeout as delay } from "node:timers/promises";
import { Agent, request } from "undici";
import type { Cluster } from "./world.ts";

const POLL_MS = 2_000;
const SLEEP_AFTER_START_MS = 3_000;

export interface Today extends AsyncDisposable {
  /** Returns how long a provision took, in ms, and takes the container away again. */
  provision(node: string, template: number): Promise<number>;
}

export function createToday({ url, token }: Cluster): Today {
  const agent = new Agent({ connect: { rejectUnauthorized: false } });
  const call = async (method: "GET" | "POST" | "PUT" | "DELETE", path: string, params: Record<string, string> = {}) => {
    const isForm = method === "POST" || method === "PUT";
    const query = isForm || Object.keys(params).length === 0 ? "" : `?${new URLSearchParams(params)}`;
    const reply = await request(`${url}/api2/json${path}${query}`, {
      dispatcher: agent,
      method,
      headers: {
        authorization: `PVEAPIToken=${token}`,
        ...(isForm ? { "content-type": "application/x-www-form-urlencoded" } : {}),
      },
      ...(isForm ? { body: new URLSearchParams(params).toString() } : {}),
    });
    const text = await reply.body.text();
    if (reply.statusCode !== 200) throw new Error(`${method} ${path}: ${reply.statusCode} ${text}`);
    return (JSON.parse(text) as { data: unknown }).data;
  };
  const done = async (node: string, upid: unknown) => {
    while (true) {
      const path = `/nodes/${node}/tasks/${encodeURIComponent(String(upid))}/status`;
      const status = (await call("GET", path)) as { status: string; exitstatus?: string };
      if (status.status === "stopped" && status.exitstatus !== "OK") throw new Error(`${upid}: ${status.exitstatus}`);
      if (status.status === "stopped") return;
      await delay(POLL_MS);
    }
  };
  return {
    async provision(node, template) {
      const begun = performance.now();
      const vmid = String(await call("GET", "/cluster/nextid"));
      await done(
        node,
        await call("POST", `/nodes/${node}/lxc/${template}/clone`, { newid: vmid, hostname: `ct-${vmid}` }),
      );
      await call("PUT", `/nodes/${node}/lxc/${vmid}/config`, { cores: "1", memory: "512" });
      await done(node, await call("POST", `/nodes/${node}/lxc/${vmid}/status/start`));
      await delay(SLEEP_AFTER_START_MS);
      await call("GET", `/nodes/${node}/lxc/${vmid}/interfaces`);
      const took = performance.now() - begun;
      await done(node, await call("DELETE", `/nodes/${node}/lxc/${vmid}`, { force: "1" }));
      return took;
    },
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}
