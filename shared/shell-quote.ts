/**
 * One word that any POSIX shell reads back as exactly `text`, whatever is in it but NUL: in single quotes nothing is
 * special but the quote (POSIX.1-2024 Shell Command Language, 2.2.2).
 */
export const quoteWord = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
