import { createHash } from "node:crypto";
import type { RedisConnection } from "./connect.ts";

/** A Lua script, run by its digest; Redis runs it whole or not at all. */
export interface Script {
  readonly lua: string;
  readonly sha: string;
}

export function defineScript(lua: string): Script {
  return { lua, sha: createHash("sha1").update(lua).digest("hex") };
}

/** Runs a script; sends its text only where the server does not know it yet (after a restart or failover). */
export async function runScript(
  redis: RedisConnection,
  script: Script,
  keys: readonly string[],
  args: readonly (string | number | Buffer)[],
): Promise<unknown> {
  try {
    return await redis.evalsha(script.sha, keys.length, ...keys, ...args);
  } catch (error) {
    if (!(error instanceof Error && error.message.startsWith("NOSCRIPT"))) throw error;
    return redis.eval(script.lua, keys.length, ...keys, ...args);
  }
}

/** One script many times at once, in this order; each is a step of its own. Throws the first error. */
export async function runScripts(
  redis: RedisConnection,
  script: Script,
  keys: readonly string[],
  calls: readonly (readonly (string | number)[])[],
): Promise<unknown[]> {
  return Promise.all(calls.map((args) => runScript(redis, script, keys, args)));
}
