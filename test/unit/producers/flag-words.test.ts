import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import type { Command } from "commander";
import { expect, test } from "vitest";
import { createProgram } from "../../../producers/cli/program.ts";
import { createCli } from "../../../producers/cli/session.ts";
import { createTerminal } from "../../../producers/cli/terminal.ts";
import { command } from "../../integration/command.ts";

const SANDBOX = "sbx_0123456789abcdef";
/** Nobody listens there: what asks Redis for anything ends as something else than bad input. */
const ENV = { REDIS_URL: "redis://127.0.0.1:1" };
const long = "x".repeat(5_000);

/** A value that no command takes, for each flag that takes one; of choices and those that are parsed here any text will do. */
const BAD: Record<string, string> = {
  "--after": "yesterday",
  "--batch": "no batch",
  "--bridge": "no bridge",
  "--bwlimit": "-1",
  "--cores": "0",
  "--count": "0",
  "--cpulimit": "-1",
  "--cpuunits": "0",
  "--cwd": "workspace",
  "--description": long,
  "--disk": "0",
  "--dns-provider": "no name",
  "--env": "a-b=1",
  "--extend": "1s",
  "--for": "1s",
  "--gateway": "vmbr0",
  "--gateway6": "vmbr0",
  "--grace": "0",
  "--group": "no group",
  "--hostname": "UPPER",
  "--hwaddr": "01:00:00:00:00:00",
  "--id": "no id",
  "--idempotency-key": "",
  "--idle": "1s",
  "--input": "/no/such/file",
  "--instance-id": "UPPER",
  "--ip": "10.0.0.5",
  "--ip6": "fd00::5",
  "--keep-last": "0",
  "--key": "/no/such/file",
  "--label": "no label",
  "--max": "0",
  "--max-age": "1s",
  "--memory": "1",
  "--metadata": `key=${long}`,
  "--min": "-1",
  "--mode": "9",
  "--mtu": "1",
  "--name": "UPPER",
  "--node": "no node",
  "--node-label": "no label",
  "--output-limit": "-1",
  "--owner": "no owner",
  "--pool": "no pool",
  "--prefix": "no prefix",
  "--range": "1",
  "--rate": "0",
  "quota set --rate": "-1",
  "--remove-metadata": long,
  "--service": "UPPER:80",
  "--setup": "",
  "--source-snapshot": "no name",
  "--storage": "no storage",
  "--swap": "-1",
  "--tag": "UPPER",
  "--team": "no team",
  "--template": "no template",
  "--to": "no node",
  "--ttl": "1s",
  "--user": "no user",
  "--version": "UPPER",
  "--vlan": "0",
};

/** No text is bad for these; the last one needs a terminal to get that far. */
const ANY = new Set(["--reason", "--sandbox", "--probe", "--host", "ls --metadata", "shell --user"]);

/** What each command needs besides the flag. */
const NEEDED: Record<string, string[]> = {
  adopt: ["--prefix", "cmux-"],
  batch: ["/dev/null"],
  branch: ["--count", "2", SANDBOX],
  capacity: ["base"],
  configure: [SANDBOX],
  cp: ["/dev/null", `${SANDBOX}:/x`],
  destroy: [SANDBOX],
  exec: ["--no-stdin", SANDBOX, "true"],
  expose: [SANDBOX, "web", "80"],
  hide: [SANDBOX, "web"],
  "keys create": ["ci"],
  link: [SANDBOX, "web"],
  migrate: [SANDBOX],
  "pool set": ["--min", "1", "--max", "2", "base"],
  power: [SANDBOX, "stop"],
  provision: ["base"],
  proxy: ["caddy"],
  "quota set": ["acme"],
  "snapshot create": [SANDBOX],
  "snapshot restore": [SANDBOX, "snap_0123456789abcdef"],
  "snapshot rm": [SANDBOX, "snap_0123456789abcdef"],
  "template build": ["examples/template.yaml"],
  "template create": ["--name", "app", SANDBOX],
  "template replicate": ["--node", "pve1", "base"],
  update: [SANDBOX],
};

function createTree(): Command {
  const streams = { stdout: new PassThrough(), stderr: new PassThrough() };
  const exit = () => {};
  return createProgram(createCli({ terminal: createTerminal(streams, ENV, exit), env: ENV, exit }));
}

type Case = [path: string, flag: string, needed: string[]];

/** Each command with each flag that takes a value. */
function listFlags(command: Command, names: readonly string[] = []): Case[] {
  const path = names.join(" ");
  const needed = NEEDED[path] ?? command.registeredArguments.map(() => "any");
  const own = command.options.filter(({ required, optional }) => required || optional);
  return [
    ...own.flatMap(({ long }): Case[] => (long ? [[path, long, needed]] : [])),
    ...command.commands.flatMap((child) => listFlags(child, [...names, child.name()])),
  ];
}

const FLAGS = listFlags(createTree()).filter(([path, flag]) => !ANY.has(flag) && !ANY.has(`${path} ${flag}`));

test.each(FLAGS)(
  "fleet %s: a bad %s is refused by this name, before anything is asked for",
  async (path, flag, needed) => {
    const words = [...path.split(" "), ...needed, flag, BAD[`${path} ${flag}`] ?? BAD[flag] ?? "nonsense"];
    expect(await command(ENV, ...words)).toEqual({
      code: 2,
      out: "",
      err: expect.stringMatching(new RegExp(`^fleet: [^:]+: .*${flag}\\b.*\n$`)),
    });
  },
);

test("the list of commands says of each in one short line what it does", () => {
  const [, list = ""] = createTree().helpInformation().split("Commands:\n");
  const summaries = list.split("\n").flatMap((line) => /^ {2}\w.*? {2,}(.*)/.exec(line)?.[1] ?? []);
  expect(summaries.length).toBeGreaterThan(30);
  expect(summaries.filter((text) => !/^[a-z][^.:]{5,85}$/.test(text))).toEqual([]);
});

test("a command's help begins with its own options, and fits the terminal", async () => {
  const { out } = await command(ENV, "adopt", "--help");
  const flags = out.split("\n").flatMap((line) => /^ {2}(?:-., )?(--[a-z-]+)/.exec(line)?.[1] ?? []);
  expect(flags[0]).toBe("--prefix");
  expect(flags.indexOf("--wait")).toBeGreaterThan(flags.indexOf("--metadata"));
  expect(out.split("\n").filter((line) => line.length > 80)).toEqual([]);
  expect(out).toContain("\nExamples:\n  fleet adopt --prefix pvelxc-,cmux- --dry-run\n");
});

test.each([
  [
    ["provision", "base", "--tag", "ok", "--tag", "No", "--service", "web:0", "--env", "a-b=1", "--ttl", "5s"],
    "--tag no. 2: must be 1 to 63 lower-case letters, digits, '_', '+', '.' or '-'; " +
      "--env a-b: must be a variable's name: letters, digits and '_', no digit first; " +
      "--service, port: must be at least 1; --ttl: must be at least 10s",
  ],
  [
    ["provision", "base", "--group", "/", "--anti-affinity"],
    "--group: must be 1 to 64 letters, digits, '_', '.' or '-'",
  ],
  [
    ["provision", "base", "--gateway", "10.0.0.1"],
    "--gateway: a gateway needs a fixed address in --ip (dhcp brings its own)",
  ],
  [
    ["provision", "base", "--storage", "local"],
    "--storage: a linked clone stays on its template's storage; ask for --clone full to choose one",
  ],
  [
    ["provision", "base", "--count", "2", "--ip", "10.0.0.5/24"],
    "--ip: 2 sandboxes can't share one; take --ip lease or dhcp",
  ],
  [["provision", "99"], "TEMPLATE: must be at least 100"],
  [["provision", "base", "--template", "base"], "TEMPLATE: give TEMPLATE or --template, not both"],
  [
    ["exec", SANDBOX, "-n", "--timeout", "2d", "--", "a\0b"],
    "COMMAND: must not hold a NUL byte; --timeout: must be at most 1d",
  ],
  [["extend", SANDBOX, "1s"], "DURATION: must be at least 10s"],
  [["expose", SANDBOX, "web", "70000"], "PORT: must be at most 65535"],
  [
    ["configure", SANDBOX],
    "configure: nothing to change; give --cores, --cpulimit, --cpuunits, --memory, --swap, --disk or --onboot",
  ],
])("%j is told what is wrong in its own words", async (words, text) => {
  const { err } = await command(ENV, ...words);
  expect(err).toBe(`fleet: invalid_input: ${text}\n`);
});

test("what stands in a file is told in the file's words, and machines get the fields as they are", async () => {
  await using file = await mkdtempDisposable(join(tmpdir(), "flag-words-"));
  const input = join(file.path, "sandbox.json");
  await writeFile(input, JSON.stringify({ template: "base", ttlSeconds: 1, network: { ip: "here" } }));
  const { code, err } = await command(ENV, "provision", "--input", input, "--memory", "1", "--json");
  expect(code).toBe(2);
  expect(JSON.parse(err).error).toMatchObject({
    message: expect.stringMatching(
      /^--memory: must be at least 16; network\.ip: must be .*; ttlSeconds: must be at least 10$/,
    ),
    facts: { fields: ["memoryMib", "network.ip", "ttlSeconds"] },
  });
});
