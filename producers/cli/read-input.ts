import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";

const JsonObject = z.record(z.string(), z.unknown());

/** A JSON object from a file, or from stdin with `-`. Throws `invalid_input`, never with what stands in the file. */
export async function readInput(file: string): Promise<Record<string, unknown>> {
  const refuse = (problem: string, cause?: unknown) =>
    new FleetError("invalid_input", `--input ${file}: ${problem}`, { cause, facts: { fields: ["input"] } });
  const json = await (file === "-" ? text(process.stdin) : readFile(file, "utf8")).catch((cause: unknown) => {
    throw refuse("must be a file that can be read", cause);
  });
  try {
    return JsonObject.parse(JSON.parse(json));
  } catch (cause) {
    throw refuse("must hold one JSON object", cause);
  }
}
