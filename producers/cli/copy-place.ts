/** From the two words of `fleet cp` to where from and where to: pure. */
import { posix } from "node:path";
import { FleetError } from "../../shared/errors.ts";

export interface Place {
  /** Absent: here. */
  sandbox?: string;
  path: string;
}

/** `SANDBOX:/path`, else a path here; one with a colon in its first name is written `./a:b`. */
export function toPlace(text: string): Place {
  const [, sandbox, path] = /^([^/:]+):(.*)$/s.exec(text) ?? [];
  if (sandbox === undefined || path === undefined) return { path: text };
  if (!path.startsWith("/"))
    throw refuse(`${text}: must be an absolute path after the colon, such as ${sandbox}:/workspace`);
  return { sandbox, path };
}

/** Throws `invalid_input` unless exactly one of them is in a sandbox. */
export function toDirection(from: Place, to: Place): "upload" | "download" {
  if (from.sandbox === undefined && to.sandbox !== undefined) return "upload";
  if (from.sandbox !== undefined && to.sandbox === undefined) return "download";
  throw refuse("one of the two must be SANDBOX:PATH, and the other a path here");
}

/** `into` with a `/` at its end is a folder that takes `from` under its own name. */
export function nameWithin(into: string, from: string): string {
  if (!into.endsWith("/")) return into;
  const name = posix.basename(from);
  if (name === "" || name === "." || name === ".." || from === "-") {
    throw refuse(`${into}: what is copied has no name of its own, so the target needs one`);
  }
  return into + name;
}

const refuse = (text: string) => new FleetError("invalid_input", text, { facts: { fields: ["from", "to"] } });
