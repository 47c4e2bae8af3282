/** The operations that a command began: waited for, shown while waiting, and canceled when the user leaves. */
import { FleetError } from "../../shared/errors.ts";
import type { Fleet, Handle, JobName, JobOutput } from "../index.ts";
import { Interrupted } from "./exit-codes.ts";
import { startProgress } from "./progress.ts";
import type { Terminal } from "./terminal.ts";
import { watchFleet } from "./watch-fleet.ts";

/** How long a canceled operation may take to undo what it made, before the CLI leaves it to the workers. */
const CANCEL_WAIT_MS = 10_000;

/** `tookMs`: from when it was waited for, which is right after it was accepted. */
export type Outcome<N extends JobName> =
  | { ok: true; value: JobOutput<N>; tookMs: number }
  | { ok: false; error: unknown };

export class Operations {
  readonly #fleet: Fleet;
  readonly #terminal: Terminal;
  readonly #interrupt: AbortSignal;
  readonly #showProgress: boolean;
  #begun = 0;

  constructor(fleet: Fleet, terminal: Terminal, options: { interrupt: AbortSignal; showProgress: boolean }) {
    this.#fleet = fleet;
    this.#terminal = terminal;
    this.#interrupt = options.interrupt;
    this.#showProgress = options.showProgress;
  }

  /** Something was asked for that outlives this process; until then an interrupt may just close the client. */
  get any(): boolean {
    return this.#begun > 0;
  }

  async begin<T>(ask: () => Promise<T>): Promise<T> {
    this.#interrupt.throwIfAborted();
    this.#begun++;
    try {
      return await ask();
    } catch (error) {
      this.#begun--;
      throw error;
    }
  }

  /** The result of one. Throws what it ended with; `Interrupted` once it was canceled because the user left. */
  async result<N extends JobName>(handle: Handle<N>, timeoutMs?: number): Promise<JobOutput<N>> {
    await using _ = this.#progress([handle]);
    return this.quietResult(handle, timeoutMs);
  }

  /** The same, where something else is shown meanwhile. */
  async quietResult<N extends JobName>(handle: Handle<N>, timeoutMs?: number): Promise<JobOutput<N>> {
    const [outcome] = await this.#ends([handle], timeoutMs);
    if (outcome?.ok) return outcome.value;
    throw outcome?.error;
  }

  /** How each ended, in order; one that fails does not stop the others. */
  async results<N extends JobName>(handles: readonly Handle<N>[], timeoutMs?: number): Promise<Outcome<N>[]> {
    await using _ = this.#progress(handles);
    return this.#ends(handles, timeoutMs);
  }

  #progress(handles: readonly Handle<JobName>[]): AsyncDisposable {
    return startProgress(this.#fleet, this.#terminal, this.#showProgress ? handles : []);
  }

  async #ends<N extends JobName>(handles: readonly Handle<N>[], timeoutMs?: number): Promise<Outcome<N>[]> {
    using _ = watchFleet(this.#fleet, this.#terminal);
    const from = performance.now();
    const waiting = handles.map(async (handle): Promise<Outcome<N>> => {
      try {
        const value = await handle.result({ timeoutMs, signal: this.#interrupt });
        return { ok: true, value, tookMs: performance.now() - from };
      } catch (error) {
        return { ok: false, error };
      }
    });
    const outcomes = await Promise.all(waiting);
    const left = handles.filter((_, index) => !outcomes[index]?.ok);
    if (!this.#interrupt.aborted || left.length === 0) return outcomes;
    const error = await this.#cancel(left);
    return outcomes.map((outcome) => (outcome.ok ? outcome : { ok: false, error }));
  }

  async #cancel(handles: readonly Handle<JobName>[]): Promise<Interrupted> {
    const what = handles.length === 1 ? "the operation" : `${handles.length} operations`;
    this.#terminal.err(`fleet: canceling ${what}; Ctrl-C again leaves at once\n`);
    const goesOn = await Promise.all(handles.map((handle) => this.#cancelOne(handle)));
    const ids = handles.filter((_, index) => goesOn[index]).map(({ id }) => id);
    return new Interrupted(
      ids.length > 0 ? `still being undone, see fleet status: ${ids.join(" ")}` : `canceled ${what}`,
    );
  }

  /** Whether it had not ended yet when patience ran out. */
  async #cancelOne(handle: Handle<JobName>): Promise<boolean> {
    try {
      await handle.cancel();
      await handle.result({ timeoutMs: CANCEL_WAIT_MS });
      return false;
    } catch (error) {
      return error instanceof FleetError && error.facts["goesOn"] === true;
    }
  }
}
