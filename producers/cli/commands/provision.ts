import { type Command, Option } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { JobInput, JobOutput } from "../../index.ts";
import { assertRepeatable } from "../../index.ts";
import { formatDuration, NONE } from "../describe.ts";
import { EXIT, toExitCode } from "../exit-codes.ts";
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
import { formatTable } from "../terminal.ts";
import { addResourceOptions, addWaitOptions, ttlActionOption, type WaitOptions } from "./shared-options.ts";

type Options = ProvisionOptions & WaitOptions & { input?: string; count?: number };

const EXAMPLES = `
TEMPLATE is a template's name or tag, its VMID, or a snapshot id snap_...

Examples:
  fleet provision cmux-base
  fleet provision 9000 --cores 2 --memory 4096 --service web:8080 --ttl 2h
  fleet provision cmux-base --count 20 --batch --metadata run=42
  fleet provision --input sandbox.json
  fleet provision cmux-base --no-wait --idempotency-key deploy-17`;

export function addProvision(program: Command, cli: Cli): void {
  const command = program
    .command("provision")
    .summary("make a sandbox from a template, start it, wait until it answers")
    .description("Make sandboxes: clone a template, start it, wait until it answers, run setup, expose services.")
    .argument("[template]", "what to clone", parseTemplate)
    .option("--template <template>", "the same as an option", parseTemplate)
    .option("--count <n>", "how many", parseCount)
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

function addPlacementOptions(command: Command): void {
  command
    .addOption(new Option("--clone <kind>", "how to clone").choices(["linked", "full", "linked_or_full"]))
    .option("--source-snapshot <name>", "clone from this PVE snapshot of the source")
    .option("--node <node>", "on this node")
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
    .option("--wake-on-http", "requests to its services wake it when it is paused or stopped");
}

async function provision(session: Session, template: string | number | undefined, options: Options): Promise<number> {
  const base = options.input === undefined ? {} : await readInput(options.input);
  // Checked by the client, field by field, before anything is stored.
  const input = toProvisionInput(base, template ?? options.template, options) as JobInput<"provision">;
  if (input.template === undefined) {
    throw new FleetError("invalid_input", "template: give TEMPLATE, --template or --input", {
      facts: { fields: ["template"] },
    });
  }
  const count = options.count ?? 1;
  assertRepeatable(input, count);
  const outcomes = await provisionMany(session, input, { ...options, count });
  const made = outcomes.filter((one) => one.ok);
  const errors = outcomes.flatMap((one) => (one.ok ? [] : [one.error]));
  if (options.count !== undefined) session.print(outcomes.map(toValue), toTable(made));
  else if (made.length > 0) session.print(made[0]?.value, toTable(made));
  // Twenty that fail alike say it once.
  for (const line of new Set(errors.map((error) => formatError(error, session.json)))) session.terminal.err(line);
  return errors.length === 0 ? EXIT.ok : toExitCode(errors[0]);
}

/** What is known of one that was only accepted. */
interface Accepted {
  operationId: string;
  sandboxId: string;
}
type Made = { ok: true; value: Accepted | JobOutput<"provision">; tookMs?: number };
type Provisioned = Made | { ok: false; error: unknown };

/** How each went, in order. */
async function provisionMany(
  { fleet, operations }: Session,
  input: JobInput<"provision">,
  { count, wait, waitTimeout, idempotencyKey: key, onQuota }: WaitOptions & { count: number },
): Promise<Provisioned[]> {
  const begun = await Promise.allSettled(
    Array.from({ length: count }, (_, index) => {
      const idempotencyKey = key === undefined || count === 1 ? key : `${key}/${index + 1}`;
      return operations.begin(() => fleet.provision(input, { idempotencyKey, onQuota }));
    }),
  );
  const handles = begun.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const ended: Provisioned[] = wait
    ? await operations.results(handles, waitTimeout)
    : handles.map(({ id, sandboxId }) => ({ ok: true, value: { operationId: id, sandboxId } }));
  const next = ended.values();
  return begun.map((one) => {
    if (one.status === "rejected") return { ok: false, error: one.reason };
    return next.next().value ?? { ok: false, error: new FleetError("internal", "it left no outcome") };
  });
}

/** For the list that --count prints; a failed one is `{ error }`. */
function toValue(outcome: Provisioned): unknown {
  if (outcome.ok) return outcome.value;
  const { code, text, facts } = describeError(outcome.error);
  return { error: { code, message: text, facts } };
}

function toTable(made: readonly Made[]): string {
  const [first] = made;
  if (!first) return "";
  if (!("node" in first.value)) {
    const accepted = made.map(({ value }) => [value.sandboxId, value.operationId]);
    return formatTable(["SANDBOX", "OPERATION"], accepted);
  }
  const rows = made.flatMap(({ value, tookMs }) => ("node" in value ? [toRow(value, tookMs)] : []));
  return formatTable(["SANDBOX", "NODE", "VMID", "HOSTNAME", "ADDRESS", "TOOK", "SERVICES"], rows);
}

function toRow(value: JobOutput<"provision">, tookMs: number | undefined): string[] {
  return [
    value.sandboxId,
    value.node,
    String(value.vmid),
    value.hostname,
    value.address,
    tookMs === undefined ? NONE : formatDuration(tookMs),
    value.services.map(({ name, url }) => `${name}=${url}`).join(" ") || NONE,
  ];
}
