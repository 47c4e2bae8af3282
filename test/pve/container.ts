import { now } from "./clock.ts";
import { ConfigFile } from "./config-file.ts";
import { FileLock } from "./file-lock.ts";
import type { GuestTraits } from "./options.ts";
import { refuse } from "./refusal.ts";

/** What a booted guest has; made by guest/guest.ts. */
export interface RunningGuest {
  pid: number;
  startedAt: number;
  /** Absent until the guest has booted. */
  address: string | undefined;
  token: string | undefined;
  frozen: boolean;
}

/** One line of the statistics that cluster/resources shows later. */
export interface Seen {
  at: number;
  name: string;
  status: "running" | "stopped";
  template: boolean;
  startedAt: number | undefined;
}

export const DEFAULT_TRAITS: GuestTraits = {
  execd: true,
  files: true,
  bootMs: -1,
  ignoresShutdown: false,
  exitsAfterStart: false,
};

/** A container as its node knows it. */
export class Container {
  readonly vmid: number;
  /** Unlike the VMID, never used twice. */
  readonly uid: string;
  node: string;
  readonly config = new ConfigFile();
  readonly fileLock: FileLock;
  readonly traits: GuestTraits;
  guest: RunningGuest | undefined;
  /** Kept from its first start on, like a DHCP lease. */
  address: string | undefined;
  /** What its root has given its card in place of that. */
  taken: readonly string[] | undefined;
  readonly firewall = new Map<string, string>();
  readonly firewallRules: Record<string, string>[] = [];

  constructor(vmid: number, node: string, { uid, traits }: { uid: string; traits: GuestTraits }) {
    this.vmid = vmid;
    this.uid = uid;
    this.node = node;
    this.traits = traits;
    this.fileLock = new FileLock(`/run/lock/lxc/pve-config-${vmid}.lock`);
  }

  get running(): boolean {
    return this.guest !== undefined;
  }

  get name(): string {
    return this.config.get("hostname") ?? `CT${this.vmid}`;
  }

  get template(): boolean {
    return this.config.get("template") === "1";
  }

  get uptimeSeconds(): number {
    return this.guest === undefined ? 0 : Math.floor((now() - this.guest.startedAt) / 1000);
  }

  checkLock(): void {
    if (this.config.lock !== undefined) throw refuse(`CT is locked (${this.config.lock})`);
  }
}
