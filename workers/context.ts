/** What every run and clockwork of a worker process works with; wired once, in `fleet.ts`. */
import type { Logger } from "pino";
import type { WorkerConfig } from "../shared/config.ts";
import type { FleetError } from "../shared/errors.ts";
import type { Queues } from "../shared/queues.ts";
import type { Channels } from "../shared/redis/channels.ts";
import type { RedisConnection } from "../shared/redis/connect.ts";
import type { BatchStore } from "../shared/state/batches.ts";
import type { ContentStore } from "../shared/state/contents.ts";
import type { Inventory } from "../shared/state/inventory.ts";
import type { Keys } from "../shared/state/keys.ts";
import type { OperationStore } from "../shared/state/operations.ts";
import type { Pools } from "../shared/state/pools.ts";
import type { Quotas } from "../shared/state/quotas.ts";
import type { SecretStore } from "../shared/state/secrets.ts";
import type { ShellInputs } from "../shared/state/shell-input.ts";
import type { Slots } from "../shared/state/slots.ts";
import type { Strays } from "../shared/state/strays.ts";
import type { Execd } from "./exec/execd.ts";
import type { Metrics } from "./metrics.ts";
import type { NodeGuard } from "./nodes/guard.ts";
import type { OwnMachines } from "./own-machines.ts";
import type { PveApi } from "./pve/api.ts";
import type { TaskWatcher } from "./pve/task-watcher.ts";
import type { NodeShell } from "./ssh/node-shell.ts";
import type { Traces } from "./traces.ts";
import type { Wake } from "./wake.ts";

export interface WorkerContext {
  readonly config: WorkerConfig;
  readonly redis: RedisConnection;
  readonly keys: Keys;
  readonly store: OperationStore;
  readonly batches: BatchStore;
  readonly slots: Slots;
  readonly quotas: Quotas;
  readonly pools: Pools;
  readonly strays: Strays;
  /** As `strays` told it last: another once Redis has lost all its data. */
  readonly origin: string;
  readonly secrets: SecretStore;
  readonly contents: ContentStore;
  readonly shellInputs: ShellInputs;
  readonly channels: Channels;
  readonly queues: Queues;
  readonly wake: Wake;
  readonly pve: PveApi;
  readonly tasks: TaskWatcher;
  readonly execd: Execd;
  /** Commands on the nodes themselves; null where no SSH is configured. */
  readonly shell: NodeShell | null;
  readonly inventory: InventorySource;
  readonly machines: OwnMachines;
  readonly nodes: NodeGuard;
  readonly metrics: Metrics;
  /** Null where no collector of traces is configured. */
  readonly traces: Traces | null;
  readonly log: Logger;
}

export interface InventorySource {
  /** The newest that this process knows; throws `node_unreachable` before there is one. */
  current(): Inventory;
  /** Why the last reading of this process failed; null when it did not. */
  trouble(): FleetError | null;
  /** Reads the cluster anew, for a caller that did not find what it looks for. */
  refresh(signal: AbortSignal): Promise<Inventory>;
}
