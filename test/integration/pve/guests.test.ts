import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Client } from "../../pve/client.ts";
import { type Pve, startPve, type TemplateSpec } from "../../pve/index.ts";

const FAST = { timeScale: 0.01, apiScale: 0 };
const TOKEN = "cd".repeat(32);
const line = `cmux-execd-auth-token=${TOKEN}`;

interface Line {
  type: string;
  data?: string;
  code?: number;
  message?: string;
}

async function post(
  address: string | undefined,
  body: unknown,
  options: { token?: string; signal?: AbortSignal } = {},
) {
  return fetch(`http://${address}:39375/exec`, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      ...(options.token ? { authorization: `Bearer ${options.token}` } : {}),
    },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...(options.signal ? { signal: options.signal } : {}),
  });
}

async function lines(response: Response): Promise<Line[]> {
  return (await response.text())
    .trim()
    .split("\n")
    .map((text) => JSON.parse(text) as Line);
}

async function gone(pid: number): Promise<void> {
  const running = () =>
    readFile(`/proc/${pid}/stat`, "utf8").then(
      (stat) => !/\) Z /.test(stat),
      () => false,
    );
  await expect.poll(running, { timeout: 30_000, interval: 20 }).toBe(false);
}

/** A started container of a template made for the test. */
async function guest(pve: Pve, client: Client, spec: TemplateSpec & { description?: string } = {}) {
  const { description, ...rest } = spec;
  const config = { ...rest.config, ...(description === undefined ? {} : { description }) };
  const vmid = pve.addTemplate({ ...rest, template: false, config });
  await client.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
  const find = () => pve.containers().find((container) => container.vmid === vmid);
  return { vmid, find, address: find()?.address };
}

describe("guests", () => {
  let pve: Pve;
  let client: Client;
  beforeAll(async () => {
    pve = await startPve({ nodes: 1, timings: FAST });
    client = new Client(pve);
  });
  afterAll(async () => {
    await client.close();
    await pve.close();
  });

  it("speaks execd's protocol", async () => {
    const { address } = await guest(pve, client);
    const run = async (body: unknown) => lines(await post(address, body));
    expect(await run({ command: "echo a; echo; printf 'b\\r\\n'; echo c >&2; exit 7" })).toEqual(
      expect.arrayContaining([
        { type: "stdout", data: "a" },
        { type: "stdout", data: "b" },
        { type: "stderr", data: "c" },
      ]),
    );
    expect((await run({ command: "exit 7" })).at(-1)).toEqual({ type: "exit", code: 7 });
    expect(await run({ command: "sleep 60", timeout_ms: 50 })).toEqual([
      { type: "error", message: "timeout after 50ms" },
      { type: "exit", code: 124 },
    ]);
    for (const body of ["{", { command: " " }, { command: "true", timeout_ms: -1 }]) {
      expect((await post(address, body)).status).toBe(400);
    }
    expect((await fetch(`http://${address}:39375/exec`)).status).toBe(405);
  });

  it("says nothing, not even its head, before the command does", async () => {
    const { address } = await guest(pve, client);
    let answered = false;
    const reply = post(address, { command: "touch begun; until [ -e go ]; do sleep 0.01; done; echo x" }).finally(
      () => {
        answered = true;
      },
    );
    await lines(await post(address, { command: "until [ -e begun ]; do sleep 0.01; done" }));
    expect(answered).toBe(false);
    await post(address, { command: "touch go" });
    expect(await lines(await reply)).toEqual([
      { type: "stdout", data: "x" },
      { type: "exit", code: 0 },
    ]);
  });

  it("kills bash alone, when the request is closed and when its time is up; the reply waits for who has its output", async () => {
    const { address } = await guest(pve, client);
    const cut = new AbortController();
    const command = "echo $$; sleep 1000 & echo $!; wait";
    const response = await post(address, { command }, { signal: cut.signal });
    const reader = response.body?.getReader();
    const decoder = new TextDecoder();
    let text = "";
    while (text.split("\n").length < 3) text += decoder.decode((await reader?.read())?.value, { stream: true });
    const [bash, child] = text.split("\n", 2).map((line) => Number((JSON.parse(line) as Line).data));
    cut.abort();
    await gone(bash ?? 0);
    const holding = `trap '' TERM; until [ -e let-go ]; do sleep 0.01; done & echo begun; exit 3`;
    const held = post(address, { command: holding, timeout_ms: 5_000 });
    expect(
      await lines(
        await post(address, { command: `kill -0 ${child} && kill ${child} && echo was there; touch let-go` }),
      ),
    ).toEqual([
      { type: "stdout", data: "was there" },
      { type: "exit", code: 0 },
    ]);
    expect((await lines(await held)).at(-1)).toEqual({ type: "exit", code: 3 });
    const late = await lines(await post(address, { command: "sleep 0.4; echo late", timeout_ms: 50 }));
    expect(late.at(-1)).toEqual({ type: "exit", code: 124 });
  });

  it("kills background processes that left their session when the container stops", async () => {
    const { address, vmid } = await guest(pve, client);
    const command =
      "setsid nohup sleep 1000 >/dev/null 2>&1 & echo $!; (setsid sleep 1001 >/dev/null 2>&1 &) ; pgrep -f '[s]leep 1001' | tail -1";
    const pids = (await lines(await post(address, { command }))).flatMap(({ data }) =>
      data === undefined ? [] : [Number(data)],
    );
    expect(pids.length).toBeGreaterThan(0);
    await client.task("POST", `/nodes/pve1/lxc/${vmid}/status/stop`);
    for (const pid of pids) await gone(pid);
  });

  it("unpacks a tar into the workspace, and lets a server answer on the guest's own address", async () => {
    const { address } = await guest(pve, client);
    const folder = await mkdtemp(join(tmpdir(), "tar-"));
    await writeFile(join(folder, "hello.txt"), "hello");
    const tar = spawn("tar", ["-c", "-C", folder, "hello.txt"], { stdio: ["ignore", "pipe", "inherit"] });
    const chunks: Buffer[] = [];
    for await (const chunk of tar.stdout) chunks.push(chunk as Buffer);
    const sent = await fetch(`http://${address}:39375/files`, { method: "POST", body: Buffer.concat(chunks) });
    expect(sent.status).toBe(200);
    await rm(folder, { recursive: true });
    const server = `require('http').createServer((q, r) => r.end(require('fs').readFileSync('workspace/hello.txt'))).listen(8080, process.env.SANDBOX_ADDRESS, () => console.log('up'))`;
    const response = await post(address, { command: `${process.execPath} -e "${server}"`, timeout_ms: 20_000 });
    await response.body?.getReader().read();
    expect(await (await fetch(`http://${address}:8080/`)).text()).toBe("hello");
  });

  it("takes the token that the hook hands over at the start, and only then", async () => {
    const { address, vmid, find } = await guest(pve, client, { description: `stamp\n${line}` });
    expect(find()?.tokenInForce).toBe(TOKEN);
    expect((await post(address, { command: "true" })).status).toBe(401);
    expect((await post(address, { command: "true" }, { token: TOKEN })).status).toBe(200);
    const next = "ef".repeat(32);
    await client.data("PUT", `/nodes/pve1/lxc/${vmid}/config`, { description: `cmux-execd-auth-token=${next}` });
    expect((await post(address, { command: "true" }, { token: TOKEN })).status).toBe(200);
    await client.task("POST", `/nodes/pve1/lxc/${vmid}/status/reboot`);
    expect(find()?.tokenInForce).toBe(next);
    expect(find()?.address).toBe(address);
  });

  it("is open to all without a hookscript, and when the hook fails", async () => {
    const without = await guest(pve, client, { hookscript: false, description: line });
    expect((await post(without.address, { command: "true" })).status).toBe(200);
    pve.faults.hookFailure();
    const failed = await guest(pve, client, { description: line });
    expect(failed.find()?.tokenInForce).toBeUndefined();
    expect((await post(failed.address, { command: "true" })).status).toBe(200);
  });

  it("does not answer while frozen", async () => {
    const { address, vmid } = await guest(pve, client);
    pve.faults.freeze(vmid);
    await expect(fetch(`http://${address}:39375/healthz`, { signal: AbortSignal.timeout(100) })).rejects.toThrow();
    const waiting = fetch(`http://${address}:39375/healthz`);
    pve.faults.unfreeze(vmid);
    expect((await waiting).status).toBe(200);
  });

  it("boots slowly, never opens execd, stops at once or fails to start, as its template says", async () => {
    const slow = await guest(pve, client, { guest: { bootMs: 20_000 } });
    expect(slow.address).toBeUndefined();
    await expect.poll(() => slow.find()?.address, { timeout: 30_000, interval: 20 }).toMatch(/^127\./);
    const mute = await guest(pve, client, { guest: { execd: false } });
    await expect(fetch(`http://${mute.address}:39375/healthz`)).rejects.toThrow();
    const brief = await guest(pve, client, { guest: { exitsAfterStart: true } });
    expect(pve.tasks().at(-1)?.exitstatus).toBe("OK");
    expect(brief.find()?.status).toBe("stopped");
    const broken = await guest(pve, client, { guest: { startError: "lxc_map_ids failed" } });
    expect(pve.tasks().at(-1)?.exitstatus).toBe(`startup for container '${broken.vmid}' failed`);
  });

  it("runs a command past execd, as pct exec does", async () => {
    const { vmid } = await guest(pve, client, { description: line });
    const response = await fetch(`${pve.controlUrl}/exec`, {
      method: "POST",
      body: JSON.stringify({ vmid, command: "cat .worker-auth-token" }),
    });
    expect((await lines(response))[0]).toEqual({ type: "stdout", data: TOKEN });
  });

  it("takes the token from the environment on 9.x", async () => {
    await using nine = await startPve({ nodes: 1, version: "9.2", timings: FAST });
    await using other = new Client(nine);
    const env = `A=b\0CMUX_EXECD_AUTH_TOKEN=${TOKEN}`;
    const old = await client.ask("PUT", "/nodes/pve1/lxc/9001/config", { env });
    expect(old).toMatchObject({ status: 400 });
    expect(old.body).toContain("property is not defined in schema");
    const vmid = nine.addTemplate({ template: false, hookscript: false });
    await other.data("PUT", `/nodes/pve1/lxc/${vmid}/config`, { env });
    await other.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
    expect(nine.containers().find((container) => container.vmid === vmid)?.tokenInForce).toBe(TOKEN);
    expect(JSON.stringify(nine.log())).not.toContain(TOKEN);
  });
});

describe("npm run pve", () => {
  it("leaves no process and no folder behind, even when it is killed", async () => {
    const main = join(import.meta.dirname, "../../pve/main.ts");
    const child = spawn(process.execPath, [main, "--nodes", "1", "--port", "0", "--time-scale", "0", "--json"], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [first] = (await once(child.stdout, "data")) as [Buffer];
    const control = (JSON.parse(first.toString()) as Record<string, string>)["PVE_CONTROL_URL"] ?? "";
    const ask = async (path: string, body: unknown) => {
      const response = await fetch(control + path, { method: "POST", body: JSON.stringify(body) });
      return response.text();
    };
    const { token, url } = (await (await fetch(`${control}/info`)).json()) as { token: string; url: string };
    await ask("/template", { vmid: 100, template: false });
    await start(url, token);
    const running = async () => JSON.stringify(await (await fetch(`${control}/containers`)).json());
    await expect.poll(running, { timeout: 30_000 }).toContain("running");
    const said = await ask("/exec", { vmid: 100, command: "setsid sleep 1000 >/dev/null 2>&1 & echo $!; pwd" });
    const [pid = 0, root = ""] = said
      .trim()
      .split("\n")
      .map((text) => (JSON.parse(text) as Line).data);
    expect(existsSync(String(root))).toBe(true);
    child.kill("SIGKILL");
    await once(child, "exit");
    await gone(Number(pid));
    const folder = /^.*\/pve-stand-in-[^/]+/.exec(String(root))?.[0] ?? "";
    expect(folder).not.toBe("");
    await expect
      .poll(
        () =>
          readdir(folder).then(
            () => true,
            () => false,
          ),
        { timeout: 30_000 },
      )
      .toBe(false);
  });

  async function start(url: string, token: string): Promise<void> {
    const { Agent, request } = await import("undici");
    const dispatcher = new Agent({ connect: { rejectUnauthorized: false } });
    const headers = { authorization: `PVEAPIToken=${token}` };
    await request(`${url}/api2/json/nodes/pve1/lxc/100/status/start`, { method: "POST", headers, dispatcher });
    await dispatcher.close();
  }
});
