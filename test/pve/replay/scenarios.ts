import { type NodeSpec, type Pve, type PveOptions, startPve, type TemplateSpec } from "../index.ts";
import { parseRecording, section } from "./recording.ts";
import type { Scenario, Step } from "./replay.ts";

export const MACHINE: NodeSpec = {
  name: "pve1",
  cores: 2,
  parallel: 2,
  storages: [
    { name: "local", type: "dir" },
    { name: "btr", type: "btrfs", sizeGib: 12 },
  ],
};

/** A small container as that machine had them. */
export function plain(vmid: number, spec: TemplateSpec & { memory?: number } = {}): TemplateSpec {
  const { memory = 64, config, guest, ...rest } = spec;
  return {
    vmid,
    name: `c${vmid}`,
    storage: "btr",
    diskGib: 1,
    template: false,
    hookscript: false,
    tags: "",
    config: { cores: "", ostype: "alpine", memory, ...config },
    // Nobody answered DHCP there, so no guest ever got an address.
    guest: { execd: false, bootMs: 3_600_000, ...guest },
    ...rest,
  };
}

const fixed = (ip: string) => ({ net0: `name=eth0,bridge=vmbr0,hwaddr=BC:24:11:E6:DA:4F,ip=${ip}/24,type=veth` });
export const ct100 = plain(100, { name: "ct100", storage: "local", memory: 128, config: fixed("10.10.10.100") });
export const tmpl1 = plain(9001, { name: "tmpl1", template: true });

function machine(
  containers: TemplateSpec[],
  timings: NonNullable<PveOptions["timings"]> = {},
  nodes = [MACHINE],
): () => Promise<Pve> {
  return () => startPve({ nodes, templates: containers, timings: { apiScale: 0.2, ...timings } });
}

const lxc = (vmid: number) => `/nodes/pve1/lxc/${vmid}`;
const run =
  (vmid: number, action: string) =>
  async ({ client }: Step) => {
    await client.task("POST", `${lxc(vmid)}/status/${action}`);
  };
const quiet = ({ client }: Step) => client.quiet();

/** A task of ours in the place of one whose beginning was not recorded. */
function stands(recorded: string, begin: (step: Step) => Promise<string>): (step: Step) => Promise<void> {
  return async (step) => {
    step.upids.set(recorded, await begin(step));
  };
}

function restricted(): (key: string, step: Step) => string {
  let token: string | undefined;
  return (_key, { client }) => {
    token ??= client.pve.addToken({ user: "cmux@pve", id: "noperm", privileges: {} });
    return token;
  };
}

export function scenarios(read: (file: string) => string): Scenario[] {
  const parameters = parseRecording(read("parameters.txt"));
  const deletes = parseRecording(read("delete-snapshot-template.txt"));
  const tasks = parseRecording(read("tasks.txt"));
  const rights = parseRecording(read("warnings-rights-connections.txt"));
  return [
    {
      name: "auth: a token without rights",
      recorded: parseRecording(read("auth.txt")),
      start: machine([ct100, plain(201), tmpl1]),
      token: restricted(),
    },
    {
      name: "parameters",
      recorded: section(parameters, "B params", "JSON bodies"),
      start: machine([ct100, plain(201), tmpl1], { jitter: 0 }),
      // The create that fails has gone by then.
      before: { [`POST ${lxc(9001)}/clone newid=301 storage=local`]: quiet },
    },
    deletion(section(deletes, "F2", "G snapshots")),
    snapshots(section(deletes, "G snapshots")),
    locks(parseRecording(read("locks.txt"))),
    nodes(parseRecording(read("nodes-unreachable.txt"))),
    {
      name: "tasks: after JSON bodies",
      recorded: section(tasks, "state after B", "E tasks"),
      start: machine([plain(201, { name: "newname" })]),
      prepare: async ({ client }) => {
        for (const body of ['{"memory":null}', '{"onboot":true}', '{"cores":2}', '{"tags":"b;a"}']) {
          await client.ask("PUT", `${lxc(201)}/config`, {}, { headers: { "content-type": "application/json" }, body });
        }
      },
    },
    taskStatus(section(tasks, "E tasks", "F delete")),
    taskDelete(section(tasks, "F delete")),
    {
      name: "warnings",
      recorded: section(rights, "WARNINGS", "token limits"),
      start: machine([ct100], { timeScale: 0.1 }),
      before: {
        [`POST ${lxc(100)}/status/start`]: ({ client }) => {
          client.pve.faults.task({ type: "vzstart", warnings: ["simulated pre-start warning", "second"] });
        },
      },
      leftOut: { "GET /nodes/pve1/tasks vmid=100 limit=1": "its total counts tasks before the recording" },
    },
    tokenLimits(section(rights, "token limits", "token expired")),
    accounts(section(rights, "token expired", "DELETE with JSON")),
    paging(section(rights, "task log paging")),
  ];
}

function deletion(recorded: Scenario["recorded"]): Scenario {
  return {
    name: "delete a running one, template of a template",
    recorded,
    start: machine([plain(9001, { name: "tmpl1" }), plain(210)], { timeScale: 0.2 }),
    prepare: run(210, "start"),
    before: { "template already template": quiet },
  };
}

function snapshots(recorded: Scenario["recorded"]): Scenario {
  return {
    name: "snapshots, rollback, resize, reboot",
    recorded,
    start: machine([ct100, tmpl1, plain(211)], { timeScale: 0.2 }),
    before: {
      "snapshot while running": run(211, "start"),
      [`GET ${lxc(211)}/status/current #2`]: quiet,
      [`GET ${lxc(211)}/config`]: quiet,
    },
  };
}

function locks(recorded: Scenario["recorded"]): Scenario {
  const shutdown =
    (timeout: number) =>
    async ({ client }: Step) =>
      String(await client.data("POST", `${lxc(440)}/status/shutdown`, { timeout }));
  const aborted = "UPID:pve1:00000C3F:000419AE:6B04885C:vzshutdown:440:root@pam!full:";
  const killed = "UPID:pve1:00000C54:00041C17:6B048863:vzshutdown:440:root@pam!full:";
  return {
    name: "locks: a guest that ignores its shutdown",
    recorded,
    start: machine([plain(440, { name: "stubborn", guest: { ignoresShutdown: true } })], {
      timeScale: 0.1,
      lockTimeout: 1000,
      taskAbort: 500,
    }),
    prepare: run(440, "start"),
    before: {
      "shutdown timeout=90 in background, then PUT config, stop, stop overrule": run(440, "start"),
      [`DELETE /nodes/pve1/tasks/${aborted}`]: async (step) => {
        await run(440, "start")(step);
        await stands(aborted, shutdown(60))(step);
      },
      "SIGKILL a task": stands(killed, async (step) => {
        const upid = await shutdown(60)(step);
        step.client.pve.faults.killTask(upid);
        return upid;
      }),
    },
  };
}

function nodes(recorded: Scenario["recorded"]): Scenario {
  const pve1 =
    (state: "online" | "hung" | "refused") =>
    ({ client }: Step) =>
      client.pve.faults.node("pve1", state);
  const elsewhere = [
    { name: "pve2", online: false, storages: MACHINE.storages ?? [] },
    { name: "pve3", storages: MACHINE.storages ?? [] },
  ];
  return {
    name: "nodes that can't be reached",
    recorded,
    start: machine(
      [ct100, tmpl1, plain(888, { node: "pve2" })],
      { unreachableDelay: 60, hungTimeout: 200, timeScale: 0.1 },
      [MACHINE, ...elsewhere],
    ),
    prepare: async (step) => {
      await run(100, "start")(step);
      step.client.pve.faults.node("pve3", "refused");
    },
    before: {
      "pvedaemon frozen (SIGSTOP), then dead": pve1("hung"),
      "GET /version #2": async (step) => {
        pve1("online")(step);
        await quiet(step);
        pve1("refused")(step);
      },
    },
    leftOut: { "GET /nodes": "that machine was alone; the other nodes existed as folders only" },
  };
}

function taskStatus(recorded: Scenario["recorded"]): Scenario {
  const known = "UPID:pve1:00000421:000363BB:6B04868B:vzstop:201:root@pam!full:";
  const noperm = restricted();
  const status = `GET /nodes/pve1/tasks/${known}/status`;
  return {
    name: "tasks: status, log, delete",
    recorded,
    start: machine([plain(201)], { timeScale: 0.1 }),
    prepare: async (step) => {
      await run(201, "start")(step);
      await stands(known, ({ client }) => client.task("POST", `${lxc(201)}/status/stop`))(step);
    },
    token: (key, step) => (key === `${status} #2` || key === "GET /nodes/pve1/tasks" ? noperm(key, step) : undefined),
    leftOut: {
      [`GET /nodes/pve1/tasks/${known}/log limit=1`]: "the stand-in does not warn of a config that it can't parse",
    },
  };
}

function taskDelete(recorded: Scenario["recorded"]): Scenario {
  return {
    name: "delete: gone, template with clones, protection",
    recorded,
    start: machine([plain(201), tmpl1], { timeScale: 0.1 }),
    before: {
      [`DELETE ${lxc(201)} #2`]: quiet,
      "delete template with linked clone": async ({ client }) => {
        await client.task("POST", `${lxc(9001)}/clone`, { newid: 205 });
      },
      [`GET ${lxc(9001)}/config`]: quiet,
    },
  };
}

function tokenLimits(recorded: Scenario["recorded"]): Scenario {
  const debian = { name: "deb1", memory: 256, diskGib: 2, config: { ...fixed("10.10.10.61"), ostype: "debian" } };
  return {
    name: "what a root@pam token may not",
    recorded,
    start: machine([plain(601, debian)]),
    leftOut: { "POST /access/users/cmux@pve/token/x": "users and tokens are not part of the stand-in's API" },
  };
}

function accounts(recorded: Scenario["recorded"]): Scenario {
  const spec = { user: "tmp@pve", id: "exp", privileges: {} };
  const why = "users and tokens are not part of the stand-in's API";
  return {
    name: "tokens: expired, disabled",
    recorded,
    start: machine([], { authDelay: 100 }),
    token: (key, { client }) => {
      if (key === "GET /version") return client.pve.addToken({ ...spec, expired: true });
      if (key === "GET /version #2") return client.pve.addToken(spec);
      return client.pve.addToken({ ...spec, disabled: true });
    },
    leftOut: {
      "POST /access/users userid=tmp@pve enable=1": why,
      "POST /access/users/tmp@pve/token/exp expire=1000 privsep=0": why,
      "PUT /access/users/tmp@pve enable=0": why,
      "DELETE /access/users/tmp@pve": why,
    },
  };
}

function paging(recorded: Scenario["recorded"]): Scenario {
  const clone = "UPID:pve1:00000B17:0004C286:6B048A0D:vzclone:9002:root@pam!full:";
  return {
    name: "task log paging, lists, storages",
    recorded,
    start: machine([tmpl1, plain(9002, { template: true })], { timeScale: 0.1 }),
    prepare: async (step) => {
      await stands(clone, ({ client }) => client.task("POST", `${lxc(9002)}/clone`, { newid: 650 }))(step);
      step.client.pve.addTemplate(ct100);
      step.client.pve.faults.task({ type: "vzstart", warnings: ["one", "two"] });
      await run(888, "start")(step);
      step.client.pve.faults.task({ type: "vzstart", warnings: ["one", "two"] });
      await run(100, "start")(step);
    },
  };
}
