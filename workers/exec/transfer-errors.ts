/** What a script of a transfer failed with → error: pure. */
import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import { tooLarge } from "../../shared/state/contents.ts";
import { EXITS } from "./file-scripts.ts";
import { NO_SPACE } from "./send-files.ts";

const OWN: Record<number, readonly [FleetErrorCode, string]> = {
  [EXITS.notFound]: ["file_not_found", "there is no such file or folder"],
  [EXITS.folder]: ["is_a_directory", "it is a folder, and a folder is transferred as a tar"],
  [EXITS.noFolder]: ["not_a_directory", "it is no folder"],
  [EXITS.special]: ["not_a_file", "it is neither a file nor a folder"],
  [EXITS.altered]: ["transfer_interrupted", "what arrived is not what was sent"],
  [EXITS.noTar]: ["invalid_input", "the content is no tar"],
};

/** What tools say, in the C locale (strerror(3), chown); their whole texts quote names and go no further. */
const TOLD: readonly (readonly [RegExp, FleetErrorCode])[] = [
  [NO_SPACE, "disk_full"],
  [/Not a directory|File exists/, "not_a_directory"],
  [/invalid (user|group|spec)/, "invalid_input"],
  [/Permission denied|Operation not permitted|Read-only file system|File name too long/, "file_refused"],
  [/Too many levels of symbolic links|Text file busy|command not found/, "file_refused"],
];

/** As shells tell of a command that a signal ended; 124 is its time-out. */
const KILLED = 123;

export function toTransferError(
  { exitCode, stderr }: { exitCode: number; stderr: string },
  path: string,
  size?: number,
): FleetError {
  const facts = { path };
  if (exitCode === EXITS.tooLarge) return tooLarge(size).with(facts);
  const [code, text] = OWN[exitCode] ?? [];
  if (code !== undefined) return new FleetError(code, `${path}: ${text}`, { facts });
  for (const [pattern, told] of TOLD) {
    const reason = pattern.exec(stderr)?.[0];
    if (reason !== undefined) return new FleetError(told, `${path}: ${reason}`, { facts: { ...facts, reason } });
  }
  const failed = { facts: { ...facts, exitCode } };
  if (exitCode > KILLED) return new FleetError("transfer_interrupted", "it was ended inside the sandbox", failed);
  return new FleetError("file_refused", `${path}: it could not be transferred (${exitCode})`, failed);
}
