/** API keys of teams, for services with `auth: "api_key"`. */
import { z } from "zod";
import { FleetError } from "../shared/errors.ts";
import { TeamId } from "../shared/ids.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import { type ApiKey, type ApiKeyStore, createApiKeyStore } from "../shared/state/api-keys.ts";
import type { Parts } from "./parts.ts";
import { DEFAULT_TEAM } from "./submit.ts";

export interface ApiKeyView {
  id: string;
  /** Whose sandboxes' services it opens. */
  team: string;
  name: string;
  /** ms since the epoch, as `expiresAt`. */
  createdAt: number;
  expiresAt?: number | undefined;
}

export interface NewApiKey extends ApiKeyView {
  /** What is sent, as a bearer token or in `x-api-key`: nobody can show it a second time, Redis has its hash alone. */
  key: string;
}

export interface ApiKeys {
  /** `team`: the client's own, or `default`. Throws `invalid_input`, and `forbidden` for another team than the client's. */
  create(options: { name: string; team?: string | undefined; ttlSeconds?: number | undefined }): Promise<NewApiKey>;
  /** Oldest first; of the client's team, or of all. */
  list(): Promise<ApiKeyView[]>;
  /** From then on gates refuse it. Throws `key_not_found`. */
  revoke(id: string): Promise<void>;
}

const Asked = z.object({
  name: z.string().trim().min(1, "must not be empty").max(64, "must have at most 64 characters"),
  team: TeamId.optional(),
  ttlSeconds: z.int().min(10).max(315_360_000).optional(),
});

export function createApiKeys(parts: Parts): ApiKeys {
  const ask = <T>(run: (store: ApiKeyStore) => Promise<T>): Promise<T> =>
    parts.link.request((redis) => run(createApiKeyStore(redis, parts.keys)));
  return {
    async create(options) {
      const { name, team, ttlSeconds } = parseOrRefuse("key", Asked, options);
      if (parts.team !== undefined && team !== undefined && team !== parts.team)
        throw new FleetError("forbidden", `this client was made for team ${parts.team}`, {
          facts: { team: parts.team },
        });
      const owner = parts.team ?? team ?? DEFAULT_TEAM;
      const expiresAt = ttlSeconds === undefined ? undefined : parts.now() + ttlSeconds * 1_000;
      const { key, text } = await ask((store) => store.create({ team: owner, name, expiresAt }));
      return { ...toView(key), key: text };
    },
    list: async () => (await ask((store) => store.list(parts.team, parts.passOver))).map(toView),
    async revoke(id) {
      if (await ask((store) => store.revoke(id, parts.team))) return;
      throw new FleetError("key_not_found", "there is no API key of this id", { facts: {} });
    },
  };
}

/** The hash stays where it is. */
const toView = ({ hash, ...view }: ApiKey): ApiKeyView => view;
