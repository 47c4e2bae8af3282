/** Commands in sandboxes: what comes back, what can go wrong, and what is never run twice. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { userInfo } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { OutputChunk } from "../../../producers/index.ts";
import { createSecretStore } from "../../../shared/state/secrets.ts";
import { startExecd } from "../../pve/guest/execd.ts";
import {
  all,
  type Bed,
  containerOf,
  failure,
  firstFailure,
  provisionOne,
  run,
  startBed,
  until,
  useUpAttempts,
  useUpTime,
} from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
/** Begun first, since it takes as long as it must. */
let silent: ReturnType<typeof exec>;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1, templates: [{ name: "cmux-base" }, { name: "mute", guest: { execd: false } }] },
  });
  box = await provisionOne(bed.fleet, { env: { FROM: "provision", BOTH: "provision" } });
  silent = exec("sleep 31; echo at last", { timeoutMs: 60_000 });
  silent.catch(() => {}); // the test of it tells
});
afterAll(() => bed.close());

const exec = (command: string, more: object = {}) =>
  bed.fleet.exec({ sandboxId: box.sandboxId, command, ...more }).then((handle) => handle.result({ timeoutMs: 90_000 }));
const rootOf = (vmid: number) => containerOf(bed, vmid)?.root ?? "";

test("a shell without SSH to the nodes says what is missing, and what works", async () => {
  const error = await failure(run(bed.fleet, "shell", { sandboxId: box.sandboxId }), "unsupported");
  expect(error.facts).toMatchObject({ variables: ["FLEET_SSH_KEY"] });
  expect(error.text).toContain("fleet exec");
  const keyless = bed.client({ secretKey: undefined });
  await failure(keyless.shell({ sandboxId: box.sandboxId }), "not_configured");
});

test("returns exit code and both streams", async () => {
  expect(await exec("echo out; echo err >&2; exit 3")).toEqual({
    exitCode: 3,
    stdout: "out\n",
    stderr: "err\n",
    truncated: false,
    stdoutBytes: 4,
    stderrBytes: 4,
    durationMs: expect.any(Number),
  });
});

test("runs in the folder and with the environment asked for, over the sandbox's own", async () => {
  const { stdout } = await exec('echo "$PWD $FROM $BOTH $OWN"', { cwd: "/tmp", env: { BOTH: "exec", OWN: "a'b\"$c" } });
  expect(stdout).toBe("/tmp provision exec a'b\"$c\n");
  expect((await exec("true", { cwd: "/no/such/folder" })).exitCode).toBe(1);
});

describe("input", () => {
  const bytes = (count: number) => Buffer.from(Array.from({ length: count }, (_, index) => index % 256));
  const md5 = (data: Buffer) => createHash("md5").update(data).digest("hex");

  test.each([
    ["in the text", 70_000],
    ["through a file", 1_048_576],
  ])("of any bytes, %s", async (_, count) => {
    const stdin = bytes(count);
    const { stdout } = await exec("head -c 3 | od -An -tu1; md5sum; cat", { stdin });
    expect(stdout).toBe(`   0   1   2\n${md5(stdin.subarray(3))}  -\n`);
    expect(readdirSync("/dev/shm").filter((name) => name.startsWith(".fleet-op_"))).toEqual([]);
  });

  test("text; none at all; and a command that does not read it", async () => {
    expect(await exec("cat", { stdin: "grüße\n" })).toMatchObject({ stdout: "grüße\n" });
    expect(await exec("cat; echo end")).toMatchObject({ stdout: "end\n" });
    expect(await exec("sleep 30 >/dev/null 2>&1 & exit 5", { stdin: bytes(80_000) })).toMatchObject({ exitCode: 5 });
  });

  test("a command that is longer than an argument may be; also where it sets a sandbox up", async () => {
    const long = `: ${"x".repeat(200_000)}; echo set-up > made`;
    const { vmid, sandboxId } = await provisionOne(bed.fleet, { setup: [long] });
    expect(readFileSync(join(rootOf(vmid), "made"), "utf8")).toBe("set-up\n");
    await run(bed.fleet, "destroy", { sandboxId });
    expect(await exec(`: ${"\\".repeat(900_000)}; echo $0`)).toMatchObject({ exitCode: 0, stdout: "/bin/bash\n" });
  });

  test("more than 1 MiB is refused, and says what to do", async () => {
    const error = await failure(exec("cat", { stdin: Buffer.alloc(1_048_577) }), "invalid_input");
    expect(error.text).toContain("stdin: must have at most 1048576 bytes");
  });
});

describe("another user", () => {
  // Who may become nobody, if he is root; else himself.
  const me = userInfo();
  const user = me.uid === 0 ? "nobody" : me.username;

  test("has the home and the name that are his, reads the input, and /dev/stdin is his, too", async () => {
    const home = execFileSync("/bin/bash", ["-c", `echo ~${user}`], { encoding: "utf8" });
    const command = 'id -un; echo "$HOME"; echo "$USER $FROM $OWN"; cat /dev/stdin; exit 4';
    const result = await exec(command, { user, stdin: "read\n", env: { OWN: "own" }, cwd: "/tmp" });
    expect(result).toMatchObject({ exitCode: 4, stdout: `${user}\n${home}${user} provision own\nread\n`, stderr: "" });
    const long = await exec("id -un; wc -c", { user, stdin: Buffer.alloc(500_000) });
    expect(long.stdout).toBe(`${user}\n500000\n`);
  });

  test("who does not exist is an error of its own, and nothing is run", async () => {
    const handle = await bed.fleet.exec({
      sandboxId: box.sandboxId,
      command: "touch never",
      user: "no-such",
      outputLimitBytes: 0,
    });
    const error = await failure(handle.result({ timeoutMs: 60_000 }), "user_not_found");
    expect(error.facts).toMatchObject({ user: "no-such" });
    expect([await all(handle.output()), existsSync(join(rootOf(box.vmid), "never"))]).toEqual([[], false]);
    await failure(exec("true", { user: "root; id" }), "invalid_input");
  });

  test("is killed with all he began", async () => {
    const handle = await bed.fleet.exec({ sandboxId: box.sandboxId, command: "sleep 61 & echo $! $$; wait", user });
    const first = await handle.output().next();
    const pids = first.value && "text" in first.value ? first.value.text.trim().split(" ") : [];
    expect(pids).toHaveLength(2);
    await handle.cancel();
    await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
    for (const pid of pids) await until(() => !existsSync(`/proc/${pid}/cwd`) || null, `the end of ${pid}`);
  });
});

test("keeps as much of a stream as asked for, never half a character, and counts the rest", async () => {
  const result = await exec("printf 'ä%.0s' {1..50}; echo; echo oops >&2", { outputLimitBytes: 11 });
  expect(result).toMatchObject({ stdout: "ääääää".slice(0, 5), stdoutBytes: 101, stderr: "oops\n", truncated: true });
  await failure(exec("true", { outputLimitBytes: 1_048_577 }), "invalid_input");
});

test("keeps 256 KiB of a stream and counts the rest", async () => {
  const result = await exec("yes 0123456789abcdef | head -n 200000");
  expect(result).toMatchObject({ exitCode: 0, truncated: true, stderrBytes: 0 });
  expect(result.stdoutBytes).toBeGreaterThan(1_000_000);
  expect(Buffer.byteLength(result.stdout)).toBeLessThanOrEqual(262_144);
  expect(result.stdout.length).toBeGreaterThan(262_000);
});

describe("exact output", () => {
  const TEXT = "\n<a>\r\n\n  b\r\r\n\n\nümläut, and no end";

  test.each([
    ["text without an end", TEXT],
    ["text with one", `${TEXT}\n`],
    ["nothing but blank lines", "\n\n\n"],
    ["nothing", ""],
  ])("%s is as it was printed, on both streams, live and in the result", async (_, text) => {
    const command = "tee /dev/stderr; exit 3";
    const handle = await bed.fleet.exec({ sandboxId: box.sandboxId, command, stdin: text, exact: true });
    const chunks = await all(handle.output());
    const result = await handle.result({ timeoutMs: 60_000 });
    const bytes = Buffer.byteLength(text);
    expect(result).toMatchObject({ exitCode: 3, stdout: text, stderr: text, stdoutBytes: bytes, stderrBytes: bytes });
    for (const stream of ["stdout", "stderr"])
      expect(chunks.flatMap((one) => ("text" in one && one.stream === stream ? [one.text] : [])).join("")).toBe(text);
  });

  test("of a command, and an input, that go through files", async () => {
    const command = `: ${"x".repeat(200_000)}; wc -c; echo end >&2`;
    const result = await exec(command, { exact: true, stdin: Buffer.alloc(200_000) });
    expect(result).toMatchObject({ exitCode: 0, stdout: "200000\n", stderr: "end\n" });
  });

  test("as another user, and out of its time", async () => {
    expect(await exec("printf '\\n%s' \"$USER\"", { exact: true, user: "nobody" })).toMatchObject({
      stdout: "\nnobody",
    });
    await failure(exec("true", { exact: true, user: "who.is.that" }), "user_not_found");
    const late = await exec("printf '\\nbegun\\n\\n'; sleep 60; true", { exact: true, timeoutMs: 300 });
    expect(late).toMatchObject({ exitCode: 124, stdout: "\nbegun\n\n" });
  });
});

describe("live output", () => {
  const untilGo = "until [ -e go ]; do read -t 0.02 < <(:) || true; done; rm go";
  const go = () => writeFileSync(join(rootOf(box.vmid), "go"), "");
  const text = (chunks: OutputChunk[], name: string) =>
    chunks.map((chunk) => (chunk.stream === name && "text" in chunk ? chunk.text : "")).join("");

  test("comes while the command runs, and again afterwards with the streams in their order", async () => {
    const command = `echo one; ${untilGo}; echo two >&2; echo three`;
    const handle = await bed.fleet.exec({ sandboxId: box.sandboxId, command });
    const live = handle.output();
    expect((await live.next()).value).toEqual({ stream: "stdout", text: "one\n" });
    expect((await handle.status()).status).toBe("running");
    go();
    const rest = await all(live);
    expect([text(rest, "stderr"), text(rest, "stdout")]).toEqual(["two\n", "three\n"]);
    expect(await all(handle.output())).toEqual([{ stream: "stdout", text: "one\n" }, ...rest]);
  });

  test("short output costs no write of its own", async () => {
    const writes = async () => {
      const handle = await bed.fleet.exec({ sandboxId: box.sandboxId, command: "echo out; echo err >&2" });
      const chunks = await handle.result({ timeoutMs: 60_000 }).then(() => all(handle.output()));
      expect([text(chunks, "stdout"), text(chunks, "stderr")]).toEqual(["out\n", "err\n"]);
      return bed.redis.xlen(bed.keys.output(handle.id));
    };
    // On a busy machine a short command may take long enough to be watched.
    for (let tries = 1; (await writes()) > 1; tries++) expect(tries).toBeLessThan(20);
  });

  test("more than is kept: nothing is lost to who watches, and who comes late has the end", async () => {
    const command = `echo up; ${untilGo}; seq -f %099.0f 1 20000; ${untilGo}`;
    const handle = await bed.fleet.exec({ sandboxId: box.sandboxId, command });
    const watched: OutputChunk[] = [];
    for await (const chunk of handle.output()) {
      watched.push(chunk);
      if ("text" in chunk && /(up|020000)\n$/.test(chunk.text)) go();
    }
    const lines = Array.from({ length: 20_000 }, (_, at) => `${at + 1}\n`.padStart(100, "0"));
    const expected = ["up\n", ...lines].join("");
    expect(text(watched, "stdout") === expected).toBe(true);
    const [gap, ...late] = await all(handle.output());
    const kept = text(late, "stdout");
    expect(gap).toEqual({ stream: "gap", bytes: expected.length - kept.length });
    expect([kept.length > 1_000_000, expected.endsWith(kept)]).toEqual([true, true]);
  });
});

test("a command out of its time ends with 124, with all that it has begun", async () => {
  const command = "(while :; do sleep 60; done) & echo $!; setsid sleep 61 & echo $!; sleep 62 | cat";
  const result = await exec(command, { timeoutMs: 200 });
  expect(result).toMatchObject({ exitCode: 124, stdout: expect.stringMatching(/^\d+\n\d+\n$/) });
  for (const pid of result.stdout.trim().split("\n")) expect(existsSync(`/proc/${pid}/cwd`)).toBe(false);
});

test("who ended by itself, and left its output to another, is out of its time as well", async () => {
  expect(await exec("sleep 60 & echo done", { timeoutMs: 200 })).toMatchObject({ exitCode: 124, stdout: "done\n" });
  expect(await exec("sleep 60 >/dev/null 2>&1 & echo done", { timeoutMs: 60_000 })).toMatchObject({ exitCode: 0 });
});

test("a command may be silent for longer than anybody waits for an answer's head", async () => {
  expect(await silent).toMatchObject({ exitCode: 0, stdout: "at last\n" });
});

test("a command sent before the sandbox runs is answered when it does", async () => {
  const provision = await bed.fleet.provision({ template: "cmux-base" });
  const early = await bed.fleet.exec({ sandboxId: provision.sandboxId, command: "echo early" });
  expect(await early.status()).toMatchObject({ status: "queued", waitingFor: expect.any(String) });
  expect(await early.result({ timeoutMs: 60_000 })).toMatchObject({ exitCode: 0, stdout: "early\n" });
  expect(await provision.status()).toMatchObject({ status: "succeeded" });
});

test("one that waits for a sandbox that fails ends as sandbox_gone", async () => {
  const provision = await bed.fleet.provision({ template: "cmux-base", setup: ["exit 1"] });
  const early = await bed.fleet.exec({ sandboxId: provision.sandboxId, command: "touch never" });
  await failure(provision.result({ timeoutMs: 60_000 }), "setup_failed");
  await failure(early.result({ timeoutMs: 60_000 }), "sandbox_gone");
});

test("one that waits longer than its own time ends as not_ready", async () => {
  bed.pve.faults.lock(9_001, "backup");
  const provision = await bed.fleet.provision({ template: "cmux-base" });
  const early = await bed.fleet.exec({ sandboxId: provision.sandboxId, command: "true", timeoutMs: 100 });
  await failure(early.result({ timeoutMs: 60_000 }), "not_ready");
  bed.pve.faults.lock(9_001, null);
  await provision.result({ timeoutMs: 60_000 });
});

describe("refused", () => {
  test("sandboxes that are not there, gone or stopped", async () => {
    const unknown = bed.fleet.exec({ sandboxId: "sbx_0000000000000000", command: "true" });
    await failure(unknown, "sandbox_not_found");
    const { sandboxId } = await provisionOne(bed.fleet);
    await run(bed.fleet, "power", { sandboxId, action: "stop" });
    await failure(run(bed.fleet, "exec", { sandboxId, command: "true" }), "not_running");
    await run(bed.fleet, "destroy", { sandboxId });
    await failure(bed.fleet.exec({ sandboxId, command: "true" }), "sandbox_gone");
  });

  test("a container that has stopped behind our back", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    bed.pve.faults.crash(vmid);
    await failure(run(bed.fleet, "exec", { sandboxId, command: "true" }), "not_running");
    await run(bed.fleet, "destroy", { sandboxId });
  });

  test("a token that execd does not take, after it was read once more", async () => {
    const { sandboxId } = await provisionOne(bed.fleet);
    await secrets().put(sandboxId, { execToken: "0".repeat(64) }, { expiresInSec: 600 });
    const handle = await bed.fleet.exec({ sandboxId, command: "true" });
    await failure(handle.result({ timeoutMs: 60_000 }), "execd_unauthorized");
    await run(bed.fleet, "destroy", { sandboxId });
  });
});

const secrets = () => createSecretStore(bed.redis, bed.keys, [Buffer.from(String(bed.env["FLEET_SECRET_KEY"]), "hex")]);

/** A sandbox that has a token and no daemon yet. */
async function mute() {
  const one = await provisionOne(bed.fleet, { template: "mute", waitFor: "address" });
  await secrets().put(one.sandboxId, { execToken: "a".repeat(64) }, { expiresInSec: 600 });
  return one;
}

describe("a daemon that can't be reached", () => {
  test("is tried again until it is up, and the command runs once", async () => {
    const { sandboxId, vmid, address } = await mute();
    const handle = await bed.fleet.exec({ sandboxId, command: "echo ran >> ran.log; cat ran.log" });
    expect(await firstFailure(handle)).toBe("execd_unreachable");
    const root = rootOf(vmid);
    const daemon = await startExecd({
      address,
      token: "a".repeat(64),
      workspace: root,
      files: true,
      shell: { cwd: root, env: { PATH: String(process.env["PATH"]) } },
      thawed: () => Promise.resolve(),
      onCommand: () => {},
    });
    expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ exitCode: 0, stdout: "ran\n" });
    daemon.closeAllConnections();
    daemon.close();
  });

  test("ends the operation when attempts or time are used up", async () => {
    const { sandboxId } = await mute();
    const [tried, late] = [
      await bed.fleet.exec({ sandboxId, command: "true" }),
      await bed.fleet.exec({ sandboxId, command: "true", idempotent: true }),
    ];
    await Promise.all([useUpAttempts(bed, tried, 6), useUpTime(bed, late, 87_000_000)]);
    await failure(tried.result({ timeoutMs: 60_000 }), "execd_unreachable");
    await failure(late.result({ timeoutMs: 60_000 }), "timeout");
  });
});

test("a connection that breaks in the middle ends as exec_interrupted: it may have run", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  const handle = await bed.fleet.exec({ sandboxId, command: "echo begun > begun; sleep 60" });
  await until(() => existsSync(join(rootOf(vmid), "begun")), "the command to begin");
  bed.pve.faults.crash(vmid);
  await failure(handle.result({ timeoutMs: 60_000 }), "exec_interrupted");
  await run(bed.fleet, "destroy", { sandboxId });
});

test.each(["is heard of", "is written down only, as when the wake-up is lost"])(
  "a cancel that %s kills the command",
  async (how) => {
    const pidFile = join(rootOf(box.vmid), "pid");
    const handle = await bed.fleet.exec({
      sandboxId: box.sandboxId,
      command: "rm -f pid; (while :; do sleep 60; done) & echo $! > pid; sleep 61; touch survived",
    });
    await until(async () => (await handle.status()).step === "sent", "the command to be sent");
    await until(() => existsSync(pidFile) && readFileSync(pidFile, "utf8").endsWith("\n"), "the command to begin");
    const begun = performance.now();
    if (how === "is heard of") expect(await handle.cancel()).toBe(true);
    else {
      const abort = JSON.stringify({ code: "canceled", message: "canceled by its producer", facts: {} });
      await bed.redis.hset(bed.keys.operation(handle.id), "abort", abort);
    }
    await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
    expect(performance.now() - begun).toBeLessThan(2_000);
    const pid = Number(readFileSync(pidFile, "utf8"));
    await until(() => !existsSync(`/proc/${pid}/cwd`) || null, "the command to be gone");
    expect(existsSync(join(rootOf(box.vmid), "survived"))).toBe(false);
    expect(await handle.cancel()).toBe(false);
  },
);
