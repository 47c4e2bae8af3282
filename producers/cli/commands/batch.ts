/** Many jobs under one id. */
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { BatchPolicy } from "../../../shared/state/records.ts";
import type { Batch, BatchView, ItemOutcome } from "../../index.ts";
import { BATCH_HEAD, toBatchEnd, toBatchFacts, toBatchRow } from "../batch-texts.ts";
import { EXIT, Interrupted, toExitCode } from "../exit-codes.ts";
import { type Followed, followBatch } from "../follow-batch.ts";
import { checkJobs, lineOf, readJobs } from "../job-lines.ts";
import { note } from "../progress.ts";
import { type Cli, describeError, formatError, type GlobalOptions, type Session } from "../session.ts";
import { formatFacts, formatTable, toPrintable } from "../terminal.ts";
import {
  addWaiting,
  batchIdOption,
  onQuotaOption,
  policyOption,
  type WaitOptions,
  withoutUndefined,
} from "./shared-options.ts";

const HELP = `
FILE holds one job a line: {"kind":"provision","input":{"template":"cmux-base"}}; kinds and inputs are those of the client.
It is read as its jobs are accepted, - is stdin. A bad line fails alone, and every error names its line. The same file with
the same --id goes on where it was left: no line is done twice. With --json each result is a line on stdout, as it ends.

Policies: keep goes on after a failure; stop cancels what has not begun; undo cancels everything and destroys what was made.

Examples:
  fleet batch jobs.jsonl
  fleet batch nightly.jsonl --id nightly-2025-01-31 --policy undo
  generate-jobs | fleet batch - --json > results.jsonl
  fleet batch cancel nightly-2025-01-31 --undo`;

type Options = Omit<WaitOptions, "idempotencyKey"> & { id?: string; policy?: BatchPolicy };

export function addBatch(program: Command, cli: Cli): void {
  const batch = program
    .command("batch")
    .summary("send many jobs, one a line, under one id")
    .description("Send many jobs under one id, wait until all have ended, and say how.")
    .argument("<file>", "JSON lines, or - for stdin")
    .addOption(batchIdOption())
    .addOption(policyOption());
  addWaiting(batch, "only have them accepted; see fleet batch get")
    .addOption(onQuotaOption("wait"))
    .addHelpText("after", HELP)
    .action(async (file: string) => {
      const options = batch.opts<Options>();
      const { json = false } = batch.optsWithGlobals<GlobalOptions>();
      await cli.run({ json }, (session) => send(session, file, options));
    });
  addLs(batch, cli);
  addGet(batch, cli);
  addCancel(batch, cli);
}

async function send(session: Session, file: string, options: Options): Promise<number> {
  const { terminal, json, interrupt } = session;
  await checkJobs(file);
  let id = "";
  // Those that were canceled may be thousands, for one reason: the last line counts them.
  const tell = (outcome: ItemOutcome) => {
    if (json) terminal.out(`${JSON.stringify(toLine(id, outcome))}\n`);
    else if (!outcome.ok && outcome.error.code !== "canceled")
      note(terminal, `fleet: line ${lineOf(outcome.index)}: ${toReason(outcome.error)}`);
  };
  const left = new AbortController(); // whoever stops early leaves an idle stdin behind
  const jobs = readJobs(file, AbortSignal.any([interrupt, left.signal]));
  const onOpen = (batch: Batch) => {
    id = batch.id;
  };
  const followed = await followBatch(session, (how) => session.fleet.batch(jobs, how), { ...options, onOpen }, tell);
  left.abort();
  return conclude(session, { ...followed, ...withoutUndefined({ error: nameLine(followed.error) }) }, options.wait);
}

/** What is about the whole batch may have come up at one of its items. */
function nameLine(error: unknown): unknown {
  const index = error instanceof FleetError ? error.facts["item"] : undefined;
  if (!(error instanceof FleetError) || typeof index !== "number") return error;
  const line = lineOf(index);
  return new FleetError(error.code, `line ${line}: ${error.text}`, { cause: error, facts: { ...error.facts, line } });
}

/** The last words and the exit code. */
export function conclude({ terminal, json, reword, print }: Session, { view, error }: Followed, wait: boolean): number {
  if (error !== undefined) {
    terminal.err(formatError(reword(error), json));
    if (view && view.status !== "ended" && !json && !(error instanceof Interrupted)) {
      const how = view.status === "open" ? "is not whole yet; the same again with" : "goes on, see fleet batch get";
      terminal.err(`fleet: batch ${view.id} ${how} ${view.status === "open" ? `--id ${view.id} goes on` : view.id}\n`);
    }
    return toExitCode(error);
  }
  if (!view) return EXIT.failed;
  if (!wait) print(view, `batch ${view.id}: ${view.counts.total} accepted, see fleet batch get ${view.id}\n`);
  else if (!json) terminal.err(`fleet: ${toBatchEnd(view)}\n`);
  return wait && view.counts.succeeded < view.counts.total ? EXIT.failed : EXIT.ok;
}

function toLine(batch: string, { index, ...outcome }: ItemOutcome) {
  const line = { batch, line: lineOf(index) };
  if (outcome.ok) return { ...line, ...outcome };
  const { code, text, facts } = describeError(outcome.error);
  return { ...line, ...outcome, error: { code, message: text, facts } };
}

const toReason = (error: unknown): string => {
  const { code, text } = describeError(error);
  return `${code}: ${toPrintable(text)}`;
};

function addLs(batch: Command, cli: Cli): void {
  const command = batch
    .command("ls")
    .description("List batches, newest first.")
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const all = await fleet.batches.list();
        const rows = all.map((view) => toBatchRow(view, Date.now()));
        print(all, formatTable(BATCH_HEAD, rows));
        return undefined;
      });
    });
}

function addGet(batch: Command, cli: Cli): void {
  const command = batch
    .command("get")
    .description("Show how far a batch is: its items by status, and why some failed.")
    .argument("<id>", "its id")
    .action(async (id: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const view: BatchView = await (await fleet.batches.get(id)).status();
        print(view, formatFacts(toBatchFacts(view)));
        return undefined;
      });
    });
}

function addCancel(batch: Command, cli: Cli): void {
  const command = batch
    .command("cancel")
    .description("End all items of a batch that have not ended; what they had made is undone.")
    .argument("<id>", "its id")
    .option("--undo", "destroy also what others have made")
    .action(async (id: string) => {
      const { undo = false, json = false } = command.optsWithGlobals<GlobalOptions & { undo?: boolean }>();
      await cli.run({ json }, async ({ fleet, print, interrupt }) => {
        const one = await fleet.batches.get(id);
        await one.cancel({ undo });
        const view = await one.result({ signal: interrupt });
        print(view, `${toBatchEnd(view)}\n`);
        return undefined;
      });
    });
}
