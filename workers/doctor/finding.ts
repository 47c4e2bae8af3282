/** What the doctor says: one line each, with the way out where something is wrong. */
import { toFleetError } from "../../shared/errors.ts";
import { orAbort } from "../or-abort.ts";

export type Level = "ok" | "warning" | "problem";

export interface Finding {
  /** What was looked at, e.g. `redis.persistence`. */
  check: string;
  level: Level;
  text: string;
  /** What an operator can do about it. */
  wayOut?: string;
}

export const ok = (check: string, text: string): Finding => ({ check, level: "ok", text });
export const warning = (check: string, text: string, wayOut: string): Finding => ({
  check,
  level: "warning",
  text,
  wayOut,
});
export const problem = (check: string, text: string, wayOut?: string): Finding => ({
  check,
  level: "problem",
  text,
  ...(wayOut === undefined ? {} : { wayOut }),
});

/** What looks at one thing within a deadline of its own; what it throws, or running out of time, is its finding. */
export async function examine(
  check: string,
  deadlineMs: number,
  look: (signal: AbortSignal) => Promise<readonly Finding[]>,
): Promise<readonly Finding[]> {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new Error("late")), deadlineMs);
  try {
    return await orAbort(look(controller.signal), controller.signal);
  } catch (error) {
    if (controller.signal.aborted)
      return [
        problem(
          check,
          `no answer within ${deadlineMs / 1_000} s`,
          "A firewall on the way, or a busy node: ask it from here by hand",
        ),
      ];
    return [problem(check, toFleetError(error).text)];
  } finally {
    clearTimeout(timer);
  }
}

/** For people: a line a finding, and its way out below. */
export function toLines(findings: readonly Finding[]): string {
  const lines = findings.flatMap(({ level, check, text, wayOut }) => [
    `${level.padEnd(8)} ${check}: ${text}`,
    ...(wayOut === undefined ? [] : [`${" ".repeat(9)}→ ${wayOut}`]),
  ]);
  const count = (level: Level) => findings.filter((one) => one.level === level).length;
  lines.push(`${count("ok")} ok, ${count("warning")} warnings, ${count("problem")} problems`);
  return `${lines.join("\n")}\n`;
}
