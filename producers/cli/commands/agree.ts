import { createInterface } from "node:readline/promises";
import { FleetError } from "../../../shared/errors.ts";
import type { Session } from "../session.ts";

/** Asks where somebody can answer; else only --yes agrees, and without it `invalid_input` says what for. */
export async function isAgreedTo(
  { terminal, json, interrupt }: Session,
  question: string,
  { yes }: { yes?: boolean },
  without: FleetError = new FleetError("invalid_input", `give --yes to ${question}`.replace(/\?$/, ""), {
    facts: { fields: ["yes"] },
  }),
): Promise<boolean> {
  if (yes === true) return true;
  if (json || !terminal.watched || !process.stdin.isTTY) throw without;
  using ask = createInterface({ input: process.stdin, output: process.stderr });
  const text = question.charAt(0).toUpperCase() + question.slice(1);
  const answer = await ask.question(`${text} [y/N] `, { signal: interrupt }).catch(() => ""); // Ctrl-C
  return /^y(es)?$/i.test(answer.trim());
}
