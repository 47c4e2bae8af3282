import type { Container } from "./container.ts";
import type { StorageSpec, StorageType } from "./options.ts";

export const GIB = 1024 ** 3;
export const MIB = 1024 ** 2;

export interface Volume {
  volid: string;
  storage: Storage;
  owner: number;
  sizeBytes: number;
  usedBytes: number;
  format: "raw" | "subvol";
  createdAt: number;
  /** The base volume of a linked clone. */
  parent?: string;
}

/** A container as vzdump has saved it. Of its disk there is no copy: what is saved here does not change. */
export interface Backup {
  volid: string;
  of: Container;
  values: Map<string, string>;
  sizeBytes: number;
  createdAt: number;
  notes: string;
  protected: boolean;
}

/** What each kind of storage can do (PVE::Storage's plugins); `base` says who counts a base volume's clones: not LVM-thin, nor btrfs. */
interface Abilities {
  snapshot: boolean;
  linked: boolean;
  linkedOfAny: boolean;
  /** A snapshot can be cloned linked: not ZFS's, whose feature "clone" is for bases alone. */
  linkedOfSnapshot: boolean;
  base: boolean;
  /** It goes back to its newest snapshot only. */
  newestOnly: boolean;
}
const NONE: Abilities = {
  snapshot: false,
  linked: false,
  linkedOfAny: false,
  linkedOfSnapshot: false,
  base: false,
  newestOnly: false,
};
const ABILITIES: Record<StorageType, Abilities> = {
  dir: NONE,
  lvmthin: { ...NONE, snapshot: true, linked: true, linkedOfSnapshot: true },
  zfspool: { ...NONE, snapshot: true, linked: true, base: true, newestOnly: true },
  rbd: { ...NONE, snapshot: true, linked: true, linkedOfSnapshot: true, base: true },
  btrfs: { ...NONE, snapshot: true, linked: true, linkedOfAny: true, linkedOfSnapshot: true },
};

const CONTENT: Record<StorageType, string> = {
  dir: "backup,images,iso,rootdir,snippets,vztmpl",
  lvmthin: "images,rootdir",
  zfspool: "images,rootdir",
  rbd: "images,rootdir",
  btrfs: "images,rootdir",
};

/** One store; a shared one is the same object on every node that names it. */
export class Storage {
  readonly name: string;
  readonly type: StorageType;
  readonly shared: boolean;
  readonly totalBytes: number;
  readonly otherBytes: number;
  readonly volumes = new Map<string, Volume>();
  readonly backups = new Map<string, Backup>();
  readonly keepBackups: number | undefined;
  readonly content: string;
  #used = 0;
  /** How many linked clones a base volume has. */
  readonly #clones = new Map<string, number>();

  constructor(spec: StorageSpec) {
    this.name = spec.name;
    this.type = spec.type;
    this.shared = spec.shared ?? false;
    this.content = spec.content ?? CONTENT[spec.type];
    this.keepBackups = spec.keepBackups;
    this.totalBytes = (spec.sizeGib ?? 200) * GIB;
    this.otherBytes = (spec.usedGib ?? 0) * GIB;
  }

  get can() {
    return ABILITIES[this.type];
  }

  holds(content: string): boolean {
    return this.content.split(",").includes(content);
  }

  get usedBytes(): number {
    return this.otherBytes + this.#used;
  }

  volid(owner: number, disk: number, base = false): string {
    const name = `${base ? "base" : "vm"}-${owner}-disk-${disk}`;
    const inFolder = this.type === "dir" || this.type === "btrfs";
    return inFolder ? `${this.name}:${owner}/${name}.raw` : `${this.name}:${name}`;
  }

  /** A linked clone's id names its base where the storage keeps them together. */
  linkedVolid(owner: number, disk: number, base: string): string {
    if (this.type !== "rbd" && this.type !== "zfspool") return this.volid(owner, disk);
    return `${this.name}:${base.slice(this.name.length + 1)}/vm-${owner}-disk-${disk}`;
  }

  hasRoom(bytes: number): boolean {
    return this.usedBytes + bytes <= this.totalBytes;
  }

  add(volume: Volume): void {
    this.volumes.set(volume.volid, volume);
    this.#used += volume.usedBytes;
    this.#count(volume.parent, 1);
  }

  #count(base: string | undefined, by: number): void {
    if (base !== undefined) this.#clones.set(base, (this.#clones.get(base) ?? 0) + by);
  }

  remove(volid: string): void {
    const volume = this.volumes.get(volid);
    if (volume === undefined) return;
    this.volumes.delete(volid);
    this.#used -= volume.usedBytes;
    this.#count(volume.parent, -1);
  }

  hasClones(volid: string): boolean {
    return this.can.base && (this.#clones.get(volid) ?? 0) > 0;
  }

  /** The error of a copy that finds no room, as the tool of each kind words it. */
  fullText(volume: string): string {
    if (this.type === "lvmthin") {
      return `lvcreate 'pve/${volume}' error:   Cannot create new thin volume, free space in thin pool pve/data reached threshold.`;
    }
    if (this.type === "rbd") return `rbd clone/create error: (28) No space left on device`;
    return `command 'mkfs.ext4 ...' failed: No space left on device`;
  }
}
