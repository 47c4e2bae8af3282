/** What the nodes do, and taking them out of use. */
import { hostname, userInfo } from "node:os";
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { NodeRest } from "../../index.ts";
import { NODE_HEAD, SANDBOX_HEAD, toNodeRow, toSandboxRow } from "../describe.ts";
import { EXIT } from "../exit-codes.ts";
import { collect, parseDurationMs, parseLimit, parseRatio } from "../parse-values.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";
import { isAgreedTo } from "./agree.ts";
import { withoutUndefined } from "./shared-options.ts";

const LS = "List the nodes: BUSY counts heavy operations that run now, QUEUE and EXEC jobs as active/waiting.";

/** `fleet nodes`, and the same with its changes under `fleet node`. */
export function addNodes(program: Command, node: Command, cli: Cli): void {
  addList(program, "nodes", cli);
  addList(node, "ls", cli);
  addCordons(node, cli);
  addDrain(node, cli);
  addForget(node, cli);
  addSet(node, cli);
}

const SET_HELP = `
What is not set here is as the workers' configuration says: FLEET_NODE_SANDBOXES, FLEET_MEMORY_OVERCOMMIT,
FLEET_DISK_OVERCOMMIT. Provisions ask for labels with --node-label. What is on the node stays.

Examples:
  fleet node set pve2 --label ssd --label zone=a --max-sandboxes 60
  fleet node set pve2 --memory-overcommit 1.2
  fleet node set pve2 --no-labels --max-sandboxes none`;

function addSet(node: Command, cli: Cli): void {
  type Options = GlobalOptions & {
    label?: string[];
    labels: boolean;
    maxSandboxes?: number | "none";
    memoryOvercommit?: number | "none";
    diskOvercommit?: number | "none";
  };
  const command = node
    .command("set")
    .description("Set labels and limits of a node; what is left out stays as it is.")
    .argument("<node>", "its name")
    .option("--label <label>", "labels that it is to have, instead of those it has; repeatable", collect)
    .option("--no-labels", "no labels any more")
    .option("--max-sandboxes <n>", "sandboxes of ours at most; or none", parseLimit)
    .option("--memory-overcommit <ratio>", "promised memory over what it has; or none", parseRatio)
    .option("--disk-overcommit <ratio>", "promised disk over what its storages have; or none", parseRatio)
    .addHelpText("after", SET_HELP)
    .action(async (name: string) => {
      const options = command.optsWithGlobals<Options>();
      const orNull = (value: number | "none" | undefined) => (value === "none" ? null : value);
      const changes = withoutUndefined({
        labels: options.label ?? (options.labels ? undefined : null),
        maxSandboxes: orNull(options.maxSandboxes),
        memoryOvercommit: orNull(options.memoryOvercommit),
        diskOvercommit: orNull(options.diskOvercommit),
      });
      await cli.run(options, async ({ fleet, print }) => {
        if (Object.keys(changes).length === 0) {
          throw new FleetError("invalid_input", "nothing to set; see fleet node set --help", {
            facts: { fields: ["label", "maxSandboxes", "memoryOvercommit", "diskOvercommit"] },
          });
        }
        const settings = await fleet.nodes.set(name, changes);
        const shown = Object.entries(settings).map(([key, value]) => `${key} ${[value].flat().join(" ")}`);
        print({ node: name, settings }, `${name}: ${shown.join(", ") || "as the configuration says"}\n`);
        return undefined;
      });
    });
}

function addList(parent: Command, name: string, cli: Cli): void {
  const command = parent
    .command(name)
    .description(LS)
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        const nodes = await fleet.nodes.list();
        const rows = nodes.map((node) => toNodeRow(node, terminal.paint));
        print(nodes, formatTable(NODE_HEAD, rows));
        return undefined;
      });
    });
}

type CordonOptions = GlobalOptions & { reason?: string };

const whoAndWhy = ({ reason }: CordonOptions) => ({ by: `${userName()}@${hostname()}`, reason });

/** A user without an entry in passwd, as in many containers, has no name. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return "unknown";
  }
}

function addCordons(node: Command, cli: Cli): void {
  const cordon = node
    .command("cordon")
    .description("Place nothing new on a node; what runs there goes on.")
    .argument("<node>", "its name")
    .option("--reason <text>", "why, for people and for operations that wait")
    .action(async (name: string) => {
      const options = cordon.optsWithGlobals<CordonOptions>();
      await cli.run(options, async ({ fleet, print }) => {
        const changed = await fleet.nodes.cordon(name, whoAndWhy(options));
        print({ node: name, cordoned: true, changed }, `${name} ${changed ? "is cordoned" : "was cordoned already"}\n`);
        return undefined;
      });
    });
  const uncordon = node
    .command("uncordon")
    .description("Let new sandboxes go to a node again.")
    .argument("<node>", "its name")
    .action(async (name: string) => {
      await cli.run(uncordon.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const changed = await fleet.nodes.uncordon(name);
        const text = changed ? "takes new sandboxes again" : "was not cordoned";
        print({ node: name, cordoned: false, changed }, `${name} ${text}\n`);
        return undefined;
      });
    });
}

const FORGET_HELP = `
For a node that will never be back as it was. Its sandboxes end as lost, and what is open on them fails with sandbox_gone; their
leases and slots are free. Those whose config somebody has moved to another node live on there. Switch it off for good first: where its containers come back all the same, they are orphans (fleet reconcile --dry-run).

Example:
  fleet node forget pve2 --yes`;

function addForget(node: Command, cli: Cli): void {
  const forget = node
    .command("forget")
    .description("End the sandboxes of a node that is no more as lost; refused while it is online.")
    .argument("<node>", "its name")
    .option("-y, --yes", "do not ask before that")
    .addHelpText("after", FORGET_HELP)
    .action(async (name: string) => {
      const options = forget.optsWithGlobals<GlobalOptions & { yes?: boolean }>();
      await cli.run(options, async (session) => {
        const { fleet, terminal, interrupt, print } = session;
        const { sandboxes } = await fleet.nodes.rest(name);
        if (!(await isAgreedTo(session, `give up the ${sandboxes.length} sandboxes of ${name}?`, options))) {
          terminal.err("fleet: nothing was changed\n");
          return EXIT.failed;
        }
        const found = await fleet.nodes.forget(name, { signal: interrupt });
        const waits = found.filter(({ done }) => done === "waits").length;
        const rest = waits === 0 ? "" : `; ${waits} are not, see --json: they stand elsewhere now, or ask again`;
        print(
          { node: name, findings: found },
          `${name} is forgotten: ${found.length - waits} sandboxes are lost${rest}\n`,
        );
        return waits === 0 ? EXIT.ok : EXIT.failed;
      });
    });
}

type DrainOptions = CordonOptions & {
  wait: boolean;
  timeout?: number;
  destroy?: boolean;
  migrate?: boolean;
  yes?: boolean;
};

const DRAIN_HELP = `
What lives there is waited for, however it ends; moved to other nodes with --migrate (see fleet migrate), or destroyed with
--destroy. With both, what PVE does not move is destroyed.
The node stays cordoned, also when draining was cut short; see fleet node uncordon.

Examples:
  fleet node drain pve2 --reason "new disk" --timeout 2h
  fleet node drain pve2 --migrate
  fleet node drain pve2 --destroy --yes`;

function addDrain(node: Command, cli: Cli): void {
  const drain = node
    .command("drain")
    .description("Cordon a node and wait until no sandbox lives there and nothing runs.")
    .argument("<node>", "its name")
    .option("--reason <text>", "why, for people and for operations that wait")
    .option("--wait", "wait until it is empty", true)
    .option("--no-wait", "only cordon it and list what lives there")
    .option("--timeout <duration>", "wait no longer than this, then end with 124", parseDurationMs)
    .option("--migrate", "move the sandboxes that live there to other nodes, each shut down for it")
    .option("--destroy", "destroy the sandboxes that live there; waits for their end")
    .option("-y, --yes", "do not ask before that")
    .addHelpText("after", DRAIN_HELP)
    .action(async (name: string) => {
      const options = drain.optsWithGlobals<DrainOptions>();
      await cli.run(options, async (session) => drainNode(session, name, options));
    });
}

async function drainNode(session: Session, name: string, options: DrainOptions): Promise<number> {
  const { fleet, terminal, json, interrupt, print } = session;
  const { wait, destroy = false, migrate = false, timeout: timeoutMs } = options;
  await fleet.nodes.cordon(name, whoAndWhy(options));
  const rest = await fleet.nodes.rest(name);
  if (!wait && !destroy && !migrate) {
    print({ node: name, drained: isEmpty(rest), ...rest }, toList(rest, session));
    return EXIT.ok;
  }
  if (!json && rest.sandboxes.length > 0) terminal.err(toList(rest, session));
  if (destroy && !(await isAgreed(session, name, rest, options))) {
    terminal.err(`fleet: ${name} is cordoned; nothing was destroyed\n`);
    return EXIT.failed;
  }
  const onProgress = (left: NodeRest) => json || terminal.err(`${toPrintable(toLeft(name, left))}\n`);
  await fleet.nodes.drain(name, { ...whoAndWhy(options), destroy, migrate, timeoutMs, signal: interrupt, onProgress });
  print({ node: name, drained: true }, `${name} is drained\n`);
  return EXIT.ok;
}

const isEmpty = ({ sandboxes, operations }: NodeRest) => sandboxes.length === 0 && operations === 0;

export function toLeft(node: string, { sandboxes, operations }: NodeRest): string {
  if (isEmpty({ sandboxes, operations })) return `${node}: empty`;
  const count = (many: number, one: string) => `${many} ${one}${many === 1 ? "" : one.endsWith("x") ? "es" : "s"}`;
  return `${node}: ${count(sandboxes.length, "sandbox")} and ${count(operations, "operation")} left`;
}

function toList({ sandboxes }: NodeRest, { terminal }: Session): string {
  const now = Date.now();
  return formatTable(
    SANDBOX_HEAD,
    sandboxes.map((sandbox) => toSandboxRow(sandbox, now, terminal.paint)),
  );
}

/** An empty node needs nobody's word. */
async function isAgreed(session: Session, node: string, rest: NodeRest, options: DrainOptions): Promise<boolean> {
  const count = rest.sandboxes.length;
  if (count === 0) return true;
  const without = new FleetError(
    "invalid_input",
    `${node} is cordoned; give --yes to have its ${count} sandboxes destroyed`,
    { facts: { fields: ["yes"], sandboxes: rest.sandboxes.map(({ id }) => id) } },
  );
  return isAgreedTo(session, `destroy these ${count} on ${node}?`, options, without);
}
