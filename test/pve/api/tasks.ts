import { check, has } from "../access.ts";
import type { PveNode } from "../node.ts";
import { invalid } from "../refusal.ts";
import { type Call, type Route, route } from "../router.ts";
import { splitList } from "../schema/formats.ts";
import { NODE, optional, VMID } from "../schema/lxc.ts";
import type { Rules } from "../schema/rules.ts";
import type { Task } from "../task.ts";

const UPID = /^UPID:([^:\s]+):[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:[^:\s]+:[^:\s]*:[^:\s]+:$/;
const count = { type: "integer", min: 0 } as const;
const one: Rules = { node: NODE, upid: { type: "string", required: true } };

export const taskRoutes: Route[] = [
  route("GET", "/cluster/tasks", {}, clusterTasks),
  route(
    "GET",
    "/nodes/{node}/tasks",
    {
      rules: {
        node: NODE,
        errors: { type: "boolean" },
        limit: count,
        start: count,
        since: { type: "integer" },
        until: { type: "integer" },
        source: { type: "string", values: ["archive", "active", "all"] },
        statusfilter: { type: "string" },
        typefilter: { type: "string" },
        userfilter: { type: "string" },
        vmid: optional(VMID),
      },
    },
    list,
  ),
  route("GET", "/nodes/{node}/tasks/{upid}", { rules: one }, () => [{ name: "log" }, { name: "status" }]),
  route("DELETE", "/nodes/{node}/tasks/{upid}", { rules: one }, stop),
  route("GET", "/nodes/{node}/tasks/{upid}/status", { daemon: true, rules: one }, status),
  route(
    "GET",
    "/nodes/{node}/tasks/{upid}/log",
    { daemon: true, rules: { ...one, start: count, limit: count, download: { type: "boolean" } } },
    log,
  ),
];

function visible({ world, by, node }: Call, task: Task): boolean {
  const own = task.by.user === by.user && task.by.tokenid === by.tokenid;
  return own || has(world, by, `/nodes/${node.name}`, "Sys.Audit");
}

function find(call: Call): Task | undefined {
  const upid = call.params["upid"] ?? "";
  if (!UPID.test(upid)) throw invalid({ upid: "unable to parse worker upid" });
  const task = call.world.tasks.get(upid);
  return task?.node === call.node.name ? task : undefined;
}

function existing(call: Call): Task {
  const task = find(call);
  if (task === undefined) throw invalid({ upid: "no such task" });
  if (!visible(call, task)) check(call.world, call.by, `/nodes/${call.node.name}`, "Sys.Audit");
  return task;
}

const common = (task: Task) => ({
  upid: task.upid,
  node: task.node,
  pid: task.pid,
  pstart: task.pstart,
  starttime: task.starttime,
  type: task.type,
  id: task.id,
});

const withUser = (task: Task) => ({
  user: task.by.user,
  ...(task.by.tokenid === undefined ? {} : { tokenid: task.by.tokenid }),
});

function status(call: Call): unknown {
  const task = existing(call);
  const ended = task.endedAt === undefined ? { status: "running" } : { status: "stopped", exitstatus: task.exitstatus };
  return { ...common(task), ...withUser(task), ...ended };
}

const archived = (task: Task) => ({
  ...common(task),
  ...withUser(task),
  endtime: Math.floor((task.endedAt ?? 0) / 1000),
  status: task.exitstatus,
});

/** Running ones show the whole user and carry `saved: "0"`, as the active file does. */
const active = (task: Task) => ({ ...common(task), user: task.userToken, saved: "0", status: "RUNNING" });

function kindOf(task: Task): string {
  if (task.exitstatus === "OK") return "ok";
  if (task.exitstatus?.startsWith("WARNINGS: ")) return "warning";
  return task.exitstatus === "unexpected status" || task.exitstatus === undefined ? "unknown" : "error";
}

function wanted(call: Call): (task: Task) => boolean {
  const { vmid, typefilter, statusfilter, errors, since, until, userfilter } = call.params;
  const kinds = statusfilter === undefined ? undefined : splitList(statusfilter);
  return (task) =>
    (vmid === undefined || task.id === vmid) &&
    (typefilter === undefined || task.type === typefilter) &&
    (userfilter === undefined || task.userToken.toLowerCase().includes(userfilter.toLowerCase())) &&
    (since === undefined || task.starttime >= Number(since)) &&
    (until === undefined || task.starttime <= Number(until)) &&
    (errors !== "1" || task.exitstatus !== "OK") &&
    (kinds === undefined || kinds.includes(kindOf(task))) &&
    visible(call, task);
}

/** Running ones first, then ended ones, newest first; without `source` only ended ones. */
function list(call: Call): unknown[] {
  const { source = "archive", start = "0", limit = "50" } = call.params;
  const fits = wanted(call);
  const running = source === "archive" ? [] : [...call.node.running].filter(fits).reverse();
  const ended = source === "active" ? [] : call.node.ended.filter(fits).reverse();
  const all = [...running, ...ended];
  call.total = all.length;
  const from = Number(start);
  const to = limit === "0" ? all.length : from + Number(limit);
  return all.slice(from, to).map((task) => (task.endedAt === undefined ? active(task) : archived(task)));
}

/** The last 25 of each node, as it broadcasts them. */
function clusterTasks(call: Call): unknown[] {
  const shown: Task[] = [];
  for (const node of call.world.nodes.values()) shown.push(...recent(node, call));
  shown.sort((a, b) => b.startedAt - a.startedAt);
  return shown.map((task) =>
    task.endedAt === undefined ? { ...common(task), ...withUser(task) } : { ...archived(task), saved: "1" },
  );
}

function recent(node: PveNode, call: Call): Task[] {
  return [...node.ended.slice(-25), ...node.running].filter((task) => visible({ ...call, node }, task));
}

/** The log of a task that is not there is an object, not a list. */
function log(call: Call): unknown {
  const task = find(call);
  if (task === undefined) {
    call.total = 1;
    return { n: 1, t: "unable to open file - No such file or directory" };
  }
  if (!visible(call, task)) check(call.world, call.by, `/nodes/${call.node.name}`, "Sys.Audit");
  const lines = task.lines.length === 0 ? ["no content"] : task.lines;
  call.total = lines.length;
  const { start = "0", limit = "50" } = call.params;
  const from = Number(start);
  const to = limit === "0" ? lines.length : from + Number(limit);
  return lines.slice(from, to).map((t, index) => ({ n: from + index + 1, t }));
}

/** SIGTERM; answers when the worker has gone. */
async function stop(call: Call): Promise<null> {
  const task = find(call);
  if (task === undefined) throw invalid({ upid: "no such task" });
  const own = task.by.user === call.by.user && task.by.tokenid === call.by.tokenid;
  if (!own) check(call.world, call.by, `/nodes/${call.node.name}`, "Sys.Modify");
  if (task.endedAt !== undefined) return null;
  task.stop("interrupt");
  await task.ended;
  return null;
}
