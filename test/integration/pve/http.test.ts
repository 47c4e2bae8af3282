import { once } from "node:events";
import { connect as connectPlain } from "node:net";
import { connect, type TLSSocket } from "node:tls";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Client } from "../../pve/client.ts";
import { type Pve, startPve } from "../../pve/index.ts";

describe("HTTP", () => {
  let pve: Pve;
  let client: Client;
  beforeAll(async () => {
    pve = await startPve({ timings: { apiScale: 0, timeScale: 0.01, authDelay: 150 } });
    client = new Client(pve);
  });
  afterAll(async () => {
    await client.close();
    await pve.close();
  });

  async function open(): Promise<TLSSocket> {
    const socket = connect({ port: Number(new URL(pve.url).port), host: "127.0.0.1", ca: pve.caPem });
    await once(socket, "secureConnect");
    return socket;
  }

  /** Sends one raw request and reads until the server closes. */
  async function raw(
    method: string,
    path: string,
    { headers = [], body = "" }: { headers?: string[]; body?: string } = {},
  ): Promise<string> {
    const socket = await open();
    const head = [
      `${method} /api2/json${path} HTTP/1.1`,
      "Host: x",
      `Authorization: PVEAPIToken=${pve.token}`,
      ...headers,
    ];
    socket.write(`${head.join("\r\n")}\r\n\r\n${body}`);
    let text = "";
    socket.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes("Keep-Alive")) socket.end();
    });
    await once(socket, "close");
    return text;
  }

  const withBody = (type: string, body: string) => ({
    headers: [`Content-Type: ${type}`, `Content-Length: ${body.length}`],
    body,
  });

  it("has a certificate of its own for 127.0.0.1, with the fingerprint that it says", async () => {
    const socket = await open();
    expect(socket.authorized).toBe(true);
    expect(socket.getPeerCertificate().fingerprint256).toBe(pve.fingerprint);
    socket.destroy();
  });

  it("delays every 401, without a body", async () => {
    const answer = await client.ask("GET", "/version", {}, { token: "root@pam!fleet=wrong" });
    expect(answer).toMatchObject({ status: 401, reason: "invalid token value!", body: "" });
    expect(answer.ms).toBeGreaterThan(145);
    await using nine = await startPve({ version: "9.2", timings: { authDelay: 0 } });
    await using other = new Client(nine);
    expect((await other.ask("GET", "/version", {}, { token: "x" })).reason).toBe("Authentication failed!");
  });

  it("closes a connection after 100 requests and after any error", async () => {
    const socket = await open();
    let text = "";
    socket.on("data", (chunk: Buffer) => {
      text += chunk.toString();
    });
    const ended = once(socket, "close");
    const one = `GET /api2/json/version HTTP/1.1\r\nHost: x\r\nAuthorization: PVEAPIToken=${pve.token}\r\n\r\n`;
    for (let index = 1; index <= 100; index += 1) {
      socket.write(one);
      await expect.poll(() => text.match(/HTTP\/1\.1 200 OK/g)?.length ?? 0, { interval: 1 }).toBe(index);
    }
    await ended;
    expect(text.match(/Connection: Keep-Alive/g)).toHaveLength(99);
    expect(text).not.toMatch(/^Keep-Alive:/m);
    expect(await raw("GET", "/nosuchpath")).toMatch(
      /^HTTP\/1\.1 501 Method 'GET \/nosuchpath' not implemented\r\n[\s\S]*Connection: close/,
    );
  });

  it("takes forms only", async () => {
    const path = "/nodes/pve1/lxc/9001/config";
    expect(await raw("PUT", path, { headers: ["Transfer-Encoding: chunked"], body: "0\r\n\r\n" })).toMatch(
      /^HTTP\/1\.1 501 chunked transfer encoding not supported/,
    );
    expect(
      await raw("DELETE", "/nodes/pve1/lxc/7777", withBody("application/x-www-form-urlencoded", "force=1")),
    ).toMatch(/501 Unexpected content for method 'DELETE'[\s\S]*Unexpected content/);
    expect(await raw("PUT", path, withBody("text/plain", "a=1"))).toMatch(
      /506 upload 'Content-Type 'text\/plain' not implemented/,
    );
    expect(
      await raw("PUT", path, withBody("application/x-www-form-urlencoded", `description=${"x".repeat(600_000)}`)),
    ).toMatch(/501 for data too large/);
    expect(await raw("PUT", path, { headers: ["Content-Type: application/json"] })).toMatch(
      /500 malformed JSON string/,
    );
    expect(await raw("PUT", path, withBody("application/x-www-form-urlencoded", "tags=a;b"))).toMatch(
      /400 Parameter verification failed/,
    );
    expect(await raw("PUT", path, withBody("application/x-www-form-urlencoded", "protection=false"))).toContain(
      "type check ('boolean') failed - got 'false'",
    );
  });

  it("sends plain HTTP to HTTPS", async () => {
    const socket = connectPlain(Number(new URL(pve.url).port), "127.0.0.1");
    socket.write("GET /api2/json/version HTTP/1.1\r\nHost: 127.0.0.1:8006\r\n\r\n");
    const [chunk] = (await once(socket, "data")) as [Buffer];
    expect(chunk.toString()).toMatch(
      /^HTTP\/1\.1 301 Moved Permanently[\s\S]*Location: https:\/\/127\.0\.0\.1:8006\/api2\/json\/version/,
    );
    socket.destroy();
  });

  it("filters lists and refuses by privilege, through pools too", async () => {
    await client.data("POST", "/pools", { poolid: "fleet" });
    const token = pve.addToken({
      user: "cmux@pve",
      id: "fleet",
      privileges: {
        "/pool/fleet": ["VM.Allocate", "VM.Audit", "VM.PowerMgmt", "Pool.Audit"],
        "/vms/9001": ["VM.Clone", "VM.Audit"],
        "/storage": ["Datastore.AllocateSpace"],
        "/sdn/zones/localnetwork/vmbr0": ["SDN.Use"],
      },
    });
    const ask = (method: string, path: string, params = {}) => client.ask(method, path, params, { token });
    const clone = "/nodes/pve1/lxc/9001/clone";
    expect((await ask("POST", clone, { newid: 300 })).reason).toBe("Permission check failed");
    const made = await ask("POST", clone, { newid: 300, pool: "fleet" });
    expect(made.status).toBe(200);
    await client.quiet();
    expect((await ask("POST", "/nodes/pve1/lxc/300/status/start")).status).toBe(200);
    expect((await ask("POST", "/nodes/pve1/lxc/9001/status/start")).reason).toBe(
      "Permission check failed (/vms/9001, VM.PowerMgmt)",
    );
    const list = JSON.parse((await ask("GET", "/nodes/pve1/lxc")).body) as { data: { vmid: number }[] };
    expect(list.data.map(({ vmid }) => vmid).sort()).toEqual([300, 9001]);
    await client.quiet();
  });

  it("lists five thousand containers quickly", async () => {
    await using big = await startPve({ nodes: 1, timings: { apiScale: 0 } });
    await using other = new Client(big);
    for (let vmid = 10_000; vmid < 15_000; vmid += 1) big.addTemplate({ vmid, template: false });
    for (const path of ["/nodes/pve1/lxc", "/cluster/resources"]) {
      const times: number[] = [];
      for (let round = 0; round < 5; round += 1) {
        // Of this process, client and server: what else the machine does takes nothing of it.
        const before = process.cpuUsage();
        expect((await other.ask("GET", path)).status).toBe(200);
        const { user, system } = process.cpuUsage(before);
        times.push((user + system) / 1_000);
      }
      // Generous. On a machine that does nothing else it takes about 20 ms.
      expect(Math.min(...times)).toBeLessThan(150);
    }
  });
});
