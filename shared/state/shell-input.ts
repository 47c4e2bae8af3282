/**
 * What is typed into a shell, on its way to the worker that has it: numbered entries of a stream, sealed like other input,
 * together with the terminal's size and signs of life. It goes with the operation's end, and soon after the last sign.
 */
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import type { Ask } from "./contents.ts";
import type { Keys } from "./keys.ts";
import { openBytes, sealBytes, sealingKey } from "./secrets.ts";
import { ADD_INPUT } from "./stream-scripts.ts";

/** Of an entry before it is sealed. */
export const INPUT_ENTRY_BYTES = 32_768;

export type ShellInput =
  | { kind: "bytes"; bytes: Buffer }
  | { kind: "size"; cols: number; rows: number }
  | { kind: "alive" }
  | { kind: "close" };

/** `full`: so much waits that the worker must be gone; `superseded`: somebody else types there since. */
export type InputOutcome = "ok" | "ended" | "full" | "superseded";

export interface ShellInputs {
  /** Throws `not_configured` without a key to seal with. */
  assertKey(): void;
  /** `id` is `<when its writer began>-<number>`: the same entry again is stored once. */
  add(operation: string, id: string, input: ShellInput, ask: Ask): Promise<InputOutcome>;
  /** What came after an entry (`0-0` is before all), in order; what came before it goes. */
  read(redis: RedisConnection, operation: string, after: string): Promise<{ id: string; input: ShellInput }[]>;
}

const AT_ONCE = 128;

export function createShellInputs(keys: Keys, keyring: readonly Buffer[] | undefined): ShellInputs {
  /** So that no entry can stand in another's place. */
  const nameOf = (operation: string, id: string) => `${operation}/${id}`;
  const encode = (operation: string, id: string, input: ShellInput): string | Buffer => {
    if (input.kind === "bytes") return sealBytes(sealingKey(keyring), nameOf(operation, id), input.bytes);
    return input.kind === "size" ? `${input.cols} ${input.rows}` : "";
  };
  const decode = (operation: string, id: string, kind: string, data: Buffer): ShellInput => {
    switch (kind) {
      case "bytes":
        return { kind, bytes: openBytes(keyring ?? [], nameOf(operation, id), data) };
      case "size": {
        const [cols = 80, rows = 24] = data.toString().split(" ").map(Number);
        return { kind, cols, rows };
      }
      case "close":
        return { kind };
      default:
        return { kind: "alive" };
    }
  };
  return {
    assertKey: () => void sealingKey(keyring),
    async add(operation, id, input, ask) {
      const args = [keys.prefix, operation, id, input.kind, encode(operation, id, input)];
      return (await ask((redis) => runScript(redis, ADD_INPUT, [keys.open], args))) as InputOutcome; // see there
    },
    async read(redis, operation, after) {
      const key = keys.shellInput(operation);
      if (after !== "0-0") await redis.xtrim(key, "MINID", after);
      const entries = await redis.xrangeBuffer(key, `(${after}`, "+", "COUNT", AT_ONCE);
      return entries.map(([id, fields]) => {
        const [, kind = "", , data = Buffer.alloc(0)] = fields;
        return { id: id.toString(), input: decode(operation, id.toString(), kind.toString(), data) };
      });
    },
  };
}
