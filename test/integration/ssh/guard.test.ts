import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import ssh2, { type Client } from "ssh2";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { toGuardScript } from "../../../producers/cli/ssh-guard.ts";
import type { NodeCommand } from "../../../shared/node-commands.ts";
import { toCommandLine } from "../../../shared/node-commands.ts";
import { anyText } from "../../any-text.ts";
import { failure } from "../fleet/harness.ts";
import { CT, call, PVE1, RANGE, type Rig, startRig } from "./rig.ts";

const EXEC = toCommandLine({ verb: "exec", vmid: CT.up, script: "", timeoutMs: 1_000 });
const SHELL = toCommandLine({ verb: "shell", vmid: CT.up, script: "" });
const PROCESS = toCommandLine({ verb: "process", pid: 4_711 });

/** What a thief of the key might send. None may reach a tool. */
const ATTACKS: string[] = [
  "",
  " ",
  "id",
  "sh",
  "bash -c id",
  "pct unlock 20001",
  "lxc-freeze -n 20001",
  "read -r go; exec pct unlock 20001",
  "read -r go && exec id",
  "pct",
  "pct list",
  "pct destroy 20001",
  "read -r go && exec pct unlock",
  "read -r go && exec pct unlock ",
  "read -r go && exec pct unlock 500",
  "read -r go && exec pct unlock 100",
  "read -r go && exec pct unlock 19999",
  "read -r go && exec pct unlock 30000",
  "read -r go && exec pct unlock 020001",
  "read -r go && exec pct unlock +20001",
  "read -r go && exec pct unlock -20001",
  "read -r go && exec pct unlock 20001 ",
  "read -r go && exec pct unlock  20001",
  "read -r go && exec pct unlock\t20001",
  "read -r go && exec pct unlock 20001;id",
  "read -r go && exec pct unlock 20001 && id",
  "read -r go && exec pct unlock 20001\nid",
  "read -r go && exec pct unlock 20001\n",
  "\nread -r go && exec pct unlock 20001",
  "read -r go && exec pct unlock $(id)",
  "read -r go && exec pct unlock `id`",
  "read -r go && exec pct unlock 2000?",
  "read -r go && exec pct unlock *",
  "read -r go && exec pct unlock 20001 --force",
  "read -r go && exec pct unlock 0x4e21",
  "read -r go && exec pct unlock 2e4",
  "read -r go && exec pct unlock ٢٠٠٠١",
  "read -r go && exec pct unlock 99999999999999999999999999",
  "read -r go && exec pct unlock 18446744073709571617",
  `read -r go && exec pct unlock ${"2".repeat(50_000)}`,
  "read -r go && exec pct unlock 20003", // a template
  "read -r go && exec lxc-freeze -n 20003",
  "read -r go && exec lxc-unfreeze -n 20003",
  "read -r go && exec lxc-freeze -n 500",
  "read -r go && exec lxc-freeze -n 20001 -P /tmp",
  "read -r go && exec lxc-freeze -n 20001,20002",
  "read -r go && exec lxc-freeze -P /tmp -n 20001",
  "read -r go && exec lxc-unfreeze -n ../20001",
  "lxc-info -s -H -n 500",
  "lxc-info -n 20001",
  "lxc-attach -n 20001 -- id",
  "/usr/sbin/pct unlock 20001",
  "PATH=/tmp pct unlock 20001",
  "pct exec 20001 -- id",
  "pct exec 20001 -- /bin/bash -c id",
  "pct exec 20001 -- /bin/bash -c 'id' fleet-exec ''",
  EXEC.replace("20001", "500"),
  SHELL.replace("20001", "20003"),
  SHELL.replace("20001", "20001 -- id; pct exec 20001"),
  SHELL.replace("raw", "raw; id;"),
  `${SHELL}; id`,
  SHELL.slice(0, -1),
  EXEC.replace("20001", "20003"),
  EXEC.replace("20001", "20001 20001"),
  EXEC.replace("20001", "20001 -- id; pct exec 20001"),
  EXEC.replace("20001", "$(id)"),
  `${EXEC}; id`,
  `${EXEC} id`,
  `${EXEC}\nid`,
  `id; ${EXEC}`,
  EXEC.replace("set -m", "set -m; id"),
  EXEC.slice(0, -1),
  `${EXEC}${EXEC.slice("pct exec 20001".length)}`,
  PROCESS.replaceAll("4711", "4711/../1"),
  PROCESS.replaceAll("4711", "*"),
  PROCESS.replaceAll("4711", "self"),
  PROCESS.replaceAll("4711", "1;id"),
  `${PROCESS}; id`,
  "cat /proc/1/environ",
  "pgrep -s 1",
  "scp -t /",
  "/usr/lib/openssh/sftp-server",
  "internal-sftp",
  "rsync --server . /",
  "-c id",
  "--",
  "!!",
  "'",
  "fleet-ssh-guard: ",
];

describe("over SSH", () => {
  let rig: Rig;
  beforeAll(async () => {
    rig = await startRig({ guard: RANGE });
    const configs = join(rig.ssh.folder, "pve1", "configs");
    writeFileSync(join(configs, `${CT.template}.conf`), "arch: amd64\nhostname: base\ntemplate: 1\n");
    writeFileSync(join(configs, `${CT.up}.conf`), "arch: amd64\n\n[before]\ntemplate: 1\n");
  });
  afterAll(() => rig[Symbol.asyncDispose]());

  test("no attack reaches a tool, each is told no and logged without its text", async () => {
    await using client = await connect(rig);
    const before = rig.pve.toolCalls().length;
    const left = [...ATTACKS];
    // sshd allows 10 sessions, and frees one a moment after its channel is closed.
    for (let some = left.splice(0, 5); some.length > 0; some = left.splice(0, 5)) {
      for (const { attack, ...end } of await Promise.all(some.map((attack) => client.send(attack)))) {
        const shown = { attack: attack.slice(0, 100), ...end };
        expect(shown).toMatchObject({ code: 77, stdout: "" });
        expect(shown.stderr).toMatch(/^fleet-ssh-guard: [a-zA-Z0-9 ,'-]+\n$/);
      }
    }
    expect(rig.pve.toolCalls()).toHaveLength(before);
    const log = readFileSync(join(rig.ssh.folder, "pve1", "log"), "utf8");
    expect(log.trim().split("\n")).toHaveLength(ATTACKS.length);
    for (const word of ["destroy", "passwd", "$(", "environ", "; id", "rsync"]) expect(log).not.toContain(word);
  });

  test("nothing but a verb: no forwarding, no sftp, no other program, on a terminal neither", async () => {
    await using client = await connect(rig);
    const before = rig.pve.toolCalls().length;
    for (const attack of ["", "bash", "pct enter 20001", SHELL.replace("20001", "500")]) {
      const end = await client.send(attack, { pty: true });
      expect(end).toMatchObject({ code: 77, stdout: expect.stringMatching(/^fleet-ssh-guard: [a-zA-Z0-9 ,'-]+\r\n$/) });
    }
    await expect(client.open((done) => client.it.shell(done))).resolves.toBeUndefined(); // the guard, which refuses it
    expect(rig.pve.toolCalls()).toHaveLength(before);
    await expect(client.open((done) => client.it.forwardOut("127.0.0.1", 1, "127.0.0.1", 22, done))).rejects.toThrow();
    await expect(client.open((done) => client.it.sftp(done as never))).rejects.toThrow();
  });

  test("a terminal that sshd does not give is told with what is missing", async () => {
    const keys = join(rig.ssh.folder, "pve1", "authorized_keys");
    const line = readFileSync(keys, "utf8");
    writeFileSync(keys, line.replace("restrict,pty", "restrict"));
    const terminal = { cols: 80, rows: 24, term: "xterm", ...call(), ready: async () => {}, onOutput: () => {} };
    const opening = rig.shell().open(PVE1, { verb: "shell", vmid: CT.up, script: "true" }, terminal);
    expect((await failure(opening, "ssh_refused")).text).toContain("restrict,pty");
    writeFileSync(keys, line);
    const refused = rig.shell().open(PVE1, { verb: "shell", vmid: CT.template, script: "true" }, terminal);
    expect((await failure(refused, "ssh_refused")).text).toContain("is a template");
    const off = rig.shell().open(PVE1, { verb: "shell", vmid: CT.off, script: "true" }, terminal);
    await failure(off, "not_running");
  });

  test("a refusal is an error of its own, never tried again", async () => {
    const unlock = (vmid: typeof CT.up) => rig.shell().run(PVE1, { verb: "unlock", vmid }, call());
    const error = await failure(unlock(CT.foreign), "ssh_refused");
    expect(error.text).toContain("CT 500 is not within 20000-29999");
    expect(error.policy).toBe("never");
    expect((await failure(unlock(CT.template), "ssh_refused")).text).toContain("is a template");
  });
});

describe("the script alone", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "ssh-guard-"));
    const tools = join(folder, "tools");
    mkdirSync(tools);
    for (const tool of ["pct", "lxc-freeze", "lxc-unfreeze", "lxc-info", "cat", "pgrep", "logger"]) {
      const write = tool === "logger" ? "" : `printf '%s\\0' ${tool} "$@" >>${join(folder, "ran")}`;
      writeFileSync(join(tools, tool), `#!/bin/sh\n${write}\n`, { mode: 0o755 });
    }
    writeFileSync(
      join(folder, "guard"),
      toGuardScript({ range: RANGE, path: `${tools}:/usr/bin:/bin`, configs: folder }),
    );
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  /** What was run, as words. */
  const ask = async (command: string, shell = "sh"): Promise<{ code: number | null; ran: string[] }> => {
    const ran = join(folder, "ran");
    await rm(ran, { force: true });
    const env = { SSH_ORIGINAL_COMMAND: command, PATH: "/nonexistent" };
    const { status } = spawnSync(`/bin/${shell}`, [join(folder, "guard")], {
      env,
      cwd: folder,
      timeout: 5_000,
      input: "go\n",
    });
    return { code: status, ran: existsSync(ran) ? readFileSync(ran, "utf8").split("\0").slice(0, -1) : [] };
  };

  const vmid = fc.integer({ min: 19_990, max: 30_010 });
  const noise = fc.oneof(
    fc.string({ unit: fc.constantFrom(..." \t\n;&|$`'\"\\*?[]()<>#~=-/019"), maxLength: 6 }),
    anyText(4).filter((text) => !text.includes("\0")),
  );
  const near = fc
    .tuple(
      fc.constantFrom("freeze", "unfreeze", "state", "unlock", "exec", "shell", "process"),
      vmid,
      noise,
      fc.double({ min: 0, max: 1 }),
    )
    .map(([verb, number, text, at]) => {
      const line = toCommandLine({ verb, vmid: number, pid: number, script: "", timeoutMs: 1 } as NodeCommand);
      // Near the number, where it is parsed; else anywhere.
      const middle = line.indexOf(String(number)) + (at < 0.5 ? 0 : String(number).length);
      return { line: `${line.slice(0, middle)}${text}${line.slice(middle)}`, number, verb, untouched: text === "" };
    });

  test("what is not exactly one of our lines runs nothing; what is runs with that number", async () => {
    await fc.assert(
      fc.asyncProperty(near, async ({ line, number, verb, untouched }) => {
        const { code, ran } = await ask(line);
        if (ran.length === 0) {
          expect(code).toBe(77);
          return;
        }
        // It ran: then the line was the one for the number that the tool got, and that was in the range.
        const got = Number(/\d+/.exec(verb === "process" ? (ran.at(-1) ?? "") : ran.slice(1).join(" "))?.[0]);
        expect(line).toBe(toCommandLine({ verb, vmid: got, pid: got, script: "", timeoutMs: 1 } as NodeCommand));
        if (verb !== "process") expect(got >= RANGE.first && got <= RANGE.last).toBe(true);
        if (untouched) expect(got).toBe(number);
      }),
      { numRuns: 150 },
    );
  });

  test.each(["sh", "bash"])("%s: the tool gets exactly the words that a shell makes of our line", async (shell) => {
    const run = (line: string) => {
      const before = join(folder, "ran");
      execFileSync("/bin/bash", ["-c", line], {
        env: { PATH: join(folder, "tools") },
        cwd: folder,
        input: "go\n",
        stdio: ["pipe", "ignore", "ignore"],
      });
      const words = readFileSync(before, "utf8").split("\0").slice(0, -1);
      return words;
    };
    for (const verb of ["freeze", "unfreeze", "state", "unlock", "exec", "shell"] as const) {
      const line = toCommandLine({ verb, vmid: CT.up, script: "", timeoutMs: 1 });
      await rm(join(folder, "ran"), { force: true });
      const words = run(line);
      expect(await ask(line, shell)).toEqual({ code: 0, ran: words });
    }
    expect((await ask(PROCESS, shell)).ran).toEqual(["cat", "/proc/uptime", "/proc/4711/stat", "pgrep", "-s", "4711"]);
  });
});

interface Sender extends AsyncDisposable {
  readonly it: Client;
  send(
    attack: string,
    options?: { pty?: boolean },
  ): Promise<{ attack: string; code: number | null; stdout: string; stderr: string }>;
  open(ask: (done: (error: Error | undefined) => void) => void): Promise<void>;
}

/** A client that sends what it likes. */
async function connect(rig: Rig): Promise<Sender> {
  const { host, port } = rig.ssh.node(PVE1);
  const client = new ssh2.Client();
  const ready = Promise.withResolvers<void>();
  client.on("ready", ready.resolve).on("error", ready.reject);
  const username = rig.ssh.env["FLEET_SSH_USER"] ?? "";
  client.connect({ host, port, username, privateKey: readFileSync(join(rig.ssh.folder, "user_key")) });
  await ready.promise;
  return {
    it: client,
    open: (ask) => new Promise((resolve, reject) => ask((error) => (error ? reject(error) : resolve()))),
    send: (attack, options = {}) =>
      new Promise((resolve, reject) => {
        client.exec(attack, options, (error, channel) => {
          if (error) return reject(error);
          const text = { stdout: "", stderr: "" };
          let code: number | null = null;
          channel.on("data", (chunk: Buffer) => (text.stdout += chunk));
          channel.stderr.on("data", (chunk: Buffer) => (text.stderr += chunk));
          channel.on("exit", (value: number | null) => {
            code = value;
          });
          channel.on("close", () => resolve({ attack, code, ...text }));
        });
      }),
    async [Symbol.asyncDispose]() {
      client.end();
    },
  };
}
