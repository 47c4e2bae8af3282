/** The catalog of job kinds. A kind is one file here, one handler in `workers/handlers/`, one line in each index. */
import type { z } from "zod";
import { FleetError } from "../errors.ts";
import { adopt } from "./adopt.ts";
import { build } from "./build.ts";
import { configure } from "./configure.ts";
import { delete_snapshot } from "./delete-snapshot.ts";
import { destroy } from "./destroy.ts";
import { download } from "./download.ts";
import { exec } from "./exec.ts";
import { expose } from "./expose.ts";
import { hide } from "./hide.ts";
import { link } from "./link.ts";
import { migrate } from "./migrate.ts";
import { power } from "./power.ts";
import { parseOrRefuse } from "./problems.ts";
import { findRootOnly, provision } from "./provision.ts";
import { replicate } from "./replicate.ts";
import { restore } from "./restore.ts";
import { shell } from "./shell.ts";
import { snapshot } from "./snapshot.ts";
import { template } from "./template.ts";
import { update } from "./update.ts";
import { upload } from "./upload.ts";

export const jobs = {
  provision,
  exec,
  shell,
  upload,
  download,
  expose,
  hide,
  link,
  snapshot,
  delete_snapshot,
  restore,
  template,
  build,
  replicate,
  adopt,
  power,
  migrate,
  configure,
  update,
  destroy,
} as const;

export type JobName = keyof typeof jobs;
export const JOB_NAMES = Object.keys(jobs) as JobName[]; // Object.keys loses the literal keys

/** What a caller passes, defaults left out. */
export type JobInput<N extends JobName> = z.input<(typeof jobs)[N]["input"]>;
/** What a handler gets, defaults filled in. */
export type ParsedInput<N extends JobName> = z.output<(typeof jobs)[N]["input"]>;
export type JobOutput<N extends JobName> = z.output<(typeof jobs)[N]["output"]>;

/**
 * Checks an input before anything is stored.
 * Throws `invalid_input` that names each field, its problem and the way out; `facts.fields` lists the fields.
 */
export function parseInput<N extends JobName>(kind: N, raw: unknown): ParsedInput<N> {
  if (kind === "provision") {
    const rootOnly = findRootOnly(raw);
    if (rootOnly.length > 0) {
      throw new FleetError(
        "invalid_input",
        `${rootOnly.join(", ")}: PVE lets only root@pam set this, never an API token; set it on the template`,
        { facts: { fields: rootOnly } },
      );
    }
  }
  return parseOrRefuse(kind, jobs[kind].input, raw) as ParsedInput<N>; // the catalog's union loses which schema parsed it
}
