/** What the stand-in's own record says of provisions: pure. */
import type { LogEntry, TaskEntry } from "../pve/views.ts";

/** PVE's own share of one provision, in ms: what nobody could do without. */
export interface PveShare {
  /** Of the clone: epoch ms. Orders the provisions of a bulk. */
  at: number;
  /** From the arrival of the clone request to the end of its task; its answer time lies within. */
  cloneMs: number;
  /** Answer time of the config PUT. */
  configureMs: number;
  /** As cloneMs. */
  startMs: number;
  /** Answer time of one reading of the addresses, the quickest where there were more. */
  readyMs: number;
}

export const totalMs = ({ cloneMs, configureMs, startMs, readyMs }: PveShare): number =>
  cloneMs + configureMs + startMs + readyMs;

/** The share of the provision that made `vmid`. Throws when the record does not show it whole. */
export function pveShareOf(vmid: number, requests: readonly LogEntry[], tasks: readonly TaskEntry[]): PveShare {
  const clone = tasks.find(
    ({ type, target, exitstatus }) => type === "vzclone" && target === vmid && exitstatus === "OK",
  );
  const start = tasks.find(
    ({ type, id, exitstatus }) => type === "vzstart" && id === String(vmid) && exitstatus === "OK",
  );
  if (clone?.endedAt === undefined || start?.endedAt === undefined)
    throw new Error(`the stand-in's record has no whole provision of container ${vmid}`);
  const of = (method: string, what: string) =>
    requests.filter((one) => one.method === method && one.path.endsWith(`/lxc/${vmid}/${what}`) && one.status === 200);
  const put = of("PUT", "config").reduce((sum, { ms }) => sum + ms, 0);
  const reads = of("GET", "interfaces").map(({ ms }) => ms);
  return {
    at: clone.startedAt,
    cloneMs: clone.endedAt - clone.startedAt,
    configureMs: put,
    startMs: start.endedAt - start.startedAt,
    readyMs: reads.length === 0 ? 0 : Math.min(...reads),
  };
}

const TEMPLATES = /^\/nodes\/[^/]+\/lxc\/9\d{3}\/config$/;
/** What the fleet reads now and then for all its work together, however much or little there is. */
const isInventory = ({ method, path }: LogEntry): boolean =>
  method === "GET" &&
  (path === "/cluster/resources" || path === "/version" || path.endsWith("/dns") || TEMPLATES.test(path));

/** Requests by kind, the inventory's apart: "GET taskstatus" and the like. */
export function countRequests(requests: readonly LogEntry[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const one of requests) {
    if (one.method === "" || isInventory(one)) continue;
    const kind = `${one.method} ${/\/tasks(\/|$)/.test(one.path) ? "task" : ""}${one.path.split("/").at(-1)}`;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return counts;
}
