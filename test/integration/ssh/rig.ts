/** A stand-in with one running container a node, real sshds, and shells that tests open on them. */
import { randomBytes } from "node:crypto";
import { loadWorkerConfig, type WorkerConfig } from "../../../shared/config.ts";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import { createNodeShell, type NodeShell, type ShellCall } from "../../../workers/ssh/node-shell.ts";
import { Client } from "../../pve/client.ts";
import { type Pve, startPve } from "../../pve/index.ts";
import { type SshNodes, type SshNodesOptions, startSshNodes } from "../../ssh/nodes.ts";

export const PVE1 = NodeName.parse("pve1");
/** Running, stopped, a template in the range, running outside of the range, nothing. */
export const CT = {
  up: vmid(20_001),
  off: vmid(20_002),
  template: vmid(20_003),
  foreign: vmid(500),
  none: vmid(20_009),
};
export const RANGE = { first: 20_000, last: 29_999 };

function vmid(number: number): Vmid {
  return Vmid.parse(number);
}

export interface Rig extends AsyncDisposable {
  readonly pve: Pve;
  readonly api: Client;
  readonly ssh: SshNodes;
  /** Closed with the rig. */
  shell(env?: Record<string, string>): NodeShell;
}

export async function startRig(options: SshNodesOptions = {}): Promise<Rig> {
  await using stack = new AsyncDisposableStack();
  const pve = stack.use(await startPve({ nodes: 1, timings: { timeScale: 0.05, apiScale: 0 } }));
  const api = stack.use(new Client(pve));
  for (const vmid of [CT.up, CT.off]) pve.addTemplate({ vmid, template: false });
  pve.addTemplate({ vmid: CT.foreign, template: false, guest: { ignoresShutdown: true } });
  pve.addTemplate({ vmid: CT.template });
  for (const vmid of [CT.up, CT.foreign]) await api.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
  const ssh = stack.use(await startSshNodes(pve, options));
  const shells = stack.use(new AsyncDisposableStack());
  const kept = stack.move();
  return {
    pve,
    api,
    ssh,
    shell: (env) => {
      const shell = createNodeShell(config(pve, { ...ssh.env, ...env }), async () => null);
      if (!shell) throw new Error("no SSH configured");
      return shells.use(shell);
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

function config(pve: Pve, env: Record<string, string>): WorkerConfig {
  return loadWorkerConfig({
    REDIS_URL: "redis://127.0.0.1:6379",
    PVE_API_URL: pve.url,
    PVE_API_TOKEN: pve.token,
    FLEET_SECRET_KEY: randomBytes(32).toString("hex"),
    ...env,
  });
}

export const call = (more: Partial<ShellCall> = {}): ShellCall => ({ signal: AbortSignal.timeout(60_000), ...more });

/** Runs shell text in the running container. */
export const exec = (shell: NodeShell, script: string, more: Partial<ShellCall> = {}, timeoutMs = 20_000) =>
  shell.run(PVE1, { verb: "exec", vmid: CT.up, script, timeoutMs }, call(more));
