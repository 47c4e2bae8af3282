/** Commands about a node. */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { VmidRange } from "../../../shared/config.ts";
import { FleetError } from "../../../shared/errors.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { toGuardScript } from "../ssh-guard.ts";

const GUARD_HELP = `
The script goes to /usr/local/sbin/fleet-ssh-guard on each node; the line for authorized_keys is in its head.

Example:
  fleet node ssh-guard --range 20000-29999 --key fleet.pub | ssh root@pve1 \\
    'cat >/usr/local/sbin/fleet-ssh-guard && chmod 755 /usr/local/sbin/fleet-ssh-guard'`;

/** Returns the command, for what else there is to do with nodes. */
export function addNode(program: Command, cli: Cli): Command {
  type Options = GlobalOptions & { range?: string; key?: string; path?: string };
  const node = program.command("node").description("List nodes, take them out of use, set them up.");
  const command = node
    .command("ssh-guard")
    .summary("print the script that limits the fleet's SSH key")
    .description("Print the forced command for a node: it allows the fleet's SSH key our verbs on our VMIDs only.")
    .option("--range <first-last>", "VMIDs of the fleet, as the workers have them (PVE_VMID_RANGE, 20000-29999)")
    .option("--key <file>", "public key, for the line of authorized_keys that is shown")
    .option("--path <path>", "where the node's tools are, if not where Proxmox VE puts them")
    .addHelpText("after", GUARD_HELP)
    .action(() => {
      const { json = false, ...options } = command.optsWithGlobals<Options>();
      try {
        const script = toGuardScript({
          range: parseRange(options.range ?? (cli.env["PVE_VMID_RANGE"] || "20000-29999")),
          publicKey: options.key === undefined ? undefined : readPublicKey(options.key),
          path: options.path === undefined ? undefined : parsePath(options.path),
        });
        cli.terminal.out(json ? `${JSON.stringify({ script })}\n` : script);
      } catch (error) {
        cli.fail(error, { json });
      }
    });
  return node;
}

function parseRange(text: string) {
  const parsed = VmidRange.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new FleetError("invalid_input", `--range ${parsed.error.issues[0]?.message}`, { facts: { fields: ["range"] } });
}

function parsePath(text: string): string {
  if (/^\/[^\n\0:]*(:\/[^\n\0:]*)*$/.test(text)) return text;
  throw new FleetError("invalid_input", "--path must be absolute folders with ':' between", {
    facts: { fields: ["path"] },
  });
}

/** `TYPE BASE64` of the file's one line: a comment could hold anything. */
function readPublicKey(file: string): string {
  let text = "";
  try {
    text = readFileSync(file, "utf8");
  } catch {
    // Told below.
  }
  const [, key] = /^((?:ssh|ecdsa)-[a-z0-9-]+ [A-Za-z0-9+/]+=*)(?:[ \t][^\n]*)?\n?$/.exec(text) ?? [];
  if (key !== undefined) return key;
  throw new FleetError("invalid_input", "--key must be a file with one public key, such as id_ed25519.pub", {
    facts: { fields: ["key"] },
  });
}
