import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { makeKey } from "../../ssh/nodes.ts";
import { failure, until } from "../fleet/harness.ts";
import { CT, call, exec, PVE1, type Rig, startRig } from "./rig.ts";

let rig: Rig;
beforeAll(async () => {
  rig = await startRig();
});
afterAll(() => rig[Symbol.asyncDispose]());

const state = (shell: ReturnType<Rig["shell"]>, more = {}) =>
  shell.run(PVE1, { verb: "state", vmid: CT.up }, call(more));
const node = () => rig.ssh.node(PVE1);
const file = (name: string) => join(rig.ssh.folder, name);
const folder = () => rig.pve.containers().find(({ vmid }) => vmid === CT.up)?.root ?? "";

describe("one connection", () => {
  test("20 calls at once share it, never more than 8 of them at a time, all of them served", async () => {
    await using shell = rig.shell();
    let up = 0;
    let most = 0;
    const done = Array.from({ length: 20 }, async (_, index) => {
      const { stdout } = await exec(shell, `echo up; until [ -e release ]; do sleep 0.05; done; echo ${index}`, {
        onOutput: (_stream, chunk) => {
          if (!chunk.toString().startsWith("up")) return;
          up += 1;
          most = Math.max(most, up);
        },
      });
      up -= 1;
      return stdout;
    });
    await until(async () => up === 8, "eight scripts");
    expect(node().connections()).toHaveLength(1);
    writeFileSync(join(folder(), "release"), "");
    expect((await Promise.all(done)).map((text) => text.replace("up\n", ""))).toEqual(
      done.map((_, index) => `${index}\n`),
    );
    expect([most, node().connections().length]).toEqual([8, 1]);
  });

  test("waves of short commands stay on it, although sshd frees sessions late", async () => {
    await using fast = await startRig();
    // As fast as the real one: the stand-in's way takes long enough to hide it.
    writeFileSync(join(fast.ssh.folder, PVE1, "tools", "lxc-info"), "#!/bin/sh\necho RUNNING\n");
    const shell = fast.shell();
    await state(shell);
    const before = fast.ssh.node(PVE1).connections();
    for (let wave = 0; wave < 40; wave += 1) await Promise.all(Array.from({ length: 8 }, () => state(shell)));
    expect(fast.ssh.node(PVE1).connections()).toEqual(before);
  });

  test("who waits in line leaves it with his signal, and the line goes on", async () => {
    await using shell = rig.shell();
    const abort = new AbortController();
    let up = 0;
    const onOutput = () => {
      up += 1;
    };
    const stop = new AbortController();
    const long = Array.from({ length: 8 }, () => exec(shell, "echo up; sleep 60", { onOutput, signal: stop.signal }));
    const ended = Promise.allSettled(long);
    await until(async () => up === 8, "eight scripts");
    const leaving = state(shell, { signal: abort.signal });
    const late = failure(state(shell, { deadlineMs: 100 }), "ssh_unreachable");
    const staying = state(shell);
    abort.abort(new Error("no longer"));
    await expect(leaving).rejects.toThrow("no longer");
    await late;
    stop.abort(new Error("stop"));
    expect((await staying).stdout).toBe("RUNNING\n");
    await ended;
  });

  test("a server with fewer sessions is given more connections", async () => {
    await using small = await startRig({ config: ["MaxSessions 2"] });
    const shell = small.shell();
    const all = await Promise.all(Array.from({ length: 6 }, () => exec(shell, "echo x; sleep 0.3")));
    expect(all.map(({ stdout }) => stdout)).toEqual(Array(6).fill("x\n"));
  });

  test("what closes ends what runs, and a closed shell runs nothing", async () => {
    const shell = rig.shell();
    const running = exec(shell, "echo up; sleep 60", { onOutput: () => void shell[Symbol.asyncDispose]() });
    await failure(running, "exec_interrupted");
    await failure(state(shell), "shutting_down");
    await until(async () => node().connections().length === 0, "the end of the connection");
  });
});

describe("weather", () => {
  test("a node that goes away in the middle: interrupted, then unreachable, then there again", async () => {
    await using shell = rig.shell();
    const lost = await failure(
      exec(shell, "echo up; sleep 60", { onOutput: () => void node().stop() }),
      "exec_interrupted",
    );
    expect(lost.facts).toEqual({ node: PVE1, verb: "exec" });
    const refused = await failure(state(shell), "ssh_unreachable");
    expect(refused.facts).toMatchObject({ node: PVE1, host: node().host, port: node().port, reason: "ECONNREFUSED" });
    await node().start();
    expect((await state(shell)).stdout).toBe("RUNNING\n");
  });

  test("a connection that was lost while idle is replaced without a word", async () => {
    await using shell = rig.shell();
    await state(shell);
    await node().stop();
    await node().start();
    expect((await state(shell)).stdout).toBe("RUNNING\n");
    // Before this side can have noticed.
    node().cut();
    expect((await state(shell)).stdout).toBe("RUNNING\n");
  });

  test("a server that hangs holds nobody past his deadline: in the middle, at a new session, at the door", async () => {
    await using shell = rig.shell();
    let hung = false;
    const begun = failure(
      exec(shell, "echo up; sleep 60", {
        deadlineMs: 1_500,
        onOutput: () => {
          node().hang();
          hung = true;
        },
      }),
      "exec_interrupted",
    );
    try {
      await until(async () => hung, "the script");
      const session = await failure(state(shell, { deadlineMs: 300 }), "ssh_unreachable");
      expect(session.text).toContain("no answer within 300 ms");
      await using other = rig.shell();
      await failure(state(other, { deadlineMs: 300 }), "ssh_unreachable");
      await begun;
    } finally {
      node().resume();
    }
    expect((await state(shell)).stdout).toBe("RUNNING\n");
  });

  test("what waits for a session when its time is up is not run later", async () => {
    await using shell = rig.shell();
    await state(shell);
    const before = rig.pve.toolCalls().length;
    node().hang();
    try {
      await failure(shell.run(PVE1, { verb: "freeze", vmid: CT.up }, call({ deadlineMs: 300 })), "ssh_unreachable");
      await failure(exec(shell, "touch late", { deadlineMs: 300 }), "ssh_unreachable");
    } finally {
      node().resume();
    }
    expect((await exec(shell, "ls late || echo none")).stdout).toBe("none\n");
    const tools = rig.pve.toolCalls().slice(before);
    expect(tools.filter(({ tool }) => tool === "lxc-freeze")).toEqual([]);
  });

  test.each([1, 2])(
    "what the guard of the run throws, asked for the %i. time, comes through, and nothing is run",
    async (nth) => {
      await using shell = rig.shell();
      const refusal = new FleetError("lock_lost", "the lock is lost");
      for (const verb of ["freeze", "exec"] as const) {
        let asked = 0;
        const guard = () => {
          asked += 1;
          if (asked === nth) throw refusal;
        };
        const command = { verb, vmid: CT.up, script: "touch guarded", timeoutMs: 1_000 } as const;
        await expect(shell.run(PVE1, command, call({ guard }))).rejects.toBe(refusal);
      }
      expect((await exec(shell, "ls guarded || echo none")).stdout).toBe("none\n");
      expect(rig.pve.toolCalls().filter(({ tool }) => tool === "lxc-freeze")).toEqual([]);
    },
  );

  test("input that no channel takes is refused before anything is sent", async () => {
    await failure(exec(rig.shell(), "a\0b"), "invalid_input");
    await failure(exec(rig.shell(), "cat", { stdin: Buffer.alloc(1_048_577) }), "invalid_input");
    const bad = { verb: "state" as const, vmid: Number.NaN as typeof CT.up };
    await failure(rig.shell().run(PVE1, bad, call()), "invalid_input");
  });
});

describe("trust", () => {
  test("an unknown host key is refused; the error says which it was and how to pin it", async () => {
    const error = await failure(
      state(rig.shell({ FLEET_SSH_HOST_KEYS: `other=${node().fingerprint}` })),
      "ssh_host_key_refused",
    );
    const { host, port, fingerprint } = node();
    expect(error.facts).toEqual({ node: PVE1, host, port, type: "ssh-ed25519", fingerprint });
    expect(error.text).toContain(`is unknown: ${fingerprint}.`);
    expect(error.text).toContain(`FLEET_SSH_HOST_KEYS=pve1=${fingerprint}`);
  });

  test("another host key than the pinned one is refused, and the node's tools are not reached", async () => {
    const other = makeKey(file("other_host"));
    const before = rig.pve.toolCalls().length;
    const error = await failure(
      state(rig.shell({ FLEET_SSH_HOST_KEYS: `pve1=${other.fingerprint}` })),
      "ssh_host_key_refused",
    );
    expect(error.text).toMatch(/is not the pinned one.*SHA256:/);
    expect(error.facts["fingerprint"]).toBe(node().fingerprint);
    expect(rig.pve.toolCalls()).toHaveLength(before);
  });

  test("a known_hosts file will do, hashed too; one with another key will not", async () => {
    const known = file("known_hosts");
    const pins = { FLEET_SSH_HOST_KEYS: "", FLEET_SSH_KNOWN_HOSTS: known };
    writeFileSync(known, `# ours\n${node().knownHost}\n`);
    expect((await state(rig.shell(pins))).stdout).toBe("RUNNING\n");
    execFileSync("ssh-keygen", ["-q", "-H", "-f", known], { stdio: "ignore" });
    expect((await state(rig.shell(pins))).stdout).toBe("RUNNING\n");
    writeFileSync(known, `[${node().host}]:${node().port} ${makeKey(file("third_host")).publicKey}\n`);
    await failure(state(rig.shell(pins)), "ssh_host_key_refused");
    writeFileSync(known, `@revoked * ${node().knownHost.split(" ").slice(1).join(" ")}\n`);
    const revoked = { ...pins, FLEET_SSH_HOST_KEYS: `pve1=${node().fingerprint}` };
    expect((await failure(state(rig.shell(revoked)), "ssh_host_key_refused")).text).toContain("revoked");
  });

  test("of a server with several keys the one that is known is asked for", async () => {
    const rsa = makeKey(file("rsa_host"), "rsa");
    await using two = await startRig({ config: [`HostKey ${rsa.file}`] });
    const known = file("known_rsa");
    const { host, port } = two.ssh.node(PVE1);
    writeFileSync(known, `[${host}]:${port} ${rsa.publicKey}\n`);
    const shell = two.shell({ FLEET_SSH_HOST_KEYS: "", FLEET_SSH_KNOWN_HOSTS: known });
    expect((await state(shell)).stdout).toBe("RUNNING\n");
  });

  test("a key that the node does not take", async () => {
    const error = await failure(state(rig.shell({ FLEET_SSH_KEY: makeKey(file("stranger")).file })), "ssh_refused");
    expect(error.text).toMatch(/does not take the key of FLEET_SSH_KEY for user .*authorized_keys/);
  });

  test("keys in every form that ssh-keygen makes, and passphrases", async () => {
    for (const type of ["rsa", "ecdsa"]) makeKey(file(`user_${type}`), type);
    expect(() => rig.shell({ FLEET_SSH_KEY: file("user_rsa") })).not.toThrow();
    const locked = makeKey(file("locked"), "ed25519", "open sesame");
    const FLEET_SSH_KEY = locked.file;
    expect(() => rig.shell({ FLEET_SSH_KEY, FLEET_SSH_KEY_PASSPHRASE: "open sesame" })).not.toThrow();
    expect(() => rig.shell({ FLEET_SSH_KEY })).toThrow("FLEET_SSH_KEY_PASSPHRASE is missing");
    expect(() => rig.shell({ FLEET_SSH_KEY, FLEET_SSH_KEY_PASSPHRASE: "wrong" })).toThrow(
      "FLEET_SSH_KEY_PASSPHRASE does not open the key",
    );
    const broken = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----";
    expect(() => rig.shell({ FLEET_SSH_KEY: broken })).toThrow(
      /^not_configured: FLEET_SSH_KEY is no private key(?!.*c2Vj)/,
    );
  });
});
