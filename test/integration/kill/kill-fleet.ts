/** One of the fleets that are killed side by side. */
import type { Fleet } from "../../../producers/index.ts";
import type { Pve } from "../../pve/index.ts";

/** What is killed, and which operation of its fleet that is: others come before it. */
export const KILLED = {
  provision: 1,
  destroy: 2,
  build: 1,
  /** One that deletes the snapshot before. */
  snapshot: 3,
  restore: 3,
  migrate: 2,
  template: 2,
  /** Of a branch: the provision of its snapshot. */
  copy: 3,
  /** What asks for the end of a branch's snapshot once its batch is over, and that end. */
  tidy: 3,
  untake: 4,
  replicate: 1,
  /** A replica by way of an archive. */
  archive: 1,
  /** The provision of a pool's member, and one that gets it. */
  fill: 1,
  claim: 2,
} as const;
export type Killed = keyof typeof KILLED;

/** A fleet of the batch: its own prefix, template and VMIDs, so that no two meet. */
export interface KillFleet {
  readonly pve: Pve;
  readonly env: Record<string, string>;
  readonly prefix: string;
  readonly killed: Killed;
  readonly template: { name: string; vmid: number };
  readonly vmids: { first: number; last: number };
  readonly fleet: Fleet;
}

/** A request path that names the fleet's template or one of its VMIDs. */
export function isOf({ template, vmids }: KillFleet, path: string): boolean {
  const vmid = Number(/\/lxc\/(\d+)/.exec(path)?.[1] ?? 0);
  return vmid === template.vmid || (vmid >= vmids.first && vmid <= vmids.last);
}
