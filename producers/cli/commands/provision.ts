import { type Command, Option } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { Batch, BatchOptions, ItemOutcome, JobInput, JobOutput } from "../../index.ts";
import { formatDuration, NONE } from "../describe.ts";
import { EXIT, toExitCode } from "../exit-codes.ts";
import { followBatch } from "../follow-batch.ts";
import {
  collect,
  collectEnv,
  collectPairs,
  collectServices,
  parseCount,
  parseDurationSec,
  parseNumber,
  parseTemplate,
} from "../parse-values.ts";
import { type ProvisionOptions, toProvisionInput } from "../provision-input.ts";
import { readInput } from "../read-input.ts";
import { type Cli, describeError, formatError, type Session } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";
import { conclude } from "./batch.ts";
import {
  addResourceOptions,
  addWaitOptions,
  batchIdOption,
  idleActionOption,
  policyOption,
  toSubmitOptions,
  ttlActionOption,
  type WaitOptions,
} from "./shared-options.ts";

type BatchChoices = Pick<BatchOptions, "id" | "policy">;
type Options = ProvisionOptions & WaitOptions & BatchChoices & { input?: string; count?: number };

const EXAMPLES = `
TEMPLATE is a template's name or tag, its VMID, or a snapshot id snap_...

Examples:
  fleet provision cmux-base
  fleet provision 9000 --cores 2 --memory 4096 --service web:8080 --ttl 2h
  fleet provision cmux-base --count 200 --policy undo --metadata run=42
  fleet provision --input sandbox.json
  fleet provision cmux-base --no-wait --idempotency-key deploy-17`;

export function addProvision(program: Command, cli: Cli): void {
  const command = program
    .command("provision")
    .summary("make a sandbox from a template, start it, wait until it answers")
    .description("Make sandboxes: clone a template, start it, wait until it answers, run setup, expose services.")
    .argument("[template]", "what to clone", parseTemplate)
    .option("--template <template>", "the same as an option", parseTemplate)
    .option("--count <n>", "how many, as one batch: see fleet batch; what a quota has no room for waits", parseCount)
    .addOption(batchIdOption())
    .addOption(policyOption())
    .option("--input <file>", "everything as JSON from a file, or from stdin with -; options go over it");
  addPlacementOptions(command);
  addResourceOptions(command);
  addNetworkOptions(command);
  addContentOptions(command, cli);
  addWaitOptions(command)
    .addHelpText("after", EXAMPLES)
    .action(async (template: string | number | undefined) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, (session) => provision(session, template, options));
    });
}

/** Where it may stand; `--clone` to `--anti-affinity`. */
export function addPlacementOptions(command: Command): void {
  command
    .addOption(new Option("--clone <kind>", "how to clone").choices(["linked", "full", "linked_or_full"]))
    .option("--source-snapshot <name>", "clone from this PVE snapshot of the source")
    .option("--node <node>", "on this node")
    .option(
      "--node-label <label>",
      "on a node with this label (fleet node set); repeatable, all must be there",
      collect,
    )
    .addOption(
      new Option(
        "--anti-affinity [mode]",
        "apart from the others of its batch or --group: as far as possible, or always",
      )
        .choices(["prefer", "require"])
        .preset("prefer"),
    )
    .option("--group <name>", "whom --anti-affinity keeps it apart from, where it is of no batch")
    .option("--storage <storage>", "to this storage; full clones only")
    .option("--pool <pool>", "into this PVE pool")
    .option("--bwlimit <kib>", "I/O limit of a full clone in KiB/s", parseNumber)
    .option("--batch", "behind interactive work");
}

function addNetworkOptions(command: Command): void {
  command
    .option("--bridge <bridge>", "network bridge")
    .option("--ip <ip>", "dhcp, lease, manual, or an address with prefix length")
    .option("--ip6 <ip>", "dhcp, auto, manual, or an address with prefix length")
    .option("--gateway <ip>", "IPv4 gateway of a fixed address")
    .option("--gateway6 <ip>", "IPv6 gateway of a fixed address")
    .option("--hwaddr <mac>", "MAC address")
    .option("--vlan <tag>", "VLAN tag", parseNumber)
    .option("--rate <mb/s>", "network rate limit in MB/s", parseNumber)
    .option("--mtu <bytes>", "MTU", parseNumber)
    .addOption(new Option("--firewall", "PVE's firewall on its interface (default)"))
    .addOption(new Option("--no-firewall", "no firewall on its interface"));
}

function addContentOptions(command: Command, { env }: Cli): void {
  command
    .option(
      "--instance-id <name>",
      "name to find it by, and its host name; the same name and input is the same sandbox",
    )
    .option("--hostname <pattern>", "host name; may hold {vmid} and {id}")
    .option("--nesting", "allow containers inside")
    .option("--description <text>", "notes in PVE")
    .option("--tag <tag>", "PVE tag; repeatable", collect)
    .option("--metadata <key=value>", "metadata to list by; repeatable", collectPairs)
    .option("-e, --env <key[=value]>", "variable for setup and every exec, sealed; repeatable", collectEnv(env))
    .option("--setup <command>", "run once before it is handed out; repeatable", collect)
    .option("--service <name:port>", "expose a port under a name; repeatable", collectServices)
    .option("--ttl <duration>", "destroy this long after it runs", parseDurationSec)
    .addOption(ttlActionOption())
    .option("--ttl-extend-on-use", "count --ttl from the last request, command, transfer or start")
    .option("--idle <duration>", "pause it after so long without requests, commands and transfers", parseDurationSec)
    .option("--no-idle", "it may be idle for ever")
    .addOption(idleActionOption())
    .option("--wake-on-http", "requests to its services wake it when it is paused or stopped");
}

async function provision(session: Session, template: string | number | undefined, options: Options): Promise<number> {
  const base = options.input === undefined ? {} : await readInput(options.input);
  // Checked by the client, field by field, before anything is stored.
  if (template !== undefined && options.template !== undefined) throw refuse("give TEMPLATE or --template, not both");
  const input = toProvisionInput(base, template ?? options.template, options) as JobInput<"provision">;
  if (input.template === undefined) {
    throw refuse("give TEMPLATE, --template or --input");
  }
  if (options.count === undefined) refuseBatchChoices(options);
  return options.count === undefined
    ? provisionOne(session, input, options)
    : provisionMany(session, options.count, options, (how, count) => session.fleet.batch({ ...input, count }, how));
}

const refuse = (wayOut: string): FleetError =>
  new FleetError("invalid_input", `template: ${wayOut}`, { facts: { fields: ["template"] } });

/** Of one, what was meant can only be guessed. */
function refuseBatchChoices({ id, policy }: BatchChoices): void {
  const [field] = Object.entries({ id, policy }).find(([, value]) => value !== undefined) ?? [];
  if (field === undefined) return;
  const wayOut = field === "id" ? "; for one there is --idempotency-key" : "";
  throw new FleetError("invalid_input", `${field}: is about a batch, so it needs --count${wayOut}`, {
    facts: { fields: [field] },
  });
}

/** What is known of one that was only accepted. */
interface Accepted {
  operationId: string;
  sandboxId: string;
}

async function provisionOne(session: Session, input: JobInput<"provision">, options: Options): Promise<number> {
  const { fleet, operations, print } = session;
  const handle = await operations.begin(() => fleet.provision(input, toSubmitOptions(options)));
  const from = performance.now();
  if (options.wait) {
    const value = await operations.result(handle, options.waitTimeout);
    print(value, toTable([{ value, tookMs: performance.now() - from }]));
  } else {
    const value: Accepted = { operationId: handle.id, sandboxId: handle.sandboxId };
    print(value, formatTable(["SANDBOX", "OPERATION"], [[value.sandboxId, value.operationId]]));
  }
  return EXIT.ok;
}

/** As a batch; its failures are grouped, since twenty that fail alike need be said once. */
export async function provisionMany(
  session: Session,
  count: number,
  options: WaitOptions & BatchChoices,
  begin: (how: BatchOptions, count: number) => Promise<Batch>,
): Promise<number> {
  const { terminal, json, reword, print } = session;
  const outcomes: ItemOutcome[] = [];
  const from = performance.now();
  const made: Made[] = [];
  const failures = new Map<string, { error: FleetError; count: number }>();
  const followed = await followBatch(
    session,
    (how) => begin(how, count),
    options,
    (ended) => {
      const outcome = ended.ok ? ended : { ...ended, error: reword(ended.error) };
      outcomes.push(outcome);
      if (outcome.ok) {
        const value = outcome.result as JobOutput<"provision">; // a batch of nothing else
        made.push({ value, tookMs: performance.now() - from });
      } else if (json || outcome.error.code !== "canceled") {
        const known = failures.get(outcome.error.code);
        failures.set(outcome.error.code, { error: known?.error ?? outcome.error, count: (known?.count ?? 0) + 1 });
      }
    },
  );
  outcomes.sort((a, b) => a.index - b.index);
  if (options.wait && outcomes.length > 0) print(outcomes.map(toValue), made.length > 0 ? toTable(made) : "");
  for (const { error, count: failed } of failures.values()) {
    if (json) terminal.err(formatError(error, true));
    else terminal.err(`fleet: ${failed} of ${count}: ${error.code}: ${toPrintable(error.text)}\n`);
  }
  const code = conclude(session, followed, options.wait);
  const [first] = failures.values();
  return code === EXIT.failed && first ? toExitCode(first.error) : code;
}

interface Made {
  value: JobOutput<"provision">;
  tookMs: number;
}

/** For the list that --count prints; a failed one is `{ error }`. */
function toValue(outcome: ItemOutcome): unknown {
  if (outcome.ok) return outcome.result;
  const { code, text, facts } = describeError(outcome.error);
  return { error: { code, message: text, facts } };
}

function toTable(made: readonly Made[]): string {
  const head = ["SANDBOX", "NODE", "VMID", "HOSTNAME", "ADDRESS", "TOOK", "SERVICES"];
  return formatTable(head, made.map(toRow));
}

function toRow({ value, tookMs }: Made): string[] {
  return [
    value.sandboxId,
    value.node,
    String(value.vmid),
    value.hostname,
    value.address,
    formatDuration(tookMs),
    value.services.map(({ name, url }) => `${name}=${url}`).join(" ") || NONE,
  ];
}
