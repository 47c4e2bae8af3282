/**
 * What each job kind takes and gives, as zod schemas and as JSON Schema: `import { jobs, jsonSchemaOf } from "sandbox-fleet/jobs"`.
 * For forms, other languages and validation before anything is sent; the client checks all the same.
 */
import { z } from "zod";
import { type JobName, jobs } from "../shared/jobs/index.ts";

export type { JobSpec } from "../shared/jobs/define-job.ts";
export { JOB_NAMES, type JobInput, type JobName, type JobOutput, jobs, parseInput } from "../shared/jobs/index.ts";

export interface JobJsonSchema {
  /** What a caller passes: fields with a default may be left out. */
  input: Record<string, unknown>;
  output: Record<string, unknown>;
}

/** JSON Schema (draft 2020-12) of one kind. What JSON Schema can't say, such as rules between fields, is left out. */
export function jsonSchemaOf(kind: JobName): JobJsonSchema {
  const { input, output, summary } = jobs[kind];
  return {
    input: { ...toJsonSchema(input, "input"), description: summary },
    output: toJsonSchema(output, "output"),
  };
}

const toJsonSchema = (schema: z.ZodType, io: "input" | "output"): Record<string, unknown> => ({
  ...z.toJSONSchema(schema, { io, unrepresentable: "any" }),
});
