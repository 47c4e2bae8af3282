/** Preloaded into a worker: makes it the next version, in which `exec` and `provision` mean something else. */
import { jobs } from "../../../shared/jobs/index.ts";

Object.assign(jobs.exec, { version: 2 });
Object.assign(jobs.provision, { version: 2 });
