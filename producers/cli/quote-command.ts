import { quoteWord } from "../../shared/shell-quote.ts";

/**
 * A command's arguments as one shell text. One argument is shell text already, as with `ssh` or `bash -c`;
 * several are words that the shell must not take apart (POSIX.1-2024 Shell Command Language, 2.2.2).
 */
export function quoteCommand(words: readonly string[]): string {
  const [only = "", ...rest] = words;
  return rest.length === 0 ? only : words.map(quoteWord).join(" ");
}
