import { z } from "zod";
import { NodeName, TeamId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { Command, Env, FilePath, Metadata, Network, resources, StorageName, UserName } from "./fields.ts";
import { TemplateLabel, TemplateNotes, TemplateVersion, template } from "./template.ts";

/** Bytes of all files of a build together, in base64; a command can fetch what is larger. */
export const BUILD_FILES_LIMIT = 4_194_304;

const { onboot: _onboot, ...size } = resources;

export const BuildFile = z.strictObject({
  path: FilePath,
  content: z.base64(),
  /** As chmod has it, such as "0755"; 0644 when absent. */
  mode: z
    .string()
    .regex(/^[0-7]{3,4}$/, "must be three or four octal digits, such as 0644")
    .optional(),
  owner: UserName.optional(),
});

export const BuildInput = z.strictObject({
  name: TemplateLabel,
  version: TemplateVersion.optional(),
  description: TemplateNotes.optional(),
  metadata: Metadata.default({}),
  from: z.union(
    [
      z.strictObject({
        archive: z
          .string()
          .regex(
            /^[a-zA-Z][a-zA-Z0-9_.-]*:vztmpl\/[^\s/]{1,200}$/,
            "must be STORAGE:vztmpl/FILE, as pveam list STORAGE shows it",
          ),
      }),
      z.strictObject({ template: z.union([z.string().min(1).max(100), z.int().min(100)]) }),
    ],
    { error: "must be { archive: STORAGE:vztmpl/FILE } or { template: NAME, TAG, ID or VMID }" },
  ),
  /** How commands get in: execd where the base has it, else over SSH to the node. As its kind of base mostly has it when absent. */
  exec: z.enum(["execd", "ssh"]).optional(),
  node: NodeName.optional(),
  storage: StorageName.optional(),
  ...size,
  network: Network.optional(),
  nesting: z.boolean().optional(),
  /** For commands; not in the template. Sealed, as the files are. */
  env: Env.optional(),
  files: z
    .array(BuildFile)
    .max(256)
    .refine((files) => files.reduce((sum, { content }) => sum + content.length, 0) <= BUILD_FILES_LIMIT, {
      error: `at most ${BUILD_FILES_LIMIT / 1_048_576} MiB together; let a command fetch what is larger`,
    })
    .optional(),
  setup: z.array(Command).max(64).default([]),
  /** Of each command and the test: one that takes longer fails the build. An hour when absent. */
  timeoutSeconds: z.int().min(1).max(7_200).optional(),
  /** Ends with 0 where the template is as it should be. */
  test: Command.optional(),
  /** Of the team's templates with this name and version: they make way for this one. Else they refuse it. */
  replace: z.boolean().default(false),
  /** Older versions than so many of the newest go; all stay when absent. */
  keepVersions: z.int().min(1).max(100).optional(),
  team: TeamId.optional(),
});
export type BuildInput = z.input<typeof BuildInput>;

export const build = defineJob({
  summary: "Build a template from an OS template archive or another template: files, commands, a test",
  input: BuildInput,
  output: template.output,
  queue: "node",
  makesSandbox: true,
  quotas: "provisions",
  attempts: 8,
  timeoutMs: 7_200_000,
  secret: ["env", "files"],
});
