/** A real Caddy on a port of 127.0.0.1; with certificates of its own authority, or of another that the Caddyfile names. */
import { once } from "node:events";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, startServerProcess } from "./server-process.ts";

export interface Caddy extends AsyncDisposable {
  readonly port: number;
  /** Certificate of its authority. */
  readonly caFile: string;
  authority(): string;
  /** Certificate that signs those of the hosts: what a browser is told to trust. */
  issuer(): string;
}

export interface CaddyOptions {
  port?: number;
  /** More global options. */
  global?: string;
  env?: Record<string, string>;
}

/** With a Caddyfile as `fleet proxy caddy` prints it: only where it listens and keeps things is changed. */
export async function startCaddy(caddyfile: string, secret: string, options: CaddyOptions = {}): Promise<Caddy> {
  await using stack = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), "caddy-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const { port = await freePort(), global = "" } = options;
  const own = `\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\thttps_port ${port}\n\tdefault_bind 127.0.0.1\n\tstorage file_system ${folder}\n${global}`;
  const file = join(folder, "Caddyfile");
  writeFileSync(file, caddyfile.replace("\n{\n", `\n{\n${own}`));
  stack.use(
    await startServerProcess({
      command: "caddy",
      args: ["run", "--config", file, "--adapter", "caddyfile"],
      env: { ...options.env, HOME: folder, GATE_PROXY_SECRET: secret },
      isUp: () => canConnect(port),
    }),
  );
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
