import { createHash } from "node:crypto";

/** Keys that PVE gives back as numbers when they look like one; the rest are strings. */
const NUMERIC = new Set(
  "memory swap cores cpuunits tty unprivileged template onboot protection console debug snaptime".split(" "),
);

/** Changes to these take effect at once on a running container (LXC_FASTPLUG_OPTIONS and the hotplug code). */
const HOTPLUG = new Set(
  "description onboot startup protection hostname hookscript cores tags lock memory swap cpulimit cpuunits".split(" "),
);

export interface Snapshot {
  name: string;
  takenAt: number;
  description: string;
  parent?: string;
  values: Map<string, string>;
  /** There while it is taken or deleted, and left by a task that dies in between. */
  state?: "prepare" | "delete";
}

/** One `/etc/pve/nodes/N/lxc/VMID.conf`: what the API shows, its digest and its pending part. */
export class ConfigFile {
  readonly values = new Map<string, string>();
  /** null: to be deleted. */
  readonly pending = new Map<string, string | null>();
  readonly snapshots = new Map<string, Snapshot>();
  parent: string | undefined;
  #digest: string | undefined;

  get(key: string): string | undefined {
    return this.values.get(key);
  }

  get lock(): string | undefined {
    return this.values.get("lock");
  }

  /** Writes one key; undefined removes it. */
  set(key: string, value: string | undefined): void {
    this.#digest = undefined;
    const kept = key === "description" && value !== undefined ? comment(value) : value;
    if (kept === undefined || (key === "description" && kept === "")) this.values.delete(key);
    else this.values.set(key, kept);
  }

  /** A change through the API: at once, or pending where a running container can't take it. */
  change(key: string, value: string | null, running: boolean): void {
    if (running && !HOTPLUG.has(key) && !/^(net|mp|dev|unused)\d+$/.test(key)) {
      this.#digest = undefined;
      if (value !== null && this.values.get(key) === value) this.pending.delete(key);
      else this.pending.set(key, value);
      return;
    }
    this.pending.delete(key);
    this.set(key, value ?? undefined);
  }

  applyPending(): void {
    for (const [key, value] of this.pending) this.set(key, value ?? undefined);
    this.pending.clear();
  }

  get digest(): string {
    this.#digest ??= createHash("sha1").update(this.#text()).digest("hex");
    return this.#digest;
  }

  touch(): void {
    this.#digest = undefined;
  }

  #text(): string {
    const lines = (values: Iterable<readonly [string, string | null]>) =>
      [...values].map(([key, value]) => `${key}: ${value}\n`).sort();
    const parts = [lines(this.values), lines(this.pending)];
    for (const snapshot of this.snapshots.values()) parts.push([`[${snapshot.name}]`, ...lines(snapshot.values)]);
    return parts.flat().join("");
  }

  /** As the API shows it, pending changes applied unless `current`. */
  toJson(current = false): Record<string, string | number> {
    const shown = new Map(this.values);
    if (!current) {
      for (const [key, value] of this.pending) {
        if (value === null) shown.delete(key);
        else shown.set(key, value);
      }
    }
    return { ...valuesToJson(shown), digest: this.digest };
  }
}

/** The description is kept as comment lines, each of which comes back with a line end. */
function comment(text: string): string {
  const lines = text.replace(/\n+$/, "");
  return lines === "" ? "" : `${lines}\n`;
}

export function toJsonValue(key: string, value: string): string | number {
  return NUMERIC.has(key) && /^-?\d+$/.test(value) ? Number(value) : value;
}

export function valuesToJson(values: ReadonlyMap<string, string>): Record<string, string | number> {
  const shown: Record<string, string | number> = {};
  for (const [key, value] of values) shown[key] = toJsonValue(key, value);
  return shown;
}
