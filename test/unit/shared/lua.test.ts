/** Redis finds a call of something that there is not only when it comes to it, in the middle of a step. */
import { globSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { parseDefinitions, pick } from "../../../shared/state/prelude.ts";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const WORDS = new Set("function if elseif and or not return while until in".split(" "));
const BUILT_IN = new Set("unpack tonumber tostring ipairs pairs select type error assert pcall next".split(" "));

const texts = globSync("{shared,workers,producers}/**/*.ts", { cwd: ROOT }).flatMap((file) => {
  const text = readFileSync(`${ROOT}${file}`, "utf8").replaceAll("\\`", "'");
  return [...text.matchAll(/`([^`]*)`/g)].flatMap(([, lua = ""]) =>
    /\bredis\.call\(|\blocal function\b/.test(lua) ? [{ file, lua: strip(lua) }] : [],
  );
});

function strip(lua: string): string {
  return lua
    .replace(/\$\{[^}]*\}/g, "")
    .replace(/'(?:[^'\\\n]|\\.)*'/g, "''")
    .replace(/--.*$/gm, "");
}

test("every function that a script calls is there", () => {
  const defined = new Set(
    texts.flatMap(({ lua }) => [...lua.matchAll(/\blocal function (\w+)/g)].map(([, name]) => name)),
  );
  const unknown = texts.flatMap(({ file, lua }) =>
    [...lua.matchAll(/(?<![\w.:])([A-Za-z_]\w*)\s*\(/g)].flatMap(([, name = ""]) =>
      WORDS.has(name) || BUILT_IN.has(name) || defined.has(name) ? [] : [`${file}: ${name}`],
    ),
  );
  expect(texts.length).toBeGreaterThan(20);
  expect(unknown).toEqual([]);
});

test("a script carries what it comes to of the shared functions, in their order, and nothing else", () => {
  const texts = [
    "local P = ARGV[1]\n",
    "local seen, count\n",
    "local function key(id) return P..id end\n",
    "local function other() return key('x') end\n",
    "local function use(id)\n  local one = key(id)\n  seen = one\nend\n",
  ];
  const definitions = parseDefinitions(["\n", "-- What follows is other.\n", ...texts].join(""));
  expect(definitions.map(({ text }) => text)).toEqual(texts);
  expect(pick(definitions, "use(ARGV[2])")).toBe([0, 1, 2, 4].map((at) => texts[at]).join(""));
  expect(pick(definitions, "return user")).toBe("");
});
