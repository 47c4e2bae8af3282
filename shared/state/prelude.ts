/**
 * The Lua behind operations and sandboxes: each script is one atomic step.
 * KEYS[1] is the key of open operations; ARGV[1] the prefix, from which the other keys are built (all in its hash tag).
 */
import { defineScript } from "../redis/script.ts";
import { BASE_LUA } from "./base-lua.ts";
import { BATCH_LUA } from "./batch-lua.ts";
import { CONTENT_LUA } from "./content-lua.ts";
import { LINES_LUA } from "./lines-lua.ts";
import { QUOTA_LUA } from "./quota-lua.ts";
import { RUN_LUA } from "./run-lua.ts";
import { SANDBOX_LUA } from "./sandbox-lua.ts";
import { TURNS_LUA } from "./turns-lua.ts";

/** Each builds on those before it. */
const PRELUDE = [BASE_LUA, TURNS_LUA, SANDBOX_LUA, BATCH_LUA, CONTENT_LUA, LINES_LUA, RUN_LUA].join("");

/** A script with the functions that they all share. */
export const withPrelude = (body: string) => defineScript(PRELUDE + body);

/** As above, for what accepts and ends operations. */
export const withQuotas = (body: string) => withPrelude(QUOTA_LUA + body);
