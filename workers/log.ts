import { type Logger, pino } from "pino";

/** JSON lines with ids. What could be secret is never passed in; should it be, it is taken out here. */
export function createLogger(level: string): Logger {
  return pino({
    level,
    base: { pid: process.pid },
    redact: {
      paths: [
        "token",
        "env",
        "command",
        "stdin",
        "input",
        "*.token",
        "*.env",
        "*.command",
        "*.stdin",
        "*.input",
        "err.config",
        "err.request",
        "err.options",
      ],
      censor: "[redacted]",
    },
  });
}
