/** What every part of a client works with. */
import type { TeamId } from "../shared/ids.ts";
import { createQueues, type Queues } from "../shared/queues.ts";
import { Channels } from "../shared/redis/channels.ts";
import { type BatchStore, createBatchStore } from "../shared/state/batches.ts";
import type { PassOver } from "../shared/state/codec.ts";
import { type ContentStore, createContentStore } from "../shared/state/contents.ts";
import { createKeys, type Keys } from "../shared/state/keys.ts";
import { createNodeStateStore, type NodeStateStore } from "../shared/state/nodes.ts";
import { createOperationStore, type OperationStore } from "../shared/state/operations.ts";
import { createPools, type Pools } from "../shared/state/pools.ts";
import { createQuotas, type Quotas } from "../shared/state/quotas.ts";
import { createSecretStore, type SecretStore } from "../shared/state/secrets.ts";
import { createShellInputs, type ShellInputs } from "../shared/state/shell-input.ts";
import { createSlots, type Slots } from "../shared/state/slots.ts";
import { createLink, type Link } from "./link.ts";
import type { CheckedOptions } from "./options.ts";

export interface Parts {
  readonly link: Link;
  readonly keys: Keys;
  readonly channels: Channels;
  /** Absent: every team is in reach. */
  readonly team: TeamId | undefined;
  readonly now: () => number;
  readonly store: OperationStore;
  readonly batches: BatchStore;
  readonly keyring: readonly Buffer[] | undefined;
  readonly secrets: SecretStore;
  readonly contents: ContentStore;
  readonly shellInputs: ShellInputs;
  readonly queues: Queues;
  readonly slots: Slots;
  readonly nodeStates: NodeStateStore;
  readonly quotas: Quotas;
  readonly pools: Pools;
  /** Tells of a record that a list leaves out, once. */
  readonly passOver: PassOver;
  close(): Promise<void>;
}

/** Nothing is connected before one of the stores is used. */
export function createParts(options: CheckedOptions): Parts {
  const link = createLink(options.redis, options.requestTimeoutMs);
  const keys = createKeys(options.prefix);
  const channels = new Channels(() => link.openBlocking());
  let opened:
    | Pick<Parts, "store" | "batches" | "secrets" | "queues" | "slots" | "nodeStates" | "quotas" | "pools">
    | undefined;
  const open = () => {
    if (opened) return opened;
    const redis = link.redis();
    opened = {
      // Retention is set by whoever ends an operation, and a producer never does.
      store: createOperationStore(redis, keys, { retentionSec: 0, keyring: options.keyring }),
      // A batch without any operation is ended by its producer.
      batches: createBatchStore(redis, keys, { retentionSec: 86_400 }),
      secrets: createSecretStore(redis, keys, options.keyring),
      queues: createQueues(redis, options.prefix),
      slots: createSlots(redis, keys),
      nodeStates: createNodeStateStore(redis, keys),
      quotas: createQuotas(redis, keys),
      pools: createPools(redis, keys),
    };
    return opened;
  };
  return {
    link,
    keys,
    channels,
    team: options.team,
    now: Date.now,
    passOver: createWarning(),
    contents: createContentStore(keys, options.keyring),
    keyring: options.keyring,
    get batches() {
      return open().batches;
    },
    shellInputs: createShellInputs(keys, options.keyring),
    get store() {
      return open().store;
    },
    get secrets() {
      return open().secrets;
    },
    get queues() {
      return open().queues;
    },
    get slots() {
      return open().slots;
    },
    get nodeStates() {
      return open().nodeStates;
    },
    get pools() {
      return open().pools;
    },
    get quotas() {
      return open().quotas;
    },
    async close() {
      await channels.close();
      await opened?.queues.close();
      await link.close();
    },
  };
}

function createWarning(): PassOver {
  const told = new Set<string>();
  return ({ text }) => {
    if (!told.has(text)) process.emitWarning(`${text}; it is left out`, "FleetWarning");
    told.add(text);
  };
}
