import { invalid } from "../refusal.ts";
import type { Format } from "./formats.ts";

/** One parameter as PVE's API schema describes it. */
export interface Rule {
  type: "string" | "integer" | "number" | "boolean";
  required?: true;
  min?: number;
  max?: number;
  minLength?: number;
  maxLength?: number;
  values?: readonly string[];
  pattern?: RegExp;
  format?: Format;
  /** A "key=value,..." string; the part without a key belongs to `defaultKey`. */
  parts?: Rules;
  defaultKey?: string;
}

/** By name; `net[n]` stands for net0, net1, ... */
export type Rules = Readonly<Record<string, Rule>>;

const MISSING = "property is missing and it is not optional";
const UNKNOWN = "property is not defined in schema and the schema does not allow additional properties";

export function ruleFor(rules: Rules, name: string): Rule | undefined {
  const own = Object.hasOwn(rules, name) ? rules[name] : undefined;
  return own ?? rules[name.replace(/\d+$/, "[n]")];
}

/** Collects what is wrong with the parameters, in PVE's words. */
function faultsOf(params: Readonly<Record<string, string>>, rules: Rules): Record<string, string> {
  const errors: Record<string, string> = {};
  for (const [name, value] of Object.entries(params)) {
    const rule = name.includes("[") ? undefined : ruleFor(rules, name);
    const wrong = rule === undefined ? UNKNOWN : faultOf(value, rule, name);
    if (wrong !== undefined) errors[name] = wrong;
  }
  for (const [name, rule] of Object.entries(rules)) {
    if (rule.required && params[name] === undefined) errors[name] = MISSING;
  }
  return errors;
}

export function verify(params: Readonly<Record<string, string>>, rules: Rules): void {
  const errors = faultsOf(params, rules);
  if (Object.keys(errors).length > 0) throw invalid(errors);
}

const TYPES: Record<Rule["type"], RegExp> = {
  string: /^/,
  integer: /^[+-]?\d+$/,
  number: /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i,
  boolean: /^[01]$/,
};

/** JSON null arrives as undef, which passes every check and ends up as this in the config. */
export const JSON_NULL = " ";

function faultOf(value: string, rule: Rule, name: string): string | undefined {
  if (value === JSON_NULL) return undefined;
  if (!TYPES[rule.type].test(value)) return `type check ('${rule.type}') failed - got '${value}'`;
  const wrong = rule.parts === undefined ? rule.format?.(value) : partsFault(value, rule.parts, name, rule.defaultKey);
  if (wrong !== undefined) return `invalid format - ${wrong}`;
  if (rule.pattern !== undefined && !rule.pattern.test(value)) return "value does not match the regex pattern";
  return lengthFault(value, rule) ?? rangeFault(value, rule);
}

function lengthFault(value: string, rule: Rule): string | undefined {
  if (rule.maxLength !== undefined && value.length > rule.maxLength) {
    return `value may only be ${rule.maxLength} characters long`;
  }
  if (rule.minLength !== undefined && value.length < rule.minLength) {
    return `value must be at least ${rule.minLength} characters long`;
  }
  return undefined;
}

function rangeFault(value: string, rule: Rule): string | undefined {
  if (rule.min !== undefined && Number(value) < rule.min) return `value must have a minimum value of ${rule.min}`;
  if (rule.max !== undefined && Number(value) > rule.max) return `value must have a maximum value of ${rule.max}`;
  if (rule.values !== undefined && !rule.values.includes(value)) {
    return `value '${value}' does not have a value in the enumeration '${rule.values.join(", ")}'`;
  }
  return undefined;
}

function partsFault(text: string, rules: Rules, name: string, defaultKey: string | undefined): string | undefined {
  const found: Record<string, string> = {};
  for (const part of text.split(",")) {
    if (part === "") continue;
    const match = /^([^=]+)=(.*)$/.exec(part);
    const key = match?.[1] ?? defaultKey;
    if (key === undefined) {
      return `value without key, but schema does not define a default key\n`;
    }
    if (found[key] !== undefined) return `duplicate key in comma-separated list property: ${key}\n`;
    found[key] = match?.[2] ?? part;
  }
  const errors = Object.entries(faultsOf(found, rules)).map(([key, wrong]) => `${name}.${key}: ${wrong}\n`);
  return errors.length === 0 ? undefined : `format error\n${errors.join("")}`;
}
