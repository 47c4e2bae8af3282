/** Sandboxes as the registry has them. */

import { z } from "zod";
import { FleetError } from "../shared/errors.ts";
import { InstanceId, POOL_TEAM, SandboxId } from "../shared/ids.ts";
import { TtlSeconds } from "../shared/jobs/fields.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import { parseReservation } from "../shared/placement/reservation.ts";
import { type PassOver, readable } from "../shared/state/codec.ts";
import { decodeSandbox, decodeSnapshot } from "../shared/state/operations.ts";
import type { SandboxRecord, SandboxState, SnapshotRecord } from "../shared/state/records.ts";
import { extendTtl } from "../shared/state/ttl.ts";
import type { Parts } from "./parts.ts";

export interface SandboxFilter {
  team?: string | undefined;
  /** All but templates and members of pools when absent. */
  state?: SandboxState | readonly SandboxState[] | undefined;
  /** Entries that all must be there with these values. */
  metadata?: Readonly<Record<string, string>> | undefined;
}

export interface Resources {
  /** Where none are set the limit of CPU time in cores; 0: as many as its node has. */
  cores: number | undefined;
  memoryMib: number;
  swapMib: number | undefined;
  /** Of all its disks. */
  diskGib: number;
}

export interface SandboxView extends SandboxRecord {
  /** What it takes of its node, as PVE's config says; somebody else's changes are seen within seconds. Absent once it has ended. */
  resources?: Resources;
}

export interface Sandboxes {
  /**
   * A sandbox by its id, until some time after its end; or while it lives by its instance id, or its VMID as a number.
   * Throws `sandbox_not_found`.
   */
  get(id: string | number): Promise<SandboxView>;
  /**
   * Sandboxes that have not ended, oldest first. `onUnreadable` hears of each whose record is damaged, or of a newer version,
   * and that is left out for it; what it throws ends the list. Without it the first such time is a warning of the process.
   */
  list(filter?: SandboxFilter, options?: { onUnreadable?: PassOver | undefined }): Promise<SandboxRecord[]>;
  /**
   * It lives at least so many seconds from now on, whatever workers are doing; an end that is later stays. `expiresAt`: its
   * end in ms since the epoch; null: it has none, and needs no extension. Throws `invalid_input`, `sandbox_not_found`, or
   * `sandbox_gone` also where its destroy has been asked for.
   */
  extend(id: string | number, by: { seconds: number }): Promise<{ expiresAt: number | null }>;
  /** Those taken of a sandbox through the fleet, oldest first, those of a branch apart. Throws `sandbox_not_found`. */
  snapshots(id: string): Promise<SnapshotRecord[]>;
}

const PAGE = 200;
const Extension = z.strictObject({ seconds: TtlSeconds });
const Hash = z.record(z.string(), z.string());

export function createSandboxes(parts: Parts): Sandboxes {
  const get = async (id: string | number): Promise<SandboxRecord> => {
    const record = await parts.link.request(async (redis) => {
      const { vmids, instances } = parts.keys;
      const index = typeof id === "number" ? vmids : InstanceId.safeParse(id).success ? instances : null;
      const known = SandboxId.safeParse(index === null ? id : await redis.hget(index, String(id)));
      return known.success ? parts.store.loadSandbox(known.data) : null;
    });
    if (record === null || (parts.team !== undefined && record.team !== parts.team)) {
      throw new FleetError("sandbox_not_found", `there is no sandbox ${id}`, { facts: { sandbox: id } });
    }
    return record;
  };
  return {
    async get(id) {
      const record = await get(id);
      const resources = await loadResources(parts, record);
      return resources === null ? record : { ...record, resources };
    },
    async extend(id, by) {
      const { seconds } = parseOrRefuse("extend", Extension, by);
      const { id: sandbox } = await get(id);
      const ask = { sandbox, seconds, scope: parts.team, now: parts.now() };
      return { expiresAt: await parts.link.request((redis) => extendTtl(redis, parts.keys, ask)) };
    },
    async snapshots(id) {
      const sandbox = await get(id);
      const ids = await parts.link.request((redis) => redis.smembers(parts.keys.sandboxSnapshots(sandbox.id)));
      const hashes = await loadHashes(parts, ids.map(parts.keys.snapshot));
      return readable(hashes, decodeSnapshot, parts.passOver)
        .filter(({ branch }) => branch === undefined)
        .sort((a, b) => a.createdAt - b.createdAt);
    },
    async list(filter = {}, { onUnreadable = parts.passOver } = {}) {
      const team = parts.team ?? filter.team;
      // All ids at once, 24 bytes each: pages by rank would pass over a sandbox when an earlier one ends meanwhile.
      const ids = await parts.link.request((redis) =>
        redis.zrange(team === undefined ? parts.keys.sandboxes : parts.keys.teamSandboxes(team), "0", "-1"),
      );
      const found: SandboxRecord[] = [];
      for (let at = 0; at < ids.length; at += PAGE) {
        const hashes = await loadHashes(parts, ids.slice(at, at + PAGE).map(parts.keys.sandbox));
        const page = readable(hashes, decodeSandbox, onUnreadable);
        found.push(...page.filter((sandbox) => matches(sandbox, filter)));
      }
      return found.sort((a, b) => a.createdAt - b.createdAt);
    },
  };
}

async function loadResources({ link, keys }: Parts, { id, node }: SandboxRecord): Promise<Resources | null> {
  const text = node === undefined ? null : await link.request((redis) => redis.hget(keys.reserved(node), id));
  if (text === null) return null;
  const { cores, memoryMib, swapMib, disks } = parseReservation(text);
  return { cores, memoryMib, swapMib, diskGib: Object.values(disks).reduce((sum, gib) => sum + gib, 0) };
}

/** Of those that are still there. */
async function loadHashes({ link }: Parts, keys: readonly string[]): Promise<z.output<typeof Hash>[]> {
  const replies = await link.request((redis) => {
    const pipeline = redis.pipeline();
    for (const key of keys) pipeline.hgetall(key);
    return pipeline.exec();
  });
  return (replies ?? []).flatMap(([error, reply]) => {
    if (error) throw error;
    const hash = Hash.parse(reply);
    return hash["id"] === undefined ? [] : [hash];
  });
}

function matches(sandbox: SandboxRecord, { team, state, metadata = {} }: SandboxFilter): boolean {
  const states: readonly SandboxState[] = state === undefined ? [] : typeof state === "string" ? [state] : state;
  const shown = sandbox.state !== "template" && (sandbox.team !== POOL_TEAM || team === POOL_TEAM);
  return (
    (team === undefined || sandbox.team === team) &&
    (states.length === 0 ? shown : states.includes(sandbox.state)) &&
    Object.entries(metadata).every(([key, value]) => sandbox.metadata[key] === value)
  );
}
