/** A real Caddy on a port of 127.0.0.1, with certificates of its own authority. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "./integration/fleet/until.ts";

export interface Caddy extends AsyncDisposable {
  readonly port: number;
  /** Certificate of its authority. */
  readonly caFile: string;
  authority(): string;
  /** Certificate that signs those of the hosts: what a browser is told to trust. */
  issuer(): string;
}

/** With a Caddyfile as `fleet proxy caddy` prints it: only where it listens and keeps things is changed. */
export async function startCaddy(caddyfile: string, secret: string): Promise<Caddy> {
  await using stack = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), "caddy-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const port = await freePort();
  const own = `\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\thttps_port ${port}\n\tdefault_bind 127.0.0.1\n\tstorage file_system ${folder}\n`;
  const file = join(folder, "Caddyfile");
  writeFileSync(file, caddyfile.replace("\n{\n", `\n{\n${own}`));
  const child = spawn("caddy", ["run", "--config", file, "--adapter", "caddyfile"], {
    env: { PATH: process.env["PATH"], HOME: folder, GATE_PROXY_SECRET: secret },
    stdio: "ignore",
  });
  const kill = () => void child.kill("SIGKILL");
  process.on("exit", kill);
  const gone = once(child, "exit").catch((cause: unknown) => {
    throw new Error("caddy is missing; npm run setup installs it on Debian, else put it on PATH", { cause });
  });
  gone.catch(() => {}); // later it is its usual end
  stack.defer(async () => {
    process.off("exit", kill);
    kill();
    await gone.catch(() => {});
  });
  const early = gone.then(([code]) => Promise.reject(new Error(`caddy ended at once (${code})`)));
  await Promise.race([until(() => canConnect(port), "Caddy"), early]);
  const resources = stack.move();
  const caFile = join(folder, "pki/authorities/local/root.crt");
  return {
    port,
    caFile,
    authority: () => readFileSync(caFile, "utf8"),
    issuer: () => readFileSync(join(folder, "pki/authorities/local/intermediate.crt"), "utf8"),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : 0;
}

async function canConnect(at: number): Promise<boolean> {
  const socket = connect(at, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
