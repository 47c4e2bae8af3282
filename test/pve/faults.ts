/** Which requests a fault takes: all given fields must fit. Regular expressions are given as source text. */
interface RequestMatch {
  method?: string;
  /** Against the path without `/api2/json`. */
  path?: string;
}

/** What happens to the next `times` (default 1) requests that fit. */
export type RequestFault = RequestMatch & { times?: number } & (
    | { kind: "refuse"; status: number; text: string; errors?: Record<string, string> }
    | { kind: "delay"; ms: number }
    /** Executed; the client sees 595, 596 or a cut connection. */
    | { kind: "lose-reply"; as: 595 | 596 | "cut" }
    /** Not executed. */
    | { kind: "cut" }
    /** Not executed until released. */
    | { kind: "hang" }
    | { kind: "html"; status?: number }
    | { kind: "empty"; status?: number }
    /** A clone or create that leaves its locks behind, as 9.x does now and then. */
    | { kind: "no-worker" }
  );

/** What happens to the next `times` (default 1) tasks that fit. */
export interface TaskFault {
  type?: string;
  /** Source or target. */
  vmid?: number;
  /** Fails with this exitstatus when its work is done. */
  text?: string;
  /** Warns: "WARNINGS: n", which is a success. */
  warnings?: string[];
  times?: number;
  /** Locks (`disk` on the source, `create` on the target) stay. */
  leaveLocks?: boolean;
  /** Its work takes until it is released, and has no effect before; to be stopped as ever. */
  hold?: boolean;
}

export type NodeState = "online" | "unreachable" | "refused" | "hung";

/** Faults on request; the control API takes the same as JSON. Each handle undoes what has not happened yet. */
export interface Faults {
  request(fault: RequestFault): FaultHandle;
  task(fault: TaskFault): FaultHandle;
  node(name: string, state: NodeState): void;
  /** An orderly shutdown: PVE's task `stopall` stops every container of the node, which is gone from then on. */
  shutDown(name: string): Promise<void>;
  /** Powers a node off and on: its containers are stopped, those with `onboot` too. `agoMs`: it has been up for so long by now. */
  reboot(name: string, agoMs?: number): void;
  /** `pvecm delnode` of one without guests: the cluster knows it no more. */
  expel(name: string): void;
  quorum(present: boolean): void;
  /** A node's clock goes wrong by so many seconds. */
  clock(node: string, aheadSec: number): void;
  /** The token hook of the next `times` starts fails (open). */
  hookFailure(times?: number): void;
  /** Sets a lock as a crashed task or a backup leaves it; null clears it, as `pct unlock` does. */
  lock(vmid: number, lock: string | null): void;
  freeze(vmid: number): void;
  unfreeze(vmid: number): void;
  /** SIGKILLs a task's worker: "unable to read tail (got 0 bytes)", locks stay. */
  killTask(upid: string): void;
  /** Removed behind everyone's back. */
  vanish(vmid: number): void;
  /** A human makes a guest of their own with this VMID, a container by default. */
  occupy(vmid: number, node?: string, kind?: "lxc" | "qemu"): void;
  /** A human edits the config file; null removes a line. */
  edit(vmid: number, change: Record<string, string | null>): void;
  /** It has run for so long by now. */
  ranFor(vmid: number, seconds: number): void;
  /** Ends the container as if its init had exited. */
  crash(vmid: number): void;
  /** The guest's root gives its card these IPv4 addresses in place of its own; they are shown, and nothing answers there. */
  takeAddresses(vmid: number, addresses: readonly string[]): void;
  /** Moves a stopped container to another node, as HA or a human does. */
  move(vmid: number, node: string): void;
  /** Removes every fault and brings all nodes and the quorum back. */
  clear(): void;
}

export interface FaultHandle {
  readonly id: string;
  /** How often it has taken effect. */
  readonly hits: number;
  /** Lets hanging requests and held tasks go, and takes the fault away. */
  release(): void;
}
