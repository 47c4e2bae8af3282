import type { JobName, JobOutput } from "../../shared/jobs/index.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Run } from "../run/run.ts";

/** What a handler ends with: the result, and changes that become true in the same atomic step. */
export interface Ending<N extends JobName> {
  result: JobOutput<N>;
  write?: Write;
}

/** What undoing did: facts for the error, and the last changes. */
export interface Undone {
  /** Names of what is gone, e.g. `["container"]`. */
  undone: string[];
  write?: Write;
}

/** The steps of one job kind. Every step looks, then acts, then records, so that any run can go on where another died. */
export interface Handler<N extends JobName> {
  run(run: Run<N>): Promise<Ending<N>>;
  /** Takes back what runs of this operation made; may be called again after it failed itself. */
  undo?(run: Run<N>): Promise<Undone>;
}

/** Thrown to go on as another job in another queue. */
export class Reroute extends Error {
  override readonly name = "Reroute";
  readonly queue: string;
  readonly write: Write;

  constructor(queue: string, write: Write = {}) {
    super(`goes on in ${queue}`);
    this.queue = queue;
    this.write = write;
  }
}
