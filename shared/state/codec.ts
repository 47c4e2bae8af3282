/**
 * How a record lies in a Redis hash: one field a property, text as it is, everything else as JSON.
 * Parsed with zod where it is read, since Redis is a door like any other.
 */
import { z } from "zod";
import { FleetError } from "../errors.ts";

type Hash = Readonly<Record<string, string>>;
export type Fields<T> = { [K in keyof T]?: T[K] | null | undefined };

/** Properties as hash fields; `null` means: delete the field; `undefined`: leave it. */
export function encodeFields(values: Readonly<Record<string, unknown>>): { set: string[]; unset: string[] } {
  const set: string[] = [];
  const unset: string[] = [];
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    if (value === null) unset.push(name);
    else set.push(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  return { set, unset };
}

/** A hash as a record. Throws `internal` that names the record and the field when it does not fit. */
export function decodeHash<S extends z.ZodObject>(schema: S, hash: Hash, what: string): z.output<S> {
  const raw: Record<string, unknown> = {};
  for (const [name, isPlain] of plainFieldsOf(schema)) {
    const text = hash[name];
    if (text !== undefined) raw[name] = isPlain ? text : fromJson(text);
  }
  const parsed = schema.safeParse(raw);
  if (parsed.success) return parsed.data;
  throw unreadable(what, parsed.error);
}

function unreadable(what: string, { issues }: z.ZodError): FleetError {
  const fields = issues.flatMap(({ path }) => path.map(String).join(".") || []);
  const which = fields.length === 0 ? "" : `: ${fields.join(", ")}`;
  return new FleetError("internal", `${what} in Redis is damaged, or of a newer version${which}`, {
    facts: { fields },
  });
}

/** A record that is kept as one text of JSON. Throws as `decodeHash`, where parsing throws what says nothing of the record. */
export function decodeText<S extends z.ZodObject>(schema: S, text: string, what: string): z.output<S> {
  const parsed = schema.safeParse(fromJson(text));
  if (parsed.success) return parsed.data;
  throw unreadable(what, parsed.error);
}

/** Hears of a record that can't be read and is left out. What it throws ends the reading of all. */
export type PassOver = (error: FleetError) => unknown;

/** Those that can be read. */
export function readable<T, R>(records: readonly T[], read: (record: T) => R, passOver: PassOver): R[] {
  return records.flatMap((record) => {
    try {
      return [read(record)];
    } catch (error) {
      if (!(error instanceof FleetError)) throw error;
      passOver(error);
      return [];
    }
  });
}

const Texts = z.array(z.string());

/** Array of a hash reply (`HGETALL` from Lua) as an object. */
export function toHash(flat: unknown): Hash {
  const parts = Texts.parse(flat);
  const hash: Record<string, string> = {};
  for (let at = 0; at + 1 < parts.length; at += 2) hash[parts[at] ?? ""] = parts[at + 1] ?? "";
  return hash;
}

function fromJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const known = new WeakMap<z.ZodObject, [name: string, isPlain: boolean][]>();

/** Its fields, each with whether it is stored as it is. */
function plainFieldsOf(schema: z.ZodObject): [name: string, isPlain: boolean][] {
  const fields = known.get(schema) ?? Object.entries(schema.shape).map(([name, type]) => [name, isText(type)]);
  known.set(schema, fields);
  return fields;
}

/** Whether a field is stored as it is: strings, enums and literals, also when optional or branded. */
function isText(type: unknown): boolean {
  if (type instanceof z.ZodOptional || type instanceof z.ZodNullable || type instanceof z.ZodDefault)
    return isText(type.unwrap());
  return type instanceof z.ZodString || type instanceof z.ZodEnum || type instanceof z.ZodLiteral;
}
