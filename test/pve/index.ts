import type { Faults } from "./faults.ts";
import type { PveOptions, TemplateSpec } from "./options.ts";
import type { ContainerView, LogEntry, TaskEntry, TokenSpec } from "./views.ts";

export type { FaultHandle, Faults, NodeState, RequestFault, RequestMatch, TaskFault } from "./faults.ts";
export type {
  GuestTraits,
  NodeSpec,
  PveOptions,
  PveVersion,
  StorageSpec,
  StorageType,
  TemplateSpec,
  Timings,
} from "./options.ts";
export type { ContainerView, LogEntry, TaskEntry, TokenSpec } from "./views.ts";

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
  /** Makes a token with limited rights; returns what PVE_API_TOKEN would hold. */
  addToken(spec: TokenSpec): string;
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
  throw new Error(`not there yet: ${Object.keys(options).join()}`);
}
