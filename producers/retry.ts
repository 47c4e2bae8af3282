/** An operation that failed, asked for again: a new one with its input. */
import { FleetError } from "../shared/errors.ts";
import { type Accepted, hashInput } from "../shared/state/accept.ts";
import type { OperationRecord } from "../shared/state/records.ts";
import type { Parts } from "./parts.ts";
import { loadOperation } from "./status.ts";
import { submit } from "./submit.ts";

/** Why it can't be asked for again; null when it can. Pure. */
export function whyNotAgain({ kind, status, input, inputHash }: OperationRecord): string | null {
  if (status !== "failed") return `it is ${status}; only what failed is asked for again`;
  if (kind === "shell") return "a shell needs whoever types into it; open another";
  // What was sealed is in the hash, under a key, and is not in the record.
  const whole = inputHash === "" || hashInput(kind, input, undefined, []).includes(inputHash);
  return whole ? null : "what was secret in its input (env, stdin, content) went with its end; ask anew, with that";
}

/** One new operation for each that failed, however often it is asked for. Throws `not_retriable`, and as `submit`. */
export async function retry(parts: Parts, id: string): Promise<Accepted & Pick<OperationRecord, "kind">> {
  const record = await loadOperation(parts, id);
  const { kind, team } = record;
  const why = whyNotAgain(record);
  if (why !== null)
    throw new FleetError("not_retriable", `operation ${id}: ${why}`, { facts: { operation: id, kind } });
  // For whom it was asked the first time, whoever asks now.
  const accepted = await submit({ ...parts, team }, kind, record.input, { idempotencyKey: `retry ${id}` });
  return { ...accepted, kind };
}
