/** One request, or one fault that took effect (`fault` set). Token values and secrets in parameters are left out. */
export interface LogEntry {
  /** Epoch ms at arrival. */
  at: number;
  /** The node that the path names, if it names one. */
  node?: string;
  method: string;
  /** Without `/api2/json`. */
  path: string;
  params: Record<string, string>;
  /** 0: the connection was cut. */
  status: number;
  reason: string;
  ms: number;
  /** What was done to it on purpose. */
  fault?: string;
}

/** One PVE task, heavy ones included, so that a test can count how many ran at once. */
export interface TaskEntry {
  upid: string;
  type: string;
  /** The VMID as PVE shows it; a clone's is its source's. */
  id: string;
  /** The container that a clone or create makes. */
  target?: number;
  node: string;
  /** Arrival of the request, epoch ms with fractions. */
  startedAt: number;
  endedAt?: number;
  exitstatus?: string;
}

/** The truth about one container, whatever the API says. */
export interface ContainerView {
  vmid: number;
  node: string;
  name: string;
  status: "running" | "stopped";
  frozen: boolean;
  lock?: string;
  template: boolean;
  config: Readonly<Record<string, string>>;
  snapshots: readonly string[];
  pool?: string;
  /** Its own firewall: options as PVE keeps them, rules from the first. */
  firewall: { options: Readonly<Record<string, string>>; rules: readonly Readonly<Record<string, string>>[] };
  /** Its loopback address while it runs and has booted. */
  address?: string;
  /** The execd token in force; absent while stopped and where execd is open to all. */
  tokenInForce?: string;
  /** Folder that its commands run in. */
  root: string;
}

export interface TokenSpec {
  /** "cmux@pve". */
  user: string;
  /** Token id, "fleet". */
  id: string;
  /** ACL path to privileges: { "/vms": ["VM.Audit"] }; paths propagate downwards. */
  privileges: Record<string, string[]>;
  disabled?: boolean;
  expired?: boolean;
}

export type TokenChange = Partial<Pick<TokenSpec, "privileges"> & { disabled: boolean; expired: boolean }>;
