/** From the texts of a command line to values; each throws commander's error, which names the option. */
import { InvalidArgumentError } from "commander";
import type { z } from "zod";

const UNIT_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90`, `90s`, `5m`, `1.5h`, `250ms`, `7d`; a bare number is seconds. In ms. */
export function parseDurationMs(text: string): number {
  const [, amount, unit = "s"] = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$/.exec(text) ?? [];
  if (amount === undefined) throw new InvalidArgumentError("Give a duration such as 90, 90s, 5m, 1h or 250ms.");
  return Math.round(Number(amount) * UNIT_MS[unit as keyof typeof UNIT_MS]); // one of the pattern's units
}

export const parseDurationSec = (text: string): number => Math.ceil(parseDurationMs(text) / 1_000);

export function parseNumber(text: string): number {
  if (!/^-?\d+(\.\d+)?$/.test(text)) throw new InvalidArgumentError("Give a number.");
  return Number(text);
}

export function parseCount(text: string): number {
  if (!/^[1-9]\d{0,6}$/.test(text) || Number(text) > 1_000_000)
    throw new InvalidArgumentError("Give a whole number from 1 to 1000000.");
  return Number(text);
}

/** A whole number, or `none` as it is: commander makes an empty text of null. */
export function parseLimit(text: string): number | "none" {
  if (text === "none") return text;
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("Give a whole number, or none.");
  return Number(text);
}

/** A positive number, or `none` as it is. */
export function parseRatio(text: string): number | "none" {
  if (text === "none") return text;
  if (!/^\d{1,3}(\.\d{1,3})?$/.test(text)) throw new InvalidArgumentError("Give a number such as 1.5, or none.");
  return Number(text);
}

/** Collects `KEY=VALUE`, given once for each. */
export function collectPairs(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("Give KEY=VALUE.");
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

/** As `collectPairs`; a bare KEY takes its value from `env`, so that it need not stand in the shell's history. */
export const collectEnv =
  (env: Readonly<Record<string, string | undefined>>) =>
  (text: string, before?: Record<string, string>): Record<string, string> => {
    if (text.includes("=")) return collectPairs(text, before);
    const value = env[text];
    if (value === undefined) throw new InvalidArgumentError(`Give KEY=VALUE; the variable ${text} is not set here.`);
    return { ...before, [text]: value };
  };

/** Collects one of `choices`, given once for each. (Beside a parser commander's own `choices` only show in the help.) */
export const collectChoice =
  <T extends string>(choices: readonly T[]) =>
  (text: string, before: readonly T[] = []): T[] => {
    const choice = choices.find((one) => one === text);
    if (choice === undefined) throw new InvalidArgumentError(`Allowed choices are ${choices.join(", ")}.`);
    return [...before, choice];
  };

export const collect = (text: string, before: readonly string[] = []): string[] => [...before, text];

export interface NamedPort {
  name: string;
  port: number;
}

/** Collects `NAME:PORT` (or `NAME=PORT`), given once for each. */
export function collectServices(text: string, before: readonly NamedPort[] = []): NamedPort[] {
  const [, name, port] = /^([^:=]+)[:=](\d+)$/.exec(text) ?? [];
  if (name === undefined || port === undefined) throw new InvalidArgumentError("Give NAME:PORT, such as web:8080.");
  return [...before, { name, port: Number(port) }];
}

/** A text as a schema has it, whose problem begins with `must`. */
export const parseAs =
  <S extends z.ZodType<unknown, string>>(schema: S) =>
  (text: string): z.output<S> => {
    const parsed = schema.safeParse(text);
    if (parsed.success) return parsed.data;
    throw new InvalidArgumentError(`It ${parsed.error.issues[0]?.message ?? "is not valid"}.`);
  };

/** A template is a VMID where it is a number. */
export const parseTemplate = (text: string): string | number => (/^\d+$/.test(text) ? Number(text) : text);
