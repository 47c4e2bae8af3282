/** What a build does inside its container: files are put in place, commands run, and the test says whether it is good. */
import { FleetError } from "../../shared/errors.ts";
import { quoteWord } from "../../shared/shell-quote.ts";
import type { StreamName } from "../../shared/state/output.ts";
import type { SecretValues } from "../../shared/state/secrets.ts";
import { createFraming } from "../exec/framing.ts";
import { endLeftovers, nameOf } from "../exec/leftovers.ts";
import { createLiveOutput } from "../exec/live-output.ts";
import { toDelivery, toScript } from "../exec/shell.ts";
import { sendBefore } from "../handlers/exec.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";
import { awaitReady } from "./ready.ts";

export type Way = "execd" | "ssh";

/** A command is one argument of bash for execd, which Linux takes 128 KiB of (execve(2)). */
const PIECE = 65_536;
const TIMEOUT_SECONDS = 3_600;

interface Item {
  /** In the output and in errors; says nothing of what is in it. */
  name: string;
  scripts: string[];
}

/** A later run goes on with the one that was cut short, from its beginning. The output is streamed as a command's. */
export async function fill(run: Run<"build">, way: Way, token: string | null): Promise<void> {
  const address = await awaitReady(run, token);
  const items = toItems(run, await run.context.secrets.get(run.id));
  const live = createLiveOutput(run.addOutput);
  const { timeoutSeconds = TIMEOUT_SECONDS } = run.input;
  try {
    for (const [index, { name, scripts }] of items.entries()) {
      if (index < (run.operation.done ?? 0)) continue;
      const command = nameOf(run.id, index);
      if (index === run.operation.done && token !== null) await endLeftovers(run, { address, token, name: command });
      await run.begin(name, { operation: { done: index } });
      live.add("stdout", `==> ${name}\n`);
      await run.timed(name.replace(/ .*/, ""), async () => {
        for (const script of scripts) {
          const begun = performance.now();
          const timeoutMs = timeoutSeconds * 1_000;
          const exitCode = await runScript(run, { way, address, token, script, command, timeoutMs, hear: live.add });
          const isLate = performance.now() - begun >= timeoutMs;
          if (exitCode !== 0) throw failed({ step: name, index, exitCode, ...(isLate ? { timeoutSeconds } : {}) });
        }
      });
    }
    await run.write({ operation: { done: items.length } });
  } finally {
    const rest = await live.close();
    if (rest.length > 0) await run.addOutput(rest).catch(() => {}); // a run that lost its lock is refused
  }
}

function failed(facts: { step: string; index: number; exitCode: number; timeoutSeconds?: number }): FleetError {
  const { step, exitCode, timeoutSeconds } = facts;
  const end = timeoutSeconds === undefined ? `ended with exit code ${exitCode}` : `took more than ${timeoutSeconds} s`;
  return new FleetError("build_failed", `${step} ${end}`, { facts });
}

function toItems({ input }: Run<"build">, { files = [], env = {} }: SecretValues): Item[] {
  const { setup, test } = input;
  return [
    ...files.map((file, at) => ({ name: `file ${at + 1} of ${files.length}`, scripts: toFileScripts(file) })),
    ...setup.map((command, at) => ({
      name: `setup ${at + 1} of ${setup.length}`,
      scripts: [toScript(command, { env })],
    })),
    ...(test === undefined ? [] : [{ name: "test", scripts: [toScript(test, { env })] }]),
  ];
}

/** Whole or not at all. FLEET_GUEST_ROOT is for guests that are a folder. */
function toFileScripts({ path, content, mode = "0644", owner }: NonNullable<SecretValues["files"]>[number]): string[] {
  const head = `set -e; path="\${FLEET_GUEST_ROOT:-}"${quoteWord(path)}; new="$path.fleet-new"`;
  const pieces = content.match(new RegExp(`.{1,${PIECE}}`, "g")) ?? [];
  const owned = owner === undefined ? "" : `chown -- ${quoteWord(owner)} "$new"; `;
  return [
    `${head}; mkdir -p -- "\${path%/*}"; : >"$new"`,
    ...pieces.map((piece) => `${head}; base64 -d >>"$new" <<"END"\n${piece}\nEND`),
    `${head}; ${owned}chmod ${mode} "$new"; mv -f -T -- "$new" "$path"`,
  ];
}

interface Call {
  way: Way;
  address: string;
  token: string | null;
  script: string;
  /** See `ExecCall.name`. */
  command: string;
  timeoutMs: number;
  hear: (stream: StreamName, chunk: string | Buffer) => void;
}

async function runScript(
  run: Run<"build">,
  { way, address, token, script, command, timeoutMs, hear }: Call,
): Promise<number> {
  const { execd, shell } = run.context;
  const { node, vmid } = containerOf(run).place;
  if (way === "execd") {
    const framing = createFraming(command);
    const call = { address, token: token ?? "", signal: run.signal, guard: run.check };
    const { before, script: last } = toDelivery(script, {}, { name: `.fleet-${command}`, framing });
    await sendBefore(run, before, call);
    const heard = { keepBytes: 0, readLine: framing.read, onOutput: hear };
    return (await execd.exec({ ...call, ...heard, script: last, name: command, timeoutMs })).exitCode;
  }
  if (shell === null) throw noWay(run);
  const line = { verb: "exec", vmid, script, timeoutMs } as const;
  const call = { signal: run.signal, guard: run.check, keepBytes: 0, onOutput: hear };
  return (await shell.run(node, line, call)).code ?? 137;
}

/** As asked for; else templates of the fleet have the exec daemon, and archives have not. */
export function wayOf(run: Run<"build">): Way {
  const way = run.input.exec ?? ("template" in run.input.from ? "execd" : "ssh");
  if (way === "ssh" && run.context.shell === null) throw noWay(run);
  return way;
}

const noWay = ({ input }: Run<"build">): FleetError =>
  new FleetError(
    "unsupported",
    `${"archive" in input.from ? "an archive has no exec daemon, so that its" : "its"} commands need SSH to the nodes: set FLEET_SSH_KEY`,
    { facts: { variables: ["FLEET_SSH_KEY"] } },
  );
