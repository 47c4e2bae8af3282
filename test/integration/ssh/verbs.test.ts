import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { NodeVerb } from "../../../shared/node-commands.ts";
import { parseUpid } from "../../../workers/pve/upid.ts";
import { isTaskDead, readContainerState } from "../../../workers/ssh/node-tools.ts";
import { failure, until } from "../fleet/harness.ts";
import { CT, call, exec, PVE1, RANGE, type Rig, startRig } from "./rig.ts";

/** Every verb works the same with the key's command forced to be the guard and with root's own shell. */
describe.each([
  ["with the guard", { guard: RANGE }],
  ["without it", {}],
])("%s", (_, options) => {
  let rig: Rig;
  beforeAll(async () => {
    rig = await startRig(options);
  });
  afterAll(() => rig[Symbol.asyncDispose]());

  const folder = () => rig.pve.containers().find(({ vmid }) => vmid === CT.up)?.root ?? "";

  test("a script's output, code and folder", async () => {
    const result = await exec(rig.shell(), "pwd; echo err >&2; exit 7");
    expect(result).toEqual({
      code: 7,
      stdout: `${folder()}\n`,
      stderr: "err\n",
      stdoutBytes: folder().length + 1,
      stderrBytes: 4,
      truncated: false,
    });
  });

  test("a script is as /bin/bash -c would run it, and knows nothing of the way here", async () => {
    const { stdout } = await exec(
      rig.shell(),
      "echo $0 $#; ls /proc/self/fd; env | grep -cE '^(SSH|XDG|LC)_'; trap 'echo bye' EXIT",
    );
    expect(stdout).toBe("/bin/bash 0\n0\n1\n2\n3\n0\nbye\n");
  });

  test("neither text nor input is in a command line, nor in the guard's log", async () => {
    const secret = "hunter2-in-the-text";
    const file = join(folder(), "go");
    const running = exec(rig.shell(), `x=${secret}; echo up; until [ -e go ]; do sleep 0.02; done; cat`, {
      stdin: `${secret} in the input`,
      onOutput: () => {
        seen.push(...execFileSync("ps", ["-eo", "args"], { encoding: "utf8" }).split("\n"));
        writeFileSync(file, "");
      },
    });
    const seen: string[] = [];
    expect((await running).stdout).toBe(`up\n${secret} in the input`);
    expect(seen.some((line) => line.includes("fleet-exec"))).toBe(true);
    expect([...seen, JSON.stringify(rig.pve.toolCalls())].filter((line) => line.includes(secret))).toEqual([]);
  });

  test("input of any bytes arrives as it is, and ends", async () => {
    const stdin = Buffer.from(Array.from({ length: 70_000 }, (_byte, index) => index % 256));
    const { stdout } = await exec(rig.shell(), "od -An -v -tu1 -w1 | tr -d ' ' | md5sum", { stdin });
    const expected = execFileSync("md5sum", { input: [...stdin].map((byte) => `${byte}\n`).join("") });
    expect(stdout).toBe(expected.toString());
  });

  test("output comes while the script runs", async () => {
    const heard: string[] = [];
    const { stdout } = await exec(rig.shell(), "echo one; until [ -e next ]; do sleep 0.02; done; echo two >&2", {
      onOutput: (stream, chunk) => {
        heard.push(`${stream} ${chunk}`);
        if (stream === "stdout") writeFileSync(join(folder(), "next"), "");
      },
    });
    expect([heard, stdout]).toEqual([["stdout one\n", "stderr two\n"], "one\n"]);
  });

  test("output past the limit is counted and not kept, never a half character", async () => {
    const result = await exec(rig.shell(), "printf 'ä%.0s' {1..50000}", { keepBytes: 1_001 });
    expect(result).toMatchObject({ stdoutBytes: 100_000, truncated: true, stdout: "ä".repeat(500) });
  });

  test("a script that takes too long is killed with all its children, and ends with 124", async () => {
    const result = await exec(rig.shell(), "sleep 600 & echo $! $$; wait", {}, 300);
    expect(result).toMatchObject({ code: 124, stderr: "timeout after 0.300s\n" });
    for (const pid of result.stdout.trim().split(" ")) await until(async () => !isAlive(pid), `the end of ${pid}`);
  });

  test("an abort kills the script with all its children", async () => {
    const abort = new AbortController();
    let pids: string[] = [];
    const running = exec(rig.shell(), "sleep 600 & echo $! $$; wait; echo never", {
      signal: abort.signal,
      onOutput: (_stream, chunk) => {
        pids = chunk.toString().trim().split(" ");
        abort.abort(new Error("enough"));
      },
    });
    await expect(running).rejects.toThrow("enough");
    expect(pids).toHaveLength(2);
    for (const pid of pids) await until(async () => !isAlive(pid), `the end of ${pid}`);
  });

  test("a process left behind does not hold up the result", async () => {
    const { stdout } = await exec(rig.shell(), "sleep 30 & disown; echo done", { deadlineMs: 5_000 });
    expect(stdout).toBe("done\n");
  });

  test("a signal that ends the script is its code", async () => {
    expect(await exec(rig.shell(), "kill -TERM $$")).toMatchObject({ code: 143 });
  });

  test("freeze and unfreeze keep what runs, and the state is told", async () => {
    const shell = rig.shell();
    const at = { node: PVE1, vmid: CT.up };
    expect(await readContainerState(shell, at, call())).toBe("RUNNING");
    await shell.run(PVE1, { verb: "freeze", vmid: CT.up }, call());
    expect(await readContainerState(shell, at, call())).toBe("FROZEN");
    const waiting = exec(shell, "echo thawed");
    await shell.run(PVE1, { verb: "unfreeze", vmid: CT.up }, call());
    expect((await waiting).stdout).toBe("thawed\n");
    expect(await readContainerState(shell, { node: PVE1, vmid: CT.off }, call())).toBe("STOPPED");
  });

  test("unlock removes a lock", async () => {
    rig.pve.faults.lock(CT.off, "create");
    await rig.shell().run(PVE1, { verb: "unlock", vmid: CT.off }, call());
    expect(rig.pve.containers().find(({ vmid }) => vmid === CT.off)?.lock).toBeUndefined();
  });

  test("a task is dead only once its worker has gone", async () => {
    const shell = rig.shell();
    const upid = String(await rig.api.data("POST", `/nodes/pve1/lxc/${CT.foreign}/status/shutdown`, { timeout: 600 }));
    const task = parseUpid(upid);
    expect(await isTaskDead(shell, task, call())).toBe(false);
    expect(await isTaskDead(shell, { ...task, pstart: task.pstart + 1 }, call())).toBe(true);
    rig.pve.faults.killTask(upid);
    await rig.api.ended(upid);
    expect(await isTaskDead(shell, task, call())).toBe(true);
  });

  test.each<[NodeVerb, number, string]>([
    ["exec", CT.off, "not_running"],
    ["exec", CT.none, "container_missing"],
    ["state", CT.none, "container_missing"],
    ["unlock", CT.none, "container_missing"],
    ["freeze", CT.off, "pve_failed"],
  ])("%s of %i: %s", async (verb, vmid, code) => {
    const command = { verb, vmid, script: "echo ran", timeoutMs: 1_000, pid: 1 } as Parameters<typeof run>[0];
    const run = (one: Parameters<ReturnType<Rig["shell"]>["run"]>[1]) => rig.shell().run(PVE1, one, call());
    const error = await failure(run(command), code as never);
    expect(error.facts).toMatchObject({ node: PVE1, verb, vmid });
  });

  test("pct's own words in a script's output are the script's", async () => {
    const fake = "container '20001' not running!";
    expect(await exec(rig.shell(), `echo "${fake}" >&2; exit 255`)).toMatchObject({ code: 255, stderr: `${fake}\n` });
    expect(await exec(rig.shell(), "echo 'fleet-ssh-guard: no' >&2; exit 77")).toMatchObject({ code: 77 });
  });
});

function isAlive(pid: string): boolean {
  try {
    process.kill(Number(pid), 0);
    return true;
  } catch {
    return false;
  }
}
