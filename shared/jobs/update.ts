import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { IdleAction, IdleSeconds, Metadata, MetadataKey, MetadataValue, TtlAction, TtlSeconds } from "./fields.ts";

export const update = defineJob({
  summary:
    "Change what the fleet keeps of a sandbox: metadata, TTL, idle pause, wake-on-HTTP; its container stays as it is",
  input: z
    .strictObject({
      sandboxId: SandboxId,
      /** Entries to set; null takes one away, the others stay. */
      metadata: z.record(MetadataKey, MetadataValue.nullable()).optional(),
      /** `metadata` is all there is to be. */
      replaceMetadata: z.boolean().default(false),
      /** Seconds from now until `ttlAction`; null: no end. */
      ttlSeconds: TtlSeconds.nullable().optional(),
      /** Only ever later: `ttlSeconds` that would end before the time that is set, or where none is set, changes nothing. */
      extend: z.boolean().default(false),
      ttlAction: TtlAction.optional(),
      /** Whether each use moves the end to `ttlSeconds` after it. */
      ttlExtendOnUse: z.boolean().optional(),
      /** Counted from now; null: it may be idle for ever. */
      idleSeconds: IdleSeconds.nullable().optional(),
      idleAction: IdleAction.optional(),
      wakeOnHttp: z.boolean().optional(),
    })
    .refine(
      ({ sandboxId, replaceMetadata, extend, ...changes }) => Object.values(changes).some((one) => one !== undefined),
      {
        error:
          "must change something: give metadata, ttlSeconds, ttlAction, ttlExtendOnUse, idleSeconds, idleAction or wakeOnHttp",
      },
    )
    .refine(({ metadata, replaceMetadata }) => metadata !== undefined || !replaceMetadata, {
      path: ["replaceMetadata"],
      error: "needs metadata; give {} to take all of it away",
    })
    .refine(({ ttlSeconds, extend }) => !extend || typeof ttlSeconds === "number", {
      path: ["extend"],
      error: "needs ttlSeconds as a number",
    }),
  /** What is kept now. `expiresAt`: ms since the epoch; null: never. */
  output: z.object({
    metadata: Metadata,
    ttlAction: TtlAction,
    ttlExtendOnUse: z.boolean().default(false),
    expiresAt: z.number().nullable(),
    idleSeconds: IdleSeconds.nullable().default(null),
    idleAction: IdleAction.default("pause"),
    wakeOnHttp: z.boolean(),
  }),
  queue: "exec",
  attempts: 5,
  timeoutMs: 60_000,
});
