/** Schemas speak of a job's fields; whoever typed a command line is told of its flags and arguments. */
import type { Argument, Command, Option } from "commander";
import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";

/** A flag or argument of a command, and what was given for it. */
interface Word {
  /** Such as `--ttl-action`, or `SANDBOX` for an argument. */
  shown: string;
  /** Undefined: nothing was, so that what is wrong stands in a file or was left out. */
  value: unknown;
}

/** Fields whose flag is not called what they are. */
const OTHER_NAMES: Readonly<Record<string, readonly string[]>> = {
  ttlSeconds: ["ttl", "extend", "for"],
  seconds: ["duration"],
  priority: ["batch"],
  target: ["to"],
  targetStorage: ["storage"],
  metadata: ["metadata", "removeMetadata"],
  "antiAffinity.group": ["group"],
};

/** What flags leave out of a field's name. */
const UNIT = /(?:Seconds|Sec|Ms|Mib|Gib|Kib|Bytes|Mbps|Id)$/;
const DURATION_MS = { Seconds: 1_000, seconds: 1_000, Sec: 1_000, Ms: 1 } as const;

/** Whose texts name fields; others may quote a guest or PVE. */
const OURS: ReadonlySet<FleetErrorCode> = new Set([
  "invalid_input",
  "not_configured",
  "quota_exceeded",
  "linked_clone_unsupported",
  "redis_unavailable",
]);

/** An error that speaks of fields as one that speaks of flags; `facts.fields` stay, for machines. */
export function toFlagWords<E>(error: E, command: Command | undefined): E | FleetError {
  if (!command || !(error instanceof FleetError) || !OURS.has(error.code)) return error;
  const words = createWords(command);
  const fields = [error.facts["fields"] ?? []].flat().map(String);
  const text = splitAtHeads(error.text, fields)
    .map(({ field, text: problem }) => reword(words, field, problem))
    .join("");
  return new FleetError(error.code, text, { cause: error.cause, facts: error.facts });
}

/** From `a: one; b: two` to what is said of each. */
function splitAtHeads(text: string, fields: readonly string[]): { field?: string; text: string }[] {
  const heads: { field: string; at: number }[] = [];
  let from = 0;
  for (const field of fields) {
    const at = text.indexOf(`${field}: `, from);
    if (at < 0) continue;
    heads.push({ field, at });
    from = at + field.length;
  }
  const parts = heads.map(({ field, at }, index) => ({ field, text: text.slice(at, heads[index + 1]?.at) }));
  return [{ text: text.slice(0, heads[0]?.at) }, ...parts];
}

function reword(words: ReadonlyMap<string, Word>, field: string | undefined, text: string): string {
  if (field === undefined) return replaceFields(words, text);
  const problem = text.slice(field.length);
  const found = find(words, field);
  if (found?.word.value === undefined) return field + replaceFields(words, problem);
  const [, unit] = /(Seconds|seconds|Sec|Ms)$/.exec(field) ?? [];
  const unitMs = DURATION_MS[(unit ?? "") as keyof typeof DURATION_MS]; // one of the pattern's, or none
  const timed = unitMs === undefined ? problem : problem.replace(/\d+/g, (count) => toDuration(Number(count) * unitMs));
  return toPlace(found) + replaceFields(words, timed);
}

/** `--tag`, `--tag no. 2` of several, `--env KEY`, `--service, port`. */
function toPlace({ word: { shown, value }, rest }: Found): string {
  if (!Array.isArray(value)) return [shown, ...rest].join(" ");
  const [index = "", ...within] = rest;
  const place = index === "" || value.length < 2 ? shown : `${shown} no. ${Number(index) + 1}`;
  return [place, ...within].join(", ");
}

/** As ways out name them: `ask for clone: "full"`, `needs network.ip`, `give cores, memoryMib or diskGib`. */
function replaceFields(words: ReadonlyMap<string, Word>, text: string): string {
  const toFlag = (field: string): string => {
    const found = find(words, field);
    return found?.rest.length === 0 ? found.word.shown : field;
  };
  return text
    .replace(/\b([a-z][\w.]*):? "(\w+)"(?: or "(\w+)")?/g, (all, field: string, value: string, other?: string) => {
      const flag = toFlag(field);
      return flag === field ? all : `${flag} ${value}${other === undefined ? "" : ` or ${other}`}`;
    })
    .replace(/(?<=\bgive )\w+(?:(?:, | or )\w+)+/g, (list) => list.replace(/\b(?!or\b)\w+/g, toFlag))
    .replace(/(?<![\w-])[a-z]+(?:[A-Z.]\w+)+/g, toFlag);
}

interface Found {
  word: Word;
  /** What of the field's path is within it. */
  rest: string[];
}

/** The flag that a field's path begins with; groups of fields, such as `network`, have none themselves. */
function find(words: ReadonlyMap<string, Word>, field: string): Found | undefined {
  const path = field.split(".");
  const whole = pick(words, OTHER_NAMES[field] ?? []);
  if (whole) return { word: whole, rest: [] };
  for (const [at, name] of path.entries()) {
    const bare = name.replace(UNIT, "");
    const word = pick(words, [...(OTHER_NAMES[name] ?? []), name, bare, bare.replace(/s$/, "")]);
    if (word) return { word, rest: path.slice(at + 1) };
  }
  return undefined;
}

/** Of several the one that was given. */
function pick(words: ReadonlyMap<string, Word>, names: readonly string[]): Word | undefined {
  const found = names.flatMap((name) => words.get(name) ?? []);
  return found.find(({ value }) => value !== undefined) ?? found[0];
}

function createWords(command: Command): ReadonlyMap<string, Word> {
  const flags = command.options.map((option): [string, Word] => [option.attributeName(), toFlag(command, option)]);
  const args = command.registeredArguments.map((one, at): [string, Word] => [one.name(), toArgument(command, one, at)]);
  const all = [...flags, ...args];
  // An argument and a flag, or a flag and its --no-, may share a name: the last one counts.
  const rank = ({ value, shown }: Word) => (value !== undefined ? 2 : shown.startsWith("--no-") ? 0 : 1);
  return new Map(all.toSorted(([, a], [, b]) => rank(a) - rank(b)));
}

function toFlag(command: Command, option: Option): Word {
  const name = option.attributeName();
  const value: unknown = command.getOptionValue(name);
  const isGiven = command.getOptionValueSource(name) === "cli" && option.negate === (value === false);
  return { shown: option.long ?? option.flags, value: isGiven ? value : undefined };
}

function toArgument({ args }: Command, argument: Argument, at: number): Word {
  const value = argument.variadic ? args.slice(at).join(" ") || undefined : args[at];
  return { shown: argument.name().toUpperCase(), value };
}

const UNITS_MS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1_000 } as const;

/** As a flag takes it. */
function toDuration(ms: number): string {
  const fitting = Object.entries(UNITS_MS).find(([, unitMs]) => ms >= unitMs && ms % unitMs === 0);
  return fitting ? `${ms / fitting[1]}${fitting[0]}` : `${ms}ms`;
}
