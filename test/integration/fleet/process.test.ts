/** Processes as operators see them: they end by themselves, and say what is wrong with their settings. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CHILD_ENV } from "../../child-env.ts";
import { type Bed, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ workers: "none", pve: { nodes: 1, timings: { authDelay: 50 } } });
});
afterAll(() => bed.close());

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** Runs a program to its own end. */
async function runToEnd(program: string, env: Record<string, string | undefined>) {
  const child = spawn(process.execPath, [here(program)], {
    env: { ...CHILD_ENV, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 50_000, // a PVE that does not answer is asked for 20 s
    killSignal: "SIGKILL",
  });
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk) => (out += String(chunk)));
  child.stderr.on("data", (chunk) => (err += String(chunk)));
  const [code] = (await once(child, "close")) as [number | null];
  return { code, out, err };
}

test("when all is closed nothing keeps the process alive", async () => {
  expect(await runToEnd("round-trip-process.ts", {})).toEqual({ code: 0, out: "done\n", err: "" });
});

const worker = (env: Record<string, string | undefined>) =>
  runToEnd("../../../workers/main.ts", { ...bed.env, ...env });

describe("a worker that can't work says why and ends with 1", () => {
  test("every bad variable at once, without its value", async () => {
    const { code, err } = await worker({
      REDIS_URL: undefined,
      PVE_API_TOKEN: "root@pam!x=oops",
      FLEET_NODE_SLOTS: "many",
    });
    expect(code).toBe(1);
    for (const name of ["REDIS_URL", "PVE_API_TOKEN", "FLEET_NODE_SLOTS"]) expect(err).toContain(name);
    expect(err).not.toMatch(/oops|many/);
  });

  test("a token that PVE does not take", async () => {
    const PVE_API_TOKEN = `root@pam!fleet=${"0".repeat(8)}-0000-0000-0000-${"0".repeat(12)}`;
    const { code, err } = await worker({ PVE_API_TOKEN });
    expect(code).toBe(1);
    expect(err).toMatch(/unauthorized.*PVE_API_TOKEN/);
    expect(err).not.toContain("000000000000");
  });

  test("a certificate that is not pinned, with the fingerprint to pin", async () => {
    const unpinned = await worker({ PVE_TLS_FINGERPRINT: undefined });
    expect(unpinned.code).toBe(1);
    expect(unpinned.err).toContain("tls_untrusted");
    expect(unpinned.err).toContain(bed.pve.fingerprint);
    const other = await worker({ PVE_TLS_FINGERPRINT: Array(32).fill("AB").join(":") });
    expect(other.code).toBe(1);
    expect(other.err).toContain("tls_untrusted");
  });

  test("a PVE that does not answer", async () => {
    const { code, err } = await worker({ PVE_API_URL: "https://127.0.0.1:1" });
    expect(code).toBe(1);
    expect(err).toContain("node_unreachable");
  });

  // Last: it reads the cluster first, which is good for a while for those that can't.
  test("a port that is taken, by its number and the setting", async () => {
    await using other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as AddressInfo; // a TCP server's
    const { code, err } = await worker({ FLEET_ROLES: "worker,ops", OPS_PORT: String(port) });
    expect(code).toBe(1);
    expect(err).toMatch(new RegExp(`not_configured: port ${port} is taken.*OPS_PORT`));
  });
});
