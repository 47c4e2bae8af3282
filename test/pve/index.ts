import { randomUUID } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { addToken, changeToken } from "./access.ts";
import { ApiServer } from "./api-server.ts";
import { makeCertificate } from "./certificate.ts";
import { now } from "./clock.ts";
import type { Container } from "./container.ts";
import { ControlServer } from "./control.ts";
import { addNodes, addTemplate, nodeSpecs, templateSpecs } from "./default-cluster.ts";
import { Exchange } from "./exchange.ts";
import { FaultBox } from "./fault-box.ts";
import type { Faults } from "./faults.ts";
import { addressBase } from "./guest/addresses.ts";
import { Guests } from "./guest/guests.ts";
import { NodeTools, type ToolCall } from "./node-tools.ts";
import type { PveOptions, TemplateSpec } from "./options.ts";
import { RequestLog } from "./request-log.ts";
import { Router } from "./router.ts";
import { ROUTES } from "./routes.ts";
import type { ContainerView, LogEntry, TaskEntry, TokenChange, TokenSpec } from "./views.ts";
import { waitFor } from "./waiting.ts";
import { World } from "./world.ts";

export type { FaultHandle } from "./faults.ts";
export type { NodeSpec, PveOptions, PveVersion, TemplateSpec, Timings } from "./options.ts";
export type { LogEntry } from "./views.ts";

/** A running stand-in for a PVE cluster. */
export interface Pve extends AsyncDisposable {
  /** https://127.0.0.1:PORT */
  readonly url: string;
  readonly controlUrl: string;
  /** "root@pam!fleet=UUID", all rights: what PVE_API_TOKEN holds. */
  readonly token: string;
  readonly caPem: string;
  /** SHA-256 of the server certificate, "AA:BB:...". */
  readonly fingerprint: string;
  readonly nodes: readonly string[];
  readonly faults: Faults;
  log(): readonly LogEntry[];
  tasks(): readonly TaskEntry[];
  containers(): readonly ContainerView[];
  /** What was run of the nodes' own tools (see test/ssh), in order. */
  toolCalls(): readonly ToolCall[];
  /** Makes a token with limited rights; returns what PVE_API_TOKEN would hold. */
  addToken(spec: TokenSpec): string;
  /** What an administrator does to a token while it is in use; null removes it. */
  changeToken(token: string, change: TokenChange | null): void;
  /** Makes a container or template, as options.templates does. Returns its VMID. */
  addTemplate(spec: TemplateSpec): number;
  /** Called at the end of every task; returns the way to stop listening. */
  onTaskEnd(listener: (task: TaskEntry) => void): () => void;
  /** The first task that fits, ended ones of the past included; rejects when the signal aborts. */
  waitForTask(fits: (task: TaskEntry) => boolean, signal: AbortSignal): Promise<TaskEntry>;
  /** The first request that fits, once it has been answered, past ones included. */
  waitForRequest(fits: (entry: LogEntry) => boolean, signal: AbortSignal): Promise<LogEntry>;
  close(): Promise<void>;
}

/** Starts a stand-in that behaves like a real PVE; see options.ts for what can be decided. */
export async function startPve(options: PveOptions = {}): Promise<Pve> {
  const specs = nodeSpecs(options.nodes);
  const world = new World({
    version: options.version ?? "8.4",
    timings: options.timings ?? {},
    seed: options.seed ?? 1,
  });
  addNodes(world, specs);
  for (const template of options.templates ?? templateSpecs(specs)) addTemplate(world, template);
  const log = new RequestLog();
  const certificate = await makeCertificate();
  world.fingerprint = certificate.fingerprint;
  const token = addToken(world, { user: "root@pam", id: "fleet", privileges: {}, all: true });
  // Made when the first guest starts, together with the guard that removes it whatever happens.
  const dataDir = options.dataDir ?? join(tmpdir(), `pve-stand-in-${randomUUID()}`);
  const guests = new Guests(world, { dataDir, ownsDataDir: options.dataDir === undefined });
  const faults = new FaultBox(world, guests);
  faults.onHit = (what) => log.note(what, now());
  const exchange = new Exchange({ world, guests, router: new Router(ROUTES), faults, log });
  const api = new ApiServer(certificate, exchange);
  const port = await api.listen(options.port ?? 0, options.host);
  guests.useAddresses(options.guestAddressBase ?? addressBase(port));
  const views = viewsOf(world, guests);
  const surface = {
    token,
    caPem: certificate.cert,
    fingerprint: certificate.fingerprint,
    url: `https://127.0.0.1:${port}`,
    nodes: specs.map(({ name }) => name),
    log: () => log.entries,
    ...views,
    toolCalls: () => tools.calls,
    addToken: (spec: TokenSpec) => addToken(world, spec),
    changeToken: (of: string, change: TokenChange | null) => changeToken(world, of, change),
    addTemplate: (spec: TemplateSpec) => addTemplate(world, spec).vmid,
  };
  const tools = new NodeTools(world, guests);
  const control = new ControlServer({
    world,
    guests,
    faults,
    tools,
    addTemplate: surface.addTemplate,
    addToken: surface.addToken,
    views: {
      "/info": () => ({ url: surface.url, token, fingerprint: surface.fingerprint, nodes: surface.nodes }),
      "/log": surface.log,
      "/tasks": surface.tasks,
      "/containers": surface.containers,
    },
  });
  const controlPort = await control.listen(options.controlPort ?? 0);
  const close = once(async () => {
    world.close();
    await Promise.all([api.close(), control.close()]);
    await guests.close();
  });
  return {
    ...surface,
    controlUrl: `http://127.0.0.1:${controlPort}`,
    faults,
    onTaskEnd: (listener) => {
      world.taskListeners.add(listener);
      return () => world.taskListeners.delete(listener);
    },
    waitForTask: (fits, signal) => {
      const present = surface.tasks().filter((task) => task.endedAt !== undefined);
      return waitFor({ present, listeners: world.taskListeners }, fits, signal);
    },
    waitForRequest: (fits, signal) => waitFor({ present: log.entries, listeners: log.listeners }, fits, signal),
    close,
    [Symbol.asyncDispose]: close,
  };
}

function once(run: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> | undefined;
  return () => {
    running ??= run();
    return running;
  };
}

function viewsOf(world: World, guests: Guests) {
  return {
    tasks: (): TaskEntry[] => [...world.tasks.values()].map((task) => task.toEntry()),
    containers: (): ContainerView[] =>
      [...world.containers.values()].map((container) => viewOf(world, guests, container)),
  };
}

function viewOf(world: World, guests: Guests, container: Container): ContainerView {
  const { config, guest } = container;
  const pool = world.poolOf(container.vmid);
  return {
    vmid: container.vmid,
    node: container.node,
    name: container.name,
    status: guest === undefined ? "stopped" : "running",
    frozen: guest?.frozen ?? false,
    firewall: { options: Object.fromEntries(container.firewall), rules: container.firewallRules },
    template: container.template,
    config: Object.fromEntries(config.values),
    snapshots: [...config.snapshots.keys()],
    root: guests.root(container),
    ...(config.lock === undefined ? {} : { lock: config.lock }),
    ...(pool === undefined ? {} : { pool }),
    ...(guest?.address === undefined ? {} : { address: guest.address }),
    ...(guest?.token === undefined ? {} : { tokenInForce: guest.token }),
  };
}
