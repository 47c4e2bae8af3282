/** A bench: one file that exports this, and one line in BENCHES (see main.ts). */
export interface Bench {
  /** One line for the list of benches. */
  summary: string;
  help: string;
  /** Returns the exit code; throws for arguments that it does not know. */
  run(args: string[]): Promise<number>;
}
