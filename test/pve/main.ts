import { parseArgs } from "node:util";
import { type Pve, type PveVersion, startPve } from "./index.ts";

const HELP = `npm run pve -- [options]

Runs a stand-in for a Proxmox VE cluster and prints the environment that the workers need.

  --nodes N          how many nodes, pve1 to pveN (default 3)
  --version V        8.4 (default) or 9.2
  --host ADDRESS     where the API listens (default 127.0.0.1)
  --port P           port of the API (default 8006)
  --control-port P   port of the control API (default: any)
  --time-scale F     factor on how long tasks take (default 1)
  --json             print one JSON object instead
  --help             this text
`;

const options = {
  nodes: { type: "string", default: "3" },
  version: { type: "string", default: "8.4" },
  host: { type: "string", default: "127.0.0.1" },
  port: { type: "string", default: "8006" },
  "control-port": { type: "string", default: "0" },
  "time-scale": { type: "string", default: "1" },
  json: { type: "boolean", default: false },
  help: { type: "boolean", default: false },
} as const;

function toNumber(text: string, name: string): number {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value) || value < 0) throw new Error(`--${name} wants a number, not "${text}"`);
  return value;
}

function toVersion(text: string): PveVersion {
  if (text === "8.4" || text === "9.2") return text;
  throw new Error(`--version wants 8.4 or 9.2, not "${text}"`);
}

function environment(pve: Pve): Record<string, string> {
  return {
    PVE_API_URL: pve.url,
    PVE_API_TOKEN: pve.token,
    PVE_TLS_FINGERPRINT: pve.fingerprint,
    SANDBOX_CIDRS: "127.0.0.0/8",
    PVE_CONTROL_URL: pve.controlUrl,
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options, strict: true });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const pve = await startPve({
    nodes: toNumber(values.nodes, "nodes"),
    version: toVersion(values.version),
    host: values.host,
    port: toNumber(values.port, "port"),
    controlPort: toNumber(values["control-port"], "control-port"),
    timings: { timeScale: toNumber(values["time-scale"], "time-scale") },
  });
  const lines = environment(pve);
  const text = values.json
    ? JSON.stringify(lines)
    : Object.entries(lines)
        // The token has a "!" in it, which shells like to expand.
        .map(([name, value]) => `export ${name}='${value}'`)
        .join("\n");
  process.stdout.write(`${text}\n`);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void pve.close());
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
