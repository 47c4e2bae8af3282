import type { Command } from "commander";
import { InvalidArgumentError } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { Fleet, SandboxId } from "../../index.ts";
import { nameWithin, type Place, toDirection, toPlace } from "../copy-place.ts";
import { openLocal, saveFile, saveFolder, within } from "../local-files.ts";
import { parseDurationMs } from "../parse-values.ts";
import { startCount } from "../progress.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { onQuotaOption, withoutUndefined } from "./shared-options.ts";

interface Options extends GlobalOptions {
  recursive?: boolean;
  mode?: number;
  owner?: string;
  waitTimeout?: number;
  idempotencyKey?: string;
  onQuota?: "refuse" | "wait";
}

const EXAMPLES = `
One of FROM and TO is SANDBOX:/PATH (a sandbox id, VMID or hostname), the other a path here, or - for stdin and stdout.
A TO that ends in / takes FROM under its own name, as does a folder that is there on this side. With --recursive a
folder's files become those of TO; files that are there under other names stay. A file is in place whole or not at all.
At most 64 MiB, of a folder as a tar.

Examples:
  fleet cp app.conf 20001:/etc/app/
  fleet cp -r ./src sbx_...:/workspace/src
  fleet cp cmux-20001:/var/log/app.log .
  tar -cz node_modules | fleet cp -r - 20001:/workspace/`;

export function addCopy(program: Command, cli: Cli): void {
  const command = program
    .command("cp")
    .summary("copy files to and from a sandbox")
    .description("Copy a file or folder into a sandbox, or out of one.")
    .argument("<from>", "what")
    .argument("<to>", "where to")
    .option("-r, --recursive", "a folder with all in it; with - a tar")
    .option("--mode <octal>", "into a sandbox: permission bits of the file (those it has here)", parseMode)
    .option("--owner <user[:group]>", "into a sandbox: whose it is to be")
    .option("--wait-timeout <duration>", "wait no longer than this, then end with 124; it goes on", parseDurationMs)
    .option("--idempotency-key <key>", "into a sandbox: the same key with the same content never goes twice")
    .addOption(onQuotaOption("refuse"))
    .addHelpText("after", EXAMPLES)
    .action(async (from: string, to: string) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const places = [toPlace(from), toPlace(to)] as const;
        await (toDirection(...places) === "upload" ? upload : download)(session, ...places, options);
        return undefined;
      });
    });
}

const toFormat = ({ recursive }: Options) => (recursive ? ("tar" as const) : ("file" as const));

async function upload(session: Session, from: Place, to: Place, options: Options): Promise<void> {
  const { fleet, operations, interrupt: signal } = session;
  const { recursive = false, owner, idempotencyKey, onQuota, waitTimeout } = options;
  // A tar from stdin is unpacked in the folder that is named.
  const path = from.path === "-" && recursive ? to.path : nameWithin(to.path, from.path);
  const sandboxId = await find(fleet, to);
  const local = await openLocal(from.path, { recursive, signal });
  const mode = recursive ? undefined : (options.mode ?? local.mode);
  const input = { sandboxId, path, format: toFormat(options), ...withoutUndefined({ mode, owner }) };
  const handle = await operations.begin(() => {
    const content = startCount(session, `upload ${path}`, local.content);
    return fleet.upload(input, content, { idempotencyKey, onQuota });
  });
  const result = await operations.result(handle, waitTimeout).catch(orFolder(path, "end it in / to copy into it"));
  session.print(result, "");
}

/** A worker does not know by which words of this command a folder can be meant. */
const orFolder = (path: string, wayOut: string) => (error: unknown) => {
  if (!(error instanceof FleetError) || error.code !== "is_a_directory") throw error;
  throw new FleetError(error.code, `${path}: is a folder; ${wayOut}`, { cause: error, facts: error.facts });
};

async function download(session: Session, from: Place, to: Place, options: Options): Promise<void> {
  const { fleet, operations, interrupt: signal } = session;
  const { recursive = false, onQuota, waitTimeout } = options;
  const { path } = from;
  const sandboxId = await find(fleet, from);
  const handle = await operations.begin(() =>
    fleet.download({ sandboxId, path, format: toFormat(options) }, { onQuota }),
  );
  const result = await operations.result(handle, waitTimeout).catch(orFolder(path, "add --recursive"));
  const content = startCount(session, `download ${path}`, handle.content({ signal }), result.bytes);
  if (to.path === "-") return session.terminal.pour(content);
  const target = await within(to.path, path);
  if (recursive) await saveFolder(target, content);
  else await saveFile(target, content, result.mode);
  session.print(result, "");
}

/** A typing error here sends nothing. */
const find = (fleet: Fleet, { sandbox = "" }: Place): Promise<SandboxId> => resolveSandbox(sandbox, fleet.sandboxes);

function parseMode(text: string): number {
  if (!/^[0-7]{1,4}$/.test(text)) throw new InvalidArgumentError("Give octal digits, such as 644 or 0755.");
  return Number.parseInt(text, 8);
}
