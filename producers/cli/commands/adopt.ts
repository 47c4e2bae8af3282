/** Containers that were there before the fleet, taken in. */
import { type Command, InvalidArgumentError, Option } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import { InstanceId, NodeName, Vmid } from "../../../shared/ids.ts";
import { ADOPTED, CMUX_SERVICES } from "../../../shared/jobs/adopt.ts";
import { ServiceAuth } from "../../../shared/jobs/fields.ts";
import { parseInput } from "../../../shared/jobs/index.ts";
import type { AdoptableContainer } from "../../../shared/state/inventory.ts";
import type { Inventory, JobInput, JobOutput, SandboxRecord } from "../../index.ts";
import { NONE } from "../describe.ts";
import { EXIT } from "../exit-codes.ts";
import { collectPairs, collectServices, type NamedPort } from "../parse-values.ts";
import { type Cli, describeError, formatError, type Session } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";
import { addWaitOptions, toSubmitOptions, type WaitOptions, withoutUndefined } from "./shared-options.ts";

type Options = WaitOptions & {
  prefix: string[];
  dryRun?: boolean;
  team?: string;
  auth?: ServiceAuth;
  service?: NamedPort[];
  metadata?: Record<string, string>;
};

const HEAD = ["NODE", "VMID", "NAME", "STATUS", "OUTCOME", "SANDBOX", "EXEC", "WHY"] as const;

const EXAMPLES = `
Only a stamp is added to the container's notes; nothing is stopped, started or changed in it. The list is what workers saw
some seconds ago. A container that is left is told with its reason, and may be adopted by a later call; doing it twice does
no harm. Templates are not listed. EXEC says how commands get in: execd where the container's exec token is in its notes or environment, else ssh.

Examples:
  fleet adopt --prefix pvelxc-,cmux- --dry-run
  fleet adopt --prefix pvelxc- --team acme --auth none`;

export function addAdopt(program: Command, cli: Cli): void {
  const command = addWaitOptions(program.command("adopt"))
    .summary("take containers that exist already into the fleet")
    .description("Take containers that exist already into the fleet, as sandboxes, without touching what runs in them.")
    .requiredOption("--prefix <prefix,...>", "of their host names; several, separated by commas", parsePrefixes)
    .option("--dry-run", "only list what would be adopted, and what not and why")
    .option("--team <team>", "whom they count for")
    .option("--service <name:port>", "their services; repeatable (those of a cmux workspace)", collectServices)
    .addOption(new Option("--auth <auth>", "who gets in at their public URLs (link)").choices(ServiceAuth.options))
    .option("--metadata <key=value>", "metadata to list by; repeatable", collectPairs)
    .addHelpText("after", EXAMPLES)
    .action(async () => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, (session) => adoptAll(session, options));
    });
}

function parsePrefixes(text: string): string[] {
  const prefixes = text.split(",").map((one) => one.trim());
  if (prefixes.every((one) => /^[a-zA-Z0-9][a-zA-Z0-9.-]*$/.test(one))) return prefixes;
  throw new InvalidArgumentError("Give the beginnings of host names, such as pvelxc-,cmux-.");
}

/** One container and what becomes, or became, of it. */
interface Line {
  container: AdoptableContainer;
  outcome: "to adopt" | "accepted" | "adopted" | "already adopted" | "left" | "failed";
  sandboxId?: string;
  operationId?: string;
  /** Why it will not be found by its name. */
  note?: string;
  result?: JobOutput<"adopt">;
  error?: ReturnType<typeof describeError>;
}

async function adoptAll(session: Session, options: Options): Promise<number> {
  const { fleet, print, terminal, json } = session;
  // What is wrong with one is wrong with all.
  parseInput("adopt", toInput({ node: NodeName.parse("any"), vmid: Vmid.parse(100) }, options));
  const inventory = await fleet.inventory();
  if (!inventory) throw new FleetError("node_unavailable", "no worker has read the cluster yet; start one first");
  const sandboxes = await fleet.sandboxes.list();
  checkPrefixes(options.prefix, inventory);
  const lines = toPlan(inventory, sandboxes, options.prefix);
  if (options.dryRun !== true) await carryOut(session, lines, options);
  lines.sort((a, b) => a.container.node.localeCompare(b.container.node) || a.container.vmid - b.container.vmid);
  print(lines.map(toValue), `${formatTable(HEAD, lines.map(toRow))}${summarize(lines)}\n`);
  const unseen = inventory.nodes.filter(({ online }) => !online).map(({ name }) => name);
  if (unseen.length > 0) terminal.err(formatError(toUnseen(unseen), json));
  const isShort = unseen.length > 0 || lines.some(({ outcome }) => outcome === "failed" || outcome === "left");
  return options.dryRun !== true && isShort ? EXIT.failed : EXIT.ok;
}

function checkPrefixes(asked: readonly string[], { adoptable }: Inventory): void {
  const allowed = adoptable?.prefixes ?? [];
  const wrong = asked.filter((prefix) => !allowed.some((one) => prefix.startsWith(one)));
  if (wrong.length === 0) return;
  const text = `prefix: ${wrong.join(", ")}: workers adopt only names that begin with ${allowed.join(" or ")} (their FLEET_ADOPT_PREFIXES)`;
  throw new FleetError("invalid_input", text, { facts: { fields: ["prefix"] } });
}

/** PVE tells no names of the containers of a node that is down. */
const toUnseen = (nodes: readonly string[]): FleetError =>
  new FleetError(
    "node_unreachable",
    `what stands on ${nodes.join(", ")} is not all listed: ${nodes.length === 1 ? "it is" : "they are"} offline; ask again afterwards`,
    { facts: { nodes } },
  );

/** What fits the prefixes, as things stand: pure. */
function toPlan(
  { adoptable, nodes }: Inventory,
  sandboxes: readonly SandboxRecord[],
  prefixes: readonly string[],
): Line[] {
  const fits = (name: string) => prefixes.some((prefix) => name.startsWith(prefix));
  const known = new Map(sandboxes.map((one) => [one.vmid, one]));
  const found = (adoptable?.containers ?? [])
    .filter(({ name, vmid }) => fits(name) && !known.has(vmid))
    .map((one): Line => {
      const why = whyNot(one, nodes);
      return { container: one, ...(why ? { outcome: "left", error: describeError(why) } : { outcome: "to adopt" }) };
    });
  const before = sandboxes.flatMap(({ id, template, hostname: name = "", node, vmid, state }): Line[] => {
    if (template !== ADOPTED || node === undefined || vmid === undefined || !fits(name)) return [];
    return [{ container: { node, vmid, name, status: state }, outcome: "already adopted", sandboxId: id }];
  });
  const all = [...found, ...before];
  for (const line of found) Object.assign(line, withoutUndefined({ note: whyNoInstanceId(line.container, all) }));
  return all;
}

/** By its host name it is found again, as the client that made it knew it, and its URLs stay what they were. */
const toInstanceId = ({ name }: AdoptableContainer) => InstanceId.safeParse(name).data;

/** A name is one sandbox's: of two containers that have it neither gets it. */
function whyNoInstanceId(container: AdoptableContainer, lines: readonly Line[]): string | undefined {
  if (lines.filter((one) => one.container.name === container.name).length > 1)
    return "no instance id: others have its name";
  return toInstanceId(container) === undefined ? "no instance id: its name can be none" : undefined;
}

function whyNot({ node, vmid, lock }: AdoptableContainer, nodes: Inventory["nodes"]): FleetError | null {
  if (!nodes.some(({ name, online }) => name === node && online))
    return new FleetError("node_unreachable", `node ${node} is offline`, { facts: { node } });
  if (lock !== undefined)
    return new FleetError("container_locked", `is locked (${lock})`, { facts: { node, vmid, lock } });
  return null;
}

/** How each went is put down in its line. */
async function carryOut(
  { fleet, operations, reword }: Session,
  lines: readonly Line[],
  options: Options,
): Promise<void> {
  const wanted = lines.filter(({ outcome }) => outcome === "to adopt");
  const begun = await Promise.all(
    wanted.map(async (line) => {
      try {
        const named = line.note === undefined ? { instanceId: toInstanceId(line.container) } : {};
        const input = { ...toInput(line.container, options), ...withoutUndefined(named) };
        const ask = () => fleet.adopt(input, toOptions(line.container, options));
        const handle = await operations.begin(ask);
        Object.assign(line, { outcome: "accepted", operationId: handle.id, sandboxId: handle.sandboxId });
        return { line, handle };
      } catch (error) {
        noteError(line, reword(error));
        return null;
      }
    }),
  );
  if (!options.wait) return;
  const waiting = begun.filter((one) => one !== null);
  const outcomes = await operations.results(
    waiting.map(({ handle }) => handle),
    options.waitTimeout,
  );
  for (const [index, { line }] of waiting.entries()) {
    const outcome = outcomes[index];
    if (outcome?.ok) Object.assign(line, { outcome: "adopted", result: outcome.value });
    else noteError(line, reword(outcome?.error));
  }
}

function toInput(
  { node, vmid }: Pick<AdoptableContainer, "node" | "vmid">,
  { team, auth, service, metadata }: Options,
): JobInput<"adopt"> {
  const services = service ?? (auth === undefined ? undefined : CMUX_SERVICES);
  return {
    node,
    vmid,
    ...withoutUndefined({ team, metadata }),
    ...(services === undefined ? {} : { services: services.map((one) => ({ ...one, ...withoutUndefined({ auth }) })) }),
  };
}

function toOptions({ node, vmid }: AdoptableContainer, options: WaitOptions) {
  const { idempotencyKey: key, ...more } = toSubmitOptions(options);
  return { ...more, idempotencyKey: key === undefined ? key : `${key}/${node}/${vmid}` };
}

function noteError(line: Line, thrown: unknown): void {
  const error = describeError(thrown);
  const { sandbox } = error.facts as { sandbox?: unknown }; // a fact of any type, or none
  const twice = error.code === "already_adopted";
  Object.assign(line, twice ? { outcome: "already adopted", sandboxId: sandbox } : { outcome: "failed", error });
}

function toValue({ container, ...line }: Line) {
  return { ...container, ...line };
}

const toRow = ({
  container: { node, vmid, name, status },
  outcome,
  sandboxId,
  result,
  error,
  note,
}: Line): string[] => [
  node,
  String(vmid),
  name,
  result?.state ?? status,
  outcome,
  outcome === "failed" ? NONE : (sandboxId ?? NONE),
  result?.exec ?? NONE,
  error ? toPrintable(`${error.code}: ${error.text}`) : (note ?? NONE),
];

function summarize(lines: readonly Line[]): string {
  const counts = new Map<Line["outcome"], number>();
  for (const { outcome } of lines) counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
  return [...counts].map(([outcome, count]) => `${count} ${outcome}`).join(", ") || "no container with such a name";
}
