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
const PRELUDE = [BASE_LUA, TURNS_LUA, SANDBOX_LUA, BATCH_LUA, CONTENT_LUA, LINES_LUA, RUN_LUA, QUOTA_LUA];

interface Definition {
  text: string;
  names: readonly string[];
  words: readonly string[];
}

/** Lua's top level, statement by statement; each of them defines something. Pure. */
export function parseDefinitions(lua: string): Definition[] {
  const texts = lua.replace(/^--.*\n/gm, "").match(/^local .*\n(?:(?!local ).*\n)*/gm) ?? [];
  return texts.map((text) => {
    const [, names = ""] = /^local (?:function )?([\w, ]+)/.exec(text) ?? [];
    return { text, names: wordsOf(names), words: wordsOf(text) };
  });
}

/** Of definitions, each of which builds on those before it, the ones that `body` comes to. Pure. */
export function pick(definitions: readonly Definition[], body: string): string {
  const words = new Set(wordsOf(body));
  const picked: string[] = [];
  for (const { text, names, words: more } of definitions.toReversed()) {
    if (!names.some((name) => words.has(name))) continue;
    for (const word of more) words.add(word);
    picked.unshift(text);
  }
  return picked.join("");
}

const wordsOf = (lua: string): string[] => [...new Set(lua.match(/\w+/g))];

const DEFINITIONS = parseDefinitions(PRELUDE.join(""));

/** A script with what it uses of the functions that they all share: Redis makes each of them anew with every call. */
export const withPrelude = (body: string) => defineScript(pick(DEFINITIONS, body) + body);
