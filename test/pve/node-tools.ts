/**
 * What a node has on its PATH beside the API: `pct`, `lxc-freeze`, …, as test/ssh puts them there. Texts and codes of the
 * lxc tools are those of LXC 5.0.2; pct's are PVE's (perl's `die` ends with errno where there is one).
 */
import { now } from "./clock.ts";
import type { Container } from "./container.ts";
import type { Guests } from "./guest/guests.ts";
import { Refusal } from "./refusal.ts";
import type { World } from "./world.ts";

export interface ToolCall {
  node: string;
  tool: string;
  args: string[];
}

interface ToolEnd {
  code: number;
  stdout?: string;
  stderr?: string;
}
/** The tool has entered the container: there it runs its own words, with its own streams. */
interface Entered {
  cwd: string;
  env: Record<string, string>;
}

const LOCK_MS = 10_000;

export class NodeTools {
  readonly calls: ToolCall[] = [];
  readonly #world: World;
  readonly #guests: Guests;

  constructor(world: World, guests: Guests) {
    this.#world = world;
    this.#guests = guests;
  }

  /** Words and answer as test/ssh/tool.sh has them: fields that end with NUL, the words in base64. */
  async answer(body: string): Promise<string> {
    const [node = "", tool = "", ...args] = Buffer.from(body, "base64").toString("utf8").split("\0").slice(0, -1);
    const end = await this.run({ node, tool, args });
    const fields =
      "cwd" in end
        ? ["enter", end.cwd, ...Object.entries(end.env).map(([name, value]) => `${name}=${value}`)]
        : ["end", String(end.code), end.stdout ?? "", end.stderr ?? ""];
    return fields.map((field) => `${field}\0`).join("");
  }

  async run(call: ToolCall): Promise<ToolEnd | Entered> {
    this.calls.push(call);
    const { node, tool, args } = call;
    const line = [tool, ...args.slice(0, 1)].join(" ");
    if (line === "pct exec") return this.#exec(node, args.slice(1));
    if (line === "pct unlock") return this.#unlock(node, args.slice(1));
    if (tool === "lxc-freeze" || tool === "lxc-unfreeze") return this.#freezer(node, tool, args);
    if (tool === "lxc-info") return this.#info(node, args);
    if (tool === "cat") return this.#processes(node, args);
    if (tool === "pgrep") return this.#session(node, args);
    return { code: 255, stderr: `ERROR: unknown command '${line}'\n` };
  }

  #find(node: string, vmid: string | undefined): Container | undefined {
    const container = this.#world.containers.get(Number(vmid));
    return container?.node === node ? container : undefined;
  }

  #missing(node: string, vmid: string | undefined): ToolEnd {
    return { code: 2, stderr: `Configuration file 'nodes/${node}/lxc/${vmid}.conf' does not exist\n` };
  }

  async #exec(node: string, [vmid, dashes, ...argv]: string[]): Promise<ToolEnd | Entered> {
    const container = this.#find(node, vmid);
    if (container === undefined) return this.#missing(node, vmid);
    if (dashes !== "--" || argv.length === 0) return { code: 255, stderr: "missing command\n" };
    if (container.guest === undefined) return { code: 255, stderr: `container '${vmid}' not running!\n` };
    await this.#guests.enter(container);
    if (container.guest === undefined) return { code: 137 };
    const { cwd, env } = this.#guests.shell(container, container.guest.address ?? "127.0.0.1");
    return { cwd, env };
  }

  async #unlock(node: string, [vmid]: string[]): Promise<ToolEnd> {
    const container = this.#find(node, vmid);
    if (container === undefined) return this.#missing(node, vmid);
    if (!this.#world.quorum) {
      const file = `/etc/pve/nodes/${node}/lxc/${vmid}.conf.tmp.1`;
      return { code: 13, stderr: `unable to open file '${file}' - Permission denied\n` };
    }
    try {
      const wait = { timeoutMs: LOCK_MS, signal: this.#world.closing };
      await container.fileLock.hold(() => container.config.set("lock", undefined), wait);
      return { code: 0 };
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return { code: 255, stderr: `${error.message}\n` };
    }
  }

  #freezer(node: string, tool: "lxc-freeze" | "lxc-unfreeze", [dash, vmid]: string[]): ToolEnd {
    const container = dash === "-n" ? this.#find(node, vmid) : undefined;
    const verb = tool.slice("lxc-".length);
    const failed = {
      code: 1,
      stderr: `${tool}: ${vmid}: ../src/lxc/tools/lxc_${verb}.c: main: 87 Failed to ${verb} /var/lib/lxc:${vmid}\n`,
    };
    if (container === undefined) return failed;
    // What is not frozen needs no thawing, also when it is stopped.
    if (!container.running) return verb === "freeze" ? failed : { code: 0 };
    if (verb === "freeze") this.#guests.freeze(container);
    else this.#guests.unfreeze(container);
    return { code: 0 };
  }

  #info(node: string, args: string[]): ToolEnd {
    const vmid = args.at(-1);
    const container = this.#find(node, vmid);
    if (container === undefined) return { code: 1, stderr: `${vmid} doesn't exist\n` };
    const state = container.guest === undefined ? "STOPPED" : container.guest.frozen ? "FROZEN" : "RUNNING";
    return { code: 0, stdout: `${state}\n` };
  }

  #worker(node: string, pid: string | undefined) {
    const fits = (one: { pid: number; node: string; endedAt: number | undefined }) =>
      one.node === node && one.pid === Number(pid) && one.endedAt === undefined;
    return [...this.#world.tasks.values()].find(fits);
  }

  /** `cat /proc/uptime /proc/PID/stat` of the node, whose tasks have no process here. */
  #processes(node: string, args: string[]): ToolEnd {
    const pid = /^\/proc\/(\d+)\/stat$/.exec(args[1] ?? "")?.[1];
    const uptime = 2_000 + (now() - this.#world.bootedAt) / 1_000;
    const first = `${uptime.toFixed(2)} ${(uptime * 3).toFixed(2)}\n`;
    const task = this.#worker(node, pid);
    if (task === undefined) {
      return { code: 1, stdout: first, stderr: `cat: /proc/${pid}/stat: No such file or directory\n` };
    }
    const name = `task ${task.upid}`.slice(0, 15);
    const stat = `${pid} (${name}) S 1 ${pid} ${pid} 0 -1 4194624 9 0 0 0 1 0 0 0 20 0 1 0 ${task.pstart} 1 1`;
    return { code: 0, stdout: `${first}${stat}\n` };
  }

  #session(node: string, [dash, pid]: string[]): ToolEnd {
    const found = dash === "-s" && this.#worker(node, pid) !== undefined;
    return found ? { code: 0, stdout: `${pid}\n` } : { code: 1 };
  }
}
