/** A terminal in a sandbox: from a terminal here (a PTY of util-linux' `script`), over Redis, a worker and a real sshd. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ShellHandle } from "../../../producers/index.ts";
import { quoteWord } from "../../../shared/shell-quote.ts";
import { CHILD_ENV } from "../../child-env.ts";
import { command } from "../command.ts";
import { type Bed, failure, provisionOne, startBed, until } from "./harness.ts";

/** A command of this file alone. */
const NAP = `sleep ${process.pid}.`;
const MAIN = new URL("../../../producers/cli/main.ts", import.meta.url).pathname;

let bed: Bed;
let folder: string;
const clis: ChildProcess[] = [];
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "shell-"));
  bed = await startBed({ pve: { nodes: 1 }, ssh: { guard: { first: 20_000, last: 29_999 } } });
  box = await provisionOne(bed.fleet, { env: { WORD: "sealed" } });
});
afterAll(async () => {
  for (const child of clis) child.kill("SIGKILL"); // those of tests that failed
  rmSync(folder, { recursive: true, force: true });
  await bed.close();
});

/** `fleet shell` on a terminal of its own. */
function startCli(words: string[], after = "") {
  const tty = join(folder, `tty-${Math.random()}`);
  const command = [process.execPath, MAIN, "shell", String(box.vmid), ...words].map(quoteWord).join(" ");
  const line = `tty >${quoteWord(tty)}; stty cols 91 rows 33; ${command}; code=$?; ${after}exit $code`;
  const child = spawn("script", ["-qec", line, "/dev/null"], {
    env: { ...CHILD_ENV, TERM: "xterm", ...bed.env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  clis.push(child);
  let seen = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (seen += text));
  return {
    type: (text: string) => void child.stdin.write(text),
    seen: () => seen,
    shows: (text: string | RegExp) =>
      until(() => (typeof text === "string" ? seen.includes(text) : text.test(seen)), `${text}`),
    resize: (cols: number, rows: number) =>
      execFileSync("stty", ["-F", readFileSync(tty, "utf8").trim(), "cols", String(cols), "rows", String(rows)]),
    ended: codeOf(child),
  };
}

async function codeOf(child: ChildProcess): Promise<number | null> {
  await once(child, "close");
  return child.exitCode;
}

describe("fleet shell", () => {
  test("is a terminal: its size, its keys, its exit code; and this one is afterwards what it was", async () => {
    const cli = startCli([], "stty -a; ");
    // What is typed is echoed as well, so what must come is put together there.
    cli.type('echo "<$WORD $TERM>" "$(tty | cut -c1-8)"; stty size\r');
    await cli.shows("<sealed xterm> /dev/pts");
    await cli.shows("\n33 91\r");
    cli.type('until [ "$(stty size)" = "40 120" ]; do sleep 0.05; done; echo re""sized\r');
    cli.resize(120, 40);
    await cli.shows("resized");
    cli.type(`${NAP}0\r`);
    await until(async () => processes(`${NAP}0`).length === 1, "the sleep");
    cli.type("\u0003");
    await cli.shows(/\^C\s.*# $/s); // its prompt: what is typed before it goes with the key
    cli.type("echo rc=$?\r");
    await cli.shows("\rrc=130\r");
    cli.type("seq 1 100000; exit 7\r");
    expect(await cli.ended).toBe(7);
    expect(cli.seen()).toContain("\n100000\r");
    expect(cli.seen()).toMatch(/\nopost .* icanon .* echo /s);
    expect(
      bed.pve
        .toolCalls()
        .flatMap(({ args }) => args)
        .join(),
    ).not.toContain("seq");
  });

  test("runs a command in place of a shell, each byte as it is; Enter ~ . hangs up and leaves its screen", async () => {
    const cli = startCli(["--", "sh", "-c", `stty -opost; printf "\\033[?1049hup\ndown ready"; exec ${NAP}1`]);
    await cli.shows("\u001b[?1049hup\ndown ready");
    expect(processes(`${NAP}1`)).toHaveLength(1);
    cli.type("\r~.");
    expect(await cli.ended).toBe(129);
    expect(cli.seen()).toContain("\u001b[?1049l\r\nfleet: the shell was hung up");
    await until(() => processes(`${NAP}1`).length === 0, "the end of the command");
  });

  test("without a terminal says what to use", async () => {
    const { code, err } = await command(bed.env, "shell", String(box.vmid));
    expect(code).toBe(2);
    expect(err).toContain("fleet exec");
  });
});

/** Processes of sandboxes with this command line. */
function processes(line: string): string[] {
  const all = execFileSync("ps", ["-eo", "args="], { encoding: "utf8" }).split("\n");
  return all.filter((one) => one.trim() === line);
}

async function showing(handle: ShellHandle, text: string): Promise<void> {
  let seen = "";
  for await (const chunk of handle.output()) {
    if (chunk.stream === "stdout") seen += chunk.text;
    if (seen.includes(text)) return;
  }
  throw new Error(`it ended without ${text}: ${seen}`);
}

test("a user that there is not", async () => {
  const handle = await bed.fleet.shell({ sandboxId: box.sandboxId, user: "nobody-there" });
  await failure(handle.result({ timeoutMs: 60_000 }), "user_not_found");
});

test("whose client has vanished is hung up; what was typed is nowhere to be read", async () => {
  const client = bed.client();
  const { sandboxId } = box;
  const handle = await client.shell({ sandboxId, command: `read -r x; echo got; exec ${NAP}2`, silenceMs: 1_500 });
  await handle.write("hunter2\r");
  await showing(handle, "got");
  const entries = await bed.redis.xrangeBuffer(bed.keys.shellInput(handle.id), "-", "+");
  expect(entries.length).toBeGreaterThan(0);
  expect(Buffer.concat(entries.flatMap(([, fields]) => fields)).includes("hunter2")).toBe(false);
  await client.close();
  const result = await (await bed.fleet.operation(handle.id)).result({ timeoutMs: 60_000 });
  expect(result).toMatchObject({ ended: "vanished", exitCode: 129 });
  await until(() => processes(`${NAP}2`).length === 0, "the end of the command");
});

test("a cancel ends it", async () => {
  const handle = await bed.fleet.shell({ sandboxId: box.sandboxId, command: `echo on; exec ${NAP}3` });
  await showing(handle, "on");
  await handle.cancel();
  await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
  await until(() => processes(`${NAP}3`).length === 0, "the end of the command");
  expect(await handle.write("late")).toBe(false);
});

test("whose worker dies ends, and is told so", async () => {
  await bed.workers?.close();
  const first = await bed.startProcess();
  const handle = await bed.fleet.shell({ sandboxId: box.sandboxId, command: `echo on; exec ${NAP}4` });
  await showing(handle, "on");
  await bed.startWorkers();
  await first.end("SIGKILL");
  await until(() => processes(`${NAP}4`).length === 0, "the end of the command");
  await bed.redis.del(`${bed.keys.prefix}:exec-pve1:${handle.id}:lock`); // as it runs out six seconds later
  await failure(handle.result({ timeoutMs: 60_000 }), "exec_interrupted");
});
