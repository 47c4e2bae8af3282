/** A real pebble, Let's Encrypt's own test server: an authority that gives certificates after it has looked at each host. */
import { once } from "node:events";
import { mkdtempSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { get } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeCertificate } from "./pve/certificate.ts";
import { freePort, startServerProcess } from "./server-process.ts";

export interface Pebble extends AsyncDisposable {
  /** For `acme_ca` and `acme_ca_root` of a Caddyfile. */
  readonly directory: string;
  readonly caFile: string;
  /** Its root certificate, which nobody else knows. */
  root(): Promise<string>;
}

/** `dns`: asked for the hosts' names. `tlsPort`, `httpPort`: where it looks at them, in place of 443 and 80. */
export async function startPebble(options: { dns: string; tlsPort: number; httpPort: number }): Promise<Pebble> {
  await using stack = new AsyncDisposableStack();
  const folder = mkdtempSync(join(tmpdir(), "pebble-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const { cert, key } = await makeCertificate();
  const [certificate, privateKey, file] = [join(folder, "cert.pem"), join(folder, "key.pem"), join(folder, "config")];
  writeFileSync(certificate, cert);
  writeFileSync(privateKey, key);
  const [listenAddress, managementListenAddress] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
  const { dns, tlsPort, httpPort } = options;
  const pebble = { listenAddress, managementListenAddress, certificate, privateKey, tlsPort, httpPort };
  writeFileSync(file, JSON.stringify({ pebble }));
  const root = async () => {
    const asked = get(`https://${managementListenAddress}/roots/0`, { ca: cert, agent: false });
    const [response] = await once(asked, "response");
    let pem = "";
    for await (const chunk of response) pem += chunk;
    return pem;
  };
  stack.use(
    await startServerProcess({
      command: "pebble",
      args: ["-config", file, "-dnsserver", dns],
      env: { PEBBLE_VA_NOSLEEP: "1" },
      isUp: () =>
        root().then(
          () => true,
          () => false,
        ),
    }),
  );
  const resources = stack.move();
  return {
    directory: `https://${listenAddress}/dir`,
    caFile: certificate,
    root,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}
