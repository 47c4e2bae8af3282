/** One handler a kind; a kind without one does not compile. */
import type { JobName } from "../../shared/jobs/index.ts";
import { adopt } from "./adopt.ts";
import { build } from "./build.ts";
import { configure } from "./configure.ts";
import { delete_snapshot } from "./delete-snapshot.ts";
import { destroy } from "./destroy.ts";
import { download } from "./download.ts";
import { exec } from "./exec.ts";
import { expose } from "./expose.ts";
import type { Handler } from "./handler.ts";
import { hide } from "./hide.ts";
import { link } from "./link.ts";
import { migrate } from "./migrate.ts";
import { power } from "./power.ts";
import { provision } from "./provision.ts";
import { replicate } from "./replicate.ts";
import { restore } from "./restore.ts";
import { shell } from "./shell.ts";
import { snapshot } from "./snapshot.ts";
import { template } from "./template.ts";
import { update } from "./update.ts";
import { upload } from "./upload.ts";

const handlers = {
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
} satisfies {
  [N in JobName]: Handler<N>;
};

/** The handler of a kind that is only known at run time: its run was made for the same kind. */
export function handlerOf(kind: JobName): Handler<JobName> {
  return handlers[kind] as unknown as Handler<JobName>; // the record carries kind and input together, which types can't see
}
