/** Templates made of sandboxes. */
import type { Command } from "commander";
import type { JobInput } from "../../index.ts";
import { loadBuildSpec } from "../build-spec.ts";
import { formatBytes, NONE } from "../describe.ts";
import { collectPairs, parseNumber, parseTemplate } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import { resolveTemplates } from "../resolve-templates.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { formatTable } from "../terminal.ts";
import { change, destroyAll, SANDBOX } from "./changes.ts";
import { show } from "./exec.ts";
import { addWaitOptions, toSubmitOptions, type WaitOptions, withoutUndefined } from "./shared-options.ts";

const HEAD = ["TEMPLATE", "NAME", "VERSION", "NODE", "VMID", "STORAGE", "DISK", "TEAM", "MADE OF"] as const;

export function addTemplate(program: Command, cli: Cli): void {
  const command = program.command("template").description("Make templates of sandboxes, list them, delete them.");
  addCreate(command, cli);
  addBuild(command, cli);
  addReplicate(command, cli);
  const ls = command
    .command("ls")
    .description("List what can be provisioned: templates that the fleet made first, then PVE's own.")
    .action(async () => {
      await cli.run(ls.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const templates = await fleet.templates.list();
        const rows = templates.map((one) => [
          one.id ?? NONE,
          one.name,
          one.version ?? NONE,
          one.online ? one.node : `${one.node} (offline)`,
          String(one.vmid),
          one.storage || NONE,
          formatBytes(one.diskBytes),
          one.team ?? NONE,
          one.source ?? (one.copyOf === undefined ? NONE : `replica of ${one.copyOf}`),
        ]);
        print(templates, formatTable(HEAD, rows));
        return undefined;
      });
    });
  const rm = addWaitOptions(command.command("rm"))
    .summary("delete templates")
    .description(
      "Delete templates that the fleet made. PVE keeps one from which linked clones live. Of several versions or replicas " +
        "with one name say which, by VMID or NAME:VERSION.",
    )
    .argument("<template...>", "template id sbx_..., or its VMID, name or NAME:VERSION; several at once")
    .option("--all", "every version and replica with that name that the fleet made")
    .addHelpText("after", "\nExamples:\n  fleet template rm my-app:3\n  fleet template rm my-app --all")
    .action(async (names: string[]) => {
      const { all, ...options } = rm.optsWithGlobals<WaitOptions & { all?: boolean }>();
      await cli.run(options, async (session) => {
        const templates = await session.fleet.templates.list();
        const ids = names.flatMap((name) => resolveTemplates(name, templates, { all }));
        return destroyAll(session, ids, options);
      });
    });
}

function addCreate(parent: Command, cli: Cli): void {
  type Options = WaitOptions & {
    name: string;
    version?: string;
    storage?: string;
    description?: string;
    metadata?: Record<string, string>;
  };
  const command = addWaitOptions(parent.command("create"))
    .summary("make a template of a sandbox")
    .description(
      "Make a template of a sandbox as it stands, which runs on meanwhile. Its exec token, machine id and SSH host keys " +
        "are not in it. A running sandbox needs a storage that can take snapshots; a stopped one does not.",
    )
    .argument("<sandbox>", SANDBOX)
    .requiredOption("--name <name>", "name in PVE; of several with one name the newest is provisioned")
    .option("--version <version>", "with it the tag NAME-VERSION can be provisioned, too")
    .option("--storage <storage>", "where its disks go (where the sandbox's are)")
    .option("--description <text>", "notes in PVE")
    .option("--metadata <key=value>", "kept with it; repeatable", collectPairs)
    .addHelpText("after", "\nExample:\n  fleet provision $(fleet template create sbx_... --name my-app --version 3)")
    .action(async (sandbox: string) => {
      const { name, version, storage, description, metadata, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const input = { sandboxId, name, ...withoutUndefined({ version, storage, description, metadata }) };
        const ask = () => session.fleet.template(input, toSubmitOptions(options));
        return change(session, options, ask, ({ templateId }) => templateId);
      });
    });
}

interface BuildOptions extends WaitOptions {
  version?: string;
  node?: string;
  replace?: boolean;
  keepVersions?: number;
}

const SPEC_HELP = `
SPEC is YAML, fields as fleet.build has them; a file is { path, source } (relative to SPEC) or { path, content }:

  name: my-app
  version: "3"
  from: { archive: local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst }   # or { template: cmux-base }
  diskGib: 8
  files: [{ path: /etc/my-app.conf, source: my-app.conf, mode: "0600" }]
  setup: [apt-get update, apt-get install -y git]
  test: git --version

Archives are what pveam list STORAGE shows on a node; their commands go over SSH to the node.`;

function addBuild(parent: Command, cli: Cli): void {
  const command = addWaitOptions(parent.command("build"))
    .summary("build a template from a specification")
    .description(
      "Build a template from an OS template archive or another template: files, commands and a test as SPEC says. Output is " +
        "shown as it comes, on stderr. A build that fails leaves nothing.",
    )
    .argument("<spec>", "a YAML file")
    .option("--version <version>", "in place of the specification's")
    .option("--node <node>", "where it is built")
    .option("--replace", "take the place of a template with this name and version")
    .option("--keep-versions <count>", "destroy older versions than so many of the newest", parseNumber)
    .addHelpText("after", SPEC_HELP)
    .action(async (file: string) => {
      const { version, node, replace, keepVersions, ...options } = command.optsWithGlobals<BuildOptions>();
      await cli.run(options, async (session) => {
        const over = withoutUndefined({ version, node, replace, keepVersions });
        const input = { ...(await loadBuildSpec(file)), ...over };
        return follow(session, input, options);
      });
    });
}

async function follow(session: Session, input: JobInput<"build">, options: WaitOptions): Promise<undefined> {
  const { operations, print, terminal, json } = session;
  const handle = await operations.begin(() => session.fleet.build(input, toSubmitOptions(options)));
  if (!options.wait) {
    print({ operationId: handle.id, sandboxId: handle.sandboxId }, `${handle.id}\n`);
    return;
  }
  const stop = new AbortController();
  // What it made goes to stdout, so its output goes beside it.
  const shown = json
    ? Promise.resolve()
    : show({ ...terminal, out: terminal.err }, handle.output({ signal: stop.signal })).catch(() => {});
  try {
    const result = await operations.quietResult(handle, options.waitTimeout);
    await shown;
    print(result, `${result.templateId}\n`);
  } catch (error) {
    const patience = setTimeout(() => stop.abort(), LEAVING_MS);
    await shown;
    clearTimeout(patience);
    throw error;
  }
}

const LEAVING_MS = 2_000;

function addReplicate(parent: Command, cli: Cli): void {
  type Options = WaitOptions & { node: string; storage?: string };
  const command = addWaitOptions(parent.command("replicate"))
    .summary("make a replica of a template on another node")
    .description(
      "Make a replica of a template on another node, so that sandboxes are cloned there, too. It goes by itself when it was not " +
        "used for long, or when the template has changed; also with fleet template rm.",
    )
    .argument("<template>", "name, NAME:VERSION, tag, VMID or id", parseTemplate)
    .requiredOption("--node <node>", "where it is to be")
    .option("--storage <storage>", "a shared storage that both nodes have")
    .action(async (template: string | number) => {
      const { node, storage, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const input = { template, node, ...withoutUndefined({ storage }) };
        const ask = () => session.fleet.replicate(input, toSubmitOptions(options));
        return change(session, options, ask, ({ replicaId }) => replicaId);
      });
    });
}
