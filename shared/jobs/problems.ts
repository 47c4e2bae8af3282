/** What is wrong with an input, in words for people: pure. */
import type { z } from "zod";
import { FleetError } from "../errors.ts";

export interface Problem {
  /** Path of the field, such as `network.ip`; `kind` itself where it is about the whole. */
  field: string;
  /** The field, its problem, and what would be right. */
  text: string;
}

/** The problems that zod has found, each with its field. An unknown field is named as one. */
export function toProblems(kind: string, error: z.ZodError): Problem[] {
  return error.issues.flatMap((issue) => {
    const at = issue.path.map(String);
    if (issue.code === "unrecognized_keys") {
      return issue.keys.map((key) => problem([...at, key].join("."), `${kind} has no such field`));
    }
    return [problem(at.join(".") || kind, issue.message)];
  });
}

/** What a schema makes of an input. Throws `invalid_input` that names each field and its problem; `facts.fields` lists them. */
export function parseOrRefuse<S extends z.ZodType>(kind: string, schema: S, raw: unknown): z.output<S> {
  const parsed = schema.safeParse(raw, { error: sayIssue });
  if (parsed.success) return parsed.data;
  throw toRefusal(kind, parsed.error);
}

export function toRefusal(kind: string, error: z.ZodError): FleetError {
  const problems = toProblems(kind, error);
  return new FleetError("invalid_input", problems.map(({ text }) => text).join("; "), {
    facts: { fields: problems.map(({ field }) => field) },
  });
}

const problem = (field: string, what: string): Problem => ({ field, text: `${field}: ${what}` });

const UNITS: Record<string, string> = { string: " characters", array: " entries" };

/** zod's own findings, for `safeParse`; what a schema says itself comes first. Undefined: zod's text will do. */
export function sayIssue(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case "invalid_type":
      return issue.input === undefined
        ? `is missing; must be ${withArticle(issue.expected)}`
        : `must be ${withArticle(issue.expected)}`;
    case "invalid_value":
      return `must be ${issue.values.length === 1 ? "" : "one of "}${issue.values.map(String).join(", ")}`;
    case "too_small":
      if (UNITS[issue.origin] !== undefined && issue.minimum === 1) return "must not be empty";
      return `must ${limit(issue, issue.inclusive === false ? "more than" : "at least", issue.minimum)}`;
    case "too_big":
      return `must ${limit(issue, issue.inclusive === false ? "less than" : "at most", issue.maximum)}`;
    case "invalid_key":
      return issue.issues[0]?.message;
    default:
      return undefined;
  }
}

const limit = ({ origin }: { origin: string }, bound: string, value: unknown): string =>
  `${UNITS[origin] === undefined ? "be" : "have"} ${bound} ${String(value)}${UNITS[origin] ?? ""}`;

function withArticle(expected: string): string {
  if (expected === "int") return "a whole number";
  if (expected === "boolean") return "true or false";
  return `${/^[aeiou]/.test(expected) ? "an" : "a"} ${expected}`;
}
