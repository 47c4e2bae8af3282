/** How the CLI's help reads: pure. */
import { type Command, Help, type Option } from "commander";

const help = new Help();

/** One line of a list of commands: what each says first of itself. */
export const toSummary = (command: Command): string =>
  command.summary() ||
  command
    .description()
    .replace(/([.;:] .*|\.)$/s, "")
    .replace(/^\w/, (letter) => letter.toLowerCase());

/** What many commands take, which nobody looks for first. */
const COMMON = ["wait", "waitTimeout", "idempotencyKey", "onQuota", "help"];

/** A command's own options, and then those. */
export function sortOptions(command: Command): Option[] {
  const rank = (option: Option) => COMMON.indexOf(option.attributeName());
  return help.visibleOptions(command).toSorted((a, b) => rank(a) - rank(b));
}

/** Paragraphs as wide as the terminal; what is indented stays as it is. */
export function wrapParagraphs(text: string, columns: number): string {
  const isText = (line: string | undefined) => line !== undefined && /^\S/.test(line);
  const lines: string[] = [];
  for (const line of text.split("\n")) {
    if (isText(line) && isText(lines.at(-1))) lines.push(`${lines.pop()} ${line}`);
    else lines.push(line);
  }
  return lines.map((line) => (isText(line) ? help.boxWrap(line, columns) : line)).join("\n");
}
