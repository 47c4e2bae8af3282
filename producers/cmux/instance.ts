/** What a caller holds of a workspace. All of it is in the registry: any process may get the same instance at any time. */
import { FleetError } from "../../shared/errors.ts";
import type { SandboxId } from "../../shared/ids.ts";
import type { ServiceAuth } from "../../shared/jobs/fields.ts";
import type { JobInput } from "../../shared/jobs/index.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import type { SandboxRecord, SandboxState } from "../../shared/state/records.ts";
import type { Wait } from "../end-watch.ts";
import type { Fleet } from "../fleet.ts";
import { branchSandbox } from "./branch.ts";
import { saveTemplate } from "./templates.ts";

export type InstanceStatus = "running" | "stopped" | "paused" | "unknown";

export interface HttpService {
  name: string;
  port: number;
  url: string;
}

export interface Networking {
  httpServices: HttpService[];
  hostname?: string;
  /** Where its node has a DNS search domain. */
  fqdn?: string;
}

export interface ExecResult {
  /** 124 after a timeout. */
  exit_code: number;
  /** Up to 1 MiB each, without the white space at the end. */
  stdout: string;
  stderr: string;
  /** There where one of them was longer. */
  truncated?: true;
}

/** How a pause ended: `stopped` where the fleet can't freeze (no SSH to the nodes), and the memory is lost. */
export interface PauseOutcome {
  status: "paused" | "stopped";
  memoryKept: boolean;
}

/** For callers who know these methods as `Promise<void>`, and those who want to know more. */
// biome-ignore lint/suspicious/noConfusingVoidType: only void itself is assignable to a caller's `Promise<void>`
type VoidAnd<T> = void & Readonly<T>;

export interface InstanceSnapshot {
  /** For `start({ snapshotId })`. */
  id: string;
  instanceId: string;
}

/** What instances need of their client. */
export interface InstanceContext {
  readonly fleet: Fleet;
  /** Of services that say nothing else. */
  readonly auth: ServiceAuth;
  /** The result of an operation that is asked for, within the client's patience. */
  done<R>(asked: Promise<{ result(options: Wait): Promise<R> }>): Promise<R>;
  /** As the registry has it now. Throws `sandbox_not_found`. */
  load(id: SandboxId): Promise<CmuxInstance>;
}

export class CmuxInstance {
  readonly id: string;
  readonly vmid: number;
  /** The fleet's own id of it. */
  readonly sandboxId: SandboxId;
  /** These three are as they were when last read: by the client, by a method that changes them, or by `refresh`. */
  status: InstanceStatus;
  metadata: Record<string, string>;
  networking: Networking;
  readonly #context: InstanceContext;

  /** `id`: what its caller knows it by, where the registry does not. */
  constructor(
    context: InstanceContext,
    record: SandboxRecord,
    { inventory, id }: { inventory: Inventory | null; id?: string },
  ) {
    if (record.vmid === undefined) {
      throw new FleetError("not_ready", `sandbox ${record.id} has no container yet`, { facts: { sandbox: record.id } });
    }
    this.#context = context;
    this.id = record.instanceId ?? id ?? record.id;
    this.vmid = record.vmid;
    this.sandboxId = record.id;
    this.status = toStatus(record.state);
    this.metadata = record.metadata;
    this.networking = toNetworking(record, inventory);
  }

  /** Runs in `/bin/bash -c`. A command that fails is a result; throws where it could not be run. */
  async exec(command: string, { timeoutMs }: { timeoutMs?: number | undefined } = {}): Promise<ExecResult> {
    return execIn(this.#context, this.sandboxId, command, timeoutMs);
  }

  /** Also resumes one that is paused. */
  async start(): Promise<void> {
    await this.#power({ action: "start" });
  }

  /** Hard and at once. */
  async stop(): Promise<void> {
    await this.#power({ action: "stop" });
  }

  /** Asks the guest, and stops it hard after a minute. */
  async shutdown(): Promise<void> {
    await this.#power({ action: "shutdown", graceSec: 60 });
  }

  /** Freezes it with its memory, or stops it where that can't be done: see the outcome, and `status`. */
  async pause(): Promise<VoidAnd<PauseOutcome>> {
    const state = await this.#power({ action: "pause", allowStop: true });
    const outcome: PauseOutcome = { status: state === "paused" ? state : "stopped", memoryKept: state === "paused" };
    return outcome as unknown as VoidAnd<PauseOutcome>; // no value is both; callers see either
  }

  /** Lets a paused one go on, and starts one that a pause stopped. */
  async resume(): Promise<void> {
    await this.#power({ action: "resume", allowStop: true });
  }

  /** Destroys it and everything of it, whatever it is doing. */
  async delete(): Promise<void> {
    const { fleet, done } = this.#context;
    await done(fleet.destroy({ sandboxId: this.sandboxId }));
    this.status = "unknown";
    this.networking = { ...this.networking, httpServices: [] };
  }

  /** `auth`: who gets in at the public URL; as the client is set when absent. */
  async exposeHttpService(name: string, port: number, auth?: ServiceAuth): Promise<VoidAnd<HttpService>> {
    const { fleet, done, auth: usual } = this.#context;
    const { url } = await done(fleet.expose({ sandboxId: this.sandboxId, name, port, auth: auth ?? usual }));
    await this.refresh();
    const service: HttpService = { name, port, url };
    return service as unknown as VoidAnd<HttpService>; // as above
  }

  async hideHttpService(name: string): Promise<void> {
    const { fleet, done } = this.#context;
    await done(fleet.hide({ sandboxId: this.sandboxId, name }));
    await this.refresh();
  }

  /** A signed link that opens a service with auth `link`, and sets a cookie, for `ttlSeconds` (a day). */
  async link(name: string, { path, ttlSeconds }: { path?: string; ttlSeconds?: number } = {}): Promise<string> {
    const { fleet, done } = this.#context;
    const more = { ...(path === undefined ? {} : { path }), ...(ttlSeconds === undefined ? {} : { ttlSeconds }) };
    const { url } = await done(fleet.link({ sandboxId: this.sandboxId, name, ...more }));
    return url;
  }

  /** Whether requests wake it when it is paused or stopped. Throws `unsupported` where SSH is to wake it. */
  async setWakeOn(http: boolean, ssh: boolean): Promise<void> {
    if (ssh) {
      throw new FleetError("unsupported", "nothing listens for SSH in a sandbox's place; only HTTP can wake it", {
        facts: { sandbox: this.sandboxId },
      });
    }
    const { fleet, done } = this.#context;
    await done(fleet.update({ sandboxId: this.sandboxId, wakeOnHttp: http }));
  }

  /** Its time is up so many seconds from now; `stop` follows when `ttlAction` is absent. */
  async setTTL(ttlSeconds: number, ttlAction: "stop" | "pause" = "stop"): Promise<void> {
    const { fleet, done } = this.#context;
    await done(fleet.update({ sandboxId: this.sandboxId, ttlSeconds, ttlAction }));
  }

  /** Its disk as it is now; goes with the instance. With a `mode` of "template" it stays. */
  async snapshot({ mode }: { mode?: "inplace" | "template" } = {}): Promise<InstanceSnapshot> {
    const { fleet, done } = this.#context;
    if (mode === "template") {
      const { snapshotId } = await saveTemplate(this.#context, this.sandboxId);
      return { id: snapshotId, instanceId: this.id };
    }
    const { snapshotId } = await done(fleet.snapshot({ sandboxId: this.sandboxId }));
    return { id: snapshotId, instanceId: this.id };
  }

  /** Goes back to a snapshot of its own, disk and configuration; runs, or is paused or stopped, as before. */
  async restore(snapshotId: string): Promise<void> {
    const { fleet, done } = this.#context;
    await done(fleet.restore({ sandboxId: this.sandboxId, snapshotId }));
    await this.refresh();
  }

  /**
   * So many copies of it as it is now, each an instance of its own, with its metadata, services and TTL: all or none. An
   * array, and Morph's `{ instances }`.
   */
  async branch(count: number): Promise<CmuxInstance[] & { readonly instances: CmuxInstance[] }> {
    const ids = await branchSandbox(this.#context, this.sandboxId, count);
    const instances = await Promise.all(ids.map((id) => this.#context.load(id)));
    return Object.assign([...instances], { instances });
  }

  /** Reads status, metadata and services anew. Throws `sandbox_not_found`. */
  async refresh(): Promise<void> {
    const { status, metadata, networking } = await this.#context.load(this.sandboxId);
    Object.assign(this, { status, metadata, networking });
  }

  async #power(how: Omit<JobInput<"power">, "sandboxId">): Promise<"running" | "stopped" | "paused"> {
    const { fleet, done } = this.#context;
    const { state } = await done(fleet.power({ sandboxId: this.sandboxId, ...how }));
    await this.refresh();
    return state;
  }
}

const LONGEST_OUTPUT = 1_048_576;

export async function execIn(
  { fleet, done }: InstanceContext,
  sandboxId: SandboxId,
  command: string,
  timeoutMs: number | undefined,
): Promise<ExecResult> {
  const time = timeoutMs === undefined ? {} : { timeoutMs };
  // Today's client keeps all: diffs of a repository are read this way.
  const asked = fleet.exec({ sandboxId, command, outputLimitBytes: LONGEST_OUTPUT, exact: true, ...time });
  const { exitCode, stdout, stderr, truncated } = await done(asked);
  const cut = truncated ? { truncated } : {};
  return { exit_code: exitCode, stdout: stdout.trimEnd(), stderr: stderr.trimEnd(), ...cut };
}

function toStatus(state: SandboxState): InstanceStatus {
  return state === "running" || state === "stopped" || state === "paused" ? state : "unknown";
}

function toNetworking({ services, hostname, node }: SandboxRecord, inventory: Inventory | null): Networking {
  const search = inventory?.nodes.find(({ name }) => name === node)?.dnsSearch;
  return {
    httpServices: services.map(({ name, port, url }) => ({ name, port, url })),
    ...(hostname === undefined ? {} : { hostname }),
    ...(hostname === undefined || !search ? {} : { fqdn: `${hostname}.${search}` }),
  };
}
