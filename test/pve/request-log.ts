import type { LogEntry } from "./views.ts";

/** Every request, and every fault that was set; watchers hear of each as it is finished. */
export class RequestLog {
  readonly entries: LogEntry[] = [];
  readonly listeners = new Set<(entry: LogEntry) => void>();

  add(entry: LogEntry): void {
    this.entries.push(entry);
    for (const listener of [...this.listeners]) listener(entry);
  }

  note(fault: string, at: number): void {
    this.add({ at, method: "", path: "", params: {}, status: 0, reason: "", ms: 0, fault });
  }
}

/** Without the token that a container is to be given. */
export function safeParams(params: Readonly<Record<string, string>>): Record<string, string> {
  const safe: Record<string, string> = {};
  for (const [key, value] of Object.entries(params)) {
    if (key === "password") safe[key] = "...";
    else if (key === "env") safe[key] = value.replace(/=[^\0]*/g, "=...");
    else safe[key] = value.replace(/(auth-token=)[0-9a-f]+/g, "$1...");
  }
  return safe;
}
