import type { NodeName } from "../../shared/ids.ts";

/** Where PVE's API is and how to be let in. */
export interface PveTarget {
  /** `https://10.0.0.1:8006`: any API hosts of the cluster. Tried in order, the last good one first. */
  hosts: readonly string[];
  /** `user@realm!tokenid=uuid` */
  token: string;
  tls: {
    verify: boolean;
    caPem?: string;
    /** SHA-256 of the certificate, `AA:BB:…`; pins it instead of asking a CA. Several are separated by commas. */
    fingerprint?: string;
  };
  /** PVE has 3 workers a node; default 4. */
  connectionsPerNode?: number;
}

/** Booleans become 1 and 0, undefined is left out; there is no null, which PVE would write into the config. */
export type Params = Record<string, string | number | boolean | undefined>;

/** What every call takes along. */
export interface Call {
  signal: AbortSignal;
  /** Called synchronously right before each attempt is sent; throws when this run may not act any more. */
  guard?: () => void;
}

export interface PveRequest extends Call {
  method: "GET" | "POST" | "PUT" | "DELETE";
  /** Without `/api2/json`, segments encoded: see `pvePath`. */
  path: string;
  /** The node that is to answer; requests of one node share their connections. */
  node?: NodeName;
  params?: Params;
  /** Over all attempts; 35 s by default, since PVE itself answers 596 after 30 s. */
  deadlineMs?: number;
}

export interface PveHttp extends AsyncDisposable {
  /** PVE's `data`. Throws FleetError; a broken-off write is `outcome_unknown`, an aborted one throws the signal's reason. */
  request(request: PveRequest): Promise<unknown>;
  close(): Promise<void>;
}

export interface RequestReport {
  method: string;
  /** The path with `{node}`, `{vmid}`, `{upid}` and `{snapname}` in place of values. */
  endpoint: string;
  node?: NodeName;
  /** 0: no answer. */
  status: number;
  ms: number;
}

export interface PveHttpOptions {
  /** Called once per attempt. */
  onRequest?: (report: RequestReport) => void;
}

export function createPveHttp(target: PveTarget, options: PveHttpOptions = {}): PveHttp {
  throw new Error(`not there yet: ${target.hosts.length} ${Object.keys(options).join()}`);
}
