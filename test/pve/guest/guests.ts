import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, lstat, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import type { Server } from "node:http";
import { join } from "node:path";
import { now } from "../clock.ts";
import type { Container, RunningGuest } from "../container.ts";
import { parseProperties } from "../property-string.ts";
import type { World } from "../world.ts";
import { Addresses } from "./addresses.ts";
import { startExecd } from "./execd.ts";
import { GUEST_MARK, Guard, killMarked, OWNER_MARK, signalMarked } from "./processes.ts";
import { handedToken } from "./token.ts";

interface Inside {
  guest: RunningGuest;
  server: Server | undefined;
  booting: NodeJS.Timeout | undefined;
  /** Something was run in it, so there may be processes. */
  used: boolean;
  thaw: PromiseWithResolvers<void> | undefined;
}

/** What is inside the containers: folders, addresses, execd and processes. */
export class Guests {
  readonly #world: World;
  readonly #dataDir: string;
  readonly #ownsDataDir: boolean;
  #addresses = new Addresses("127.64.0.1");
  readonly #inside = new Map<Container, Inside>();
  /** No two stand-ins have the same, whatever their seeds: who kills the processes of one looks at all of the machine. */
  readonly #id = randomUUID();
  #guard: Guard | undefined;
  /** How many of the next starts' hooks fail. */
  hookFailures = 0;

  constructor(world: World, options: { dataDir: string; ownsDataDir: boolean }) {
    this.#world = world;
    this.#dataDir = options.dataDir;
    this.#ownsDataDir = options.ownsDataDir;
  }

  /** From where addresses are given out. */
  useAddresses(base: string): void {
    this.#addresses = new Addresses(base);
  }

  /** By which its processes are known. */
  #markOf(container: Container): string {
    return `${this.#id}-${container.uid}`;
  }

  folder(container: Container): string {
    return join(this.#dataDir, `${container.vmid}-${container.uid}`);
  }

  root(container: Container): string {
    return join(this.folder(container), "disk", "root");
  }

  workspace(container: Container): string {
    return join(this.folder(container), "disk", "workspace");
  }

  /** Boots the guest; with no boot time execd answers when this resolves. */
  async start(container: Container): Promise<void> {
    const hookFails = this.hookFailures > 0;
    if (hookFails) this.hookFailures -= 1;
    await this.#prepareDisk(container);
    const handed = handedToken(container, this.#world.version, hookFails);
    const tokenFile = join(this.root(container), ".worker-auth-token");
    if (handed !== undefined) await writeFile(tokenFile, handed);
    const token = handed ?? (existsSync(tokenFile) ? (await readFile(tokenFile, "utf8")).trim() : undefined);
    const guest: RunningGuest = {
      pid: this.#world.nextPid(),
      startedAt: now(),
      address: undefined,
      token,
      frozen: false,
    };
    const inside: Inside = { guest, server: undefined, booting: undefined, used: false, thaw: undefined };
    this.#inside.set(container, inside);
    container.guest = guest;
    this.#world.see(container);
    const { bootMs } = container.traits;
    const wait = (bootMs < 0 ? this.#world.timings.boot : bootMs) * this.#world.timings.timeScale;
    if (wait <= 0) return this.#boot(container, inside);
    inside.booting = setTimeout(() => void this.#boot(container, inside), wait);
  }

  async #prepareDisk(container: Container): Promise<void> {
    this.#guard ??= new Guard(`${OWNER_MARK}=${this.#id}`, this.#ownsDataDir ? this.#dataDir : "");
    if (existsSync(this.root(container))) return;
    await mkdir(this.root(container), { recursive: true });
    await mkdir(this.workspace(container), { recursive: true });
    await symlink("../workspace", join(this.root(container), "workspace"));
  }

  async #boot(container: Container, inside: Inside): Promise<void> {
    const network = parseProperties(container.config.get("net0") ?? "");
    if (network.get("link_down") === "1") return; // nobody hears it, and it hears no DHCP server
    const ip = network.get("ip");
    const fixed = ip === undefined || ip === "manual" ? "" : ip === "dhcp" ? undefined : ip.split("/")[0];
    if (fixed !== undefined && !fixed.startsWith("127.")) {
      // Somebody else's network: PVE shows the address, but nothing of this machine can answer there.
      inside.guest.address = fixed === "" ? undefined : fixed;
      return;
    }
    for (;;) {
      const address = fixed ?? container.address ?? this.#addresses.next();
      try {
        inside.server = container.traits.execd ? await this.#openExecd(container, inside, address) : undefined;
      } catch (error) {
        if (!isTaken(error)) throw error;
        if (fixed === undefined) {
          container.address = undefined;
          continue;
        }
        // Two guests were given one address: the second boots, and answers nobody.
      }
      if (this.#inside.get(container) !== inside) {
        closeServer(inside.server);
        return;
      }
      container.address = address;
      inside.guest.address = address;
      return;
    }
  }

  #openExecd(container: Container, inside: Inside, address: string): Promise<Server> {
    return startExecd({
      address,
      token: inside.guest.token,
      workspace: this.workspace(container),
      files: container.traits.files,
      shell: this.shell(container, address),
      thawed: () => inside.thaw?.promise ?? Promise.resolve(),
      onCommand: () => {
        inside.used = true;
      },
    });
  }

  shell(container: Container, address: string) {
    const root = this.root(container);
    return {
      cwd: root,
      env: {
        PATH: process.env["PATH"] ?? "/usr/local/bin:/usr/bin:/bin",
        HOME: root,
        USER: "root",
        LANG: "C.UTF-8",
        HOSTNAME: container.name,
        SANDBOX_ADDRESS: address,
        SANDBOX_WORKSPACE: this.workspace(container),
        // What stands for `/` where a command of the fleet's own means the guest's.
        FLEET_GUEST_ROOT: join(this.folder(container), "disk"),
        [OWNER_MARK]: this.#id,
        [GUEST_MARK]: this.#markOf(container),
      },
    };
  }

  /** For a command that does not come through execd (`pct exec`); in a frozen guest it waits, too. */
  async enter(container: Container): Promise<void> {
    const inside = this.#inside.get(container);
    if (inside === undefined) return;
    await inside.thaw?.promise;
    inside.used = true;
  }

  /** Ends the guest: its connections are cut, its processes killed. */
  async stop(container: Container): Promise<void> {
    const inside = this.#inside.get(container);
    if (inside === undefined) return;
    this.#inside.delete(container);
    clearTimeout(inside.booting);
    closeServer(inside.server);
    inside.thaw?.resolve();
    container.guest = undefined;
    this.#world.see(container);
    if (inside.used) await killMarked(`${GUEST_MARK}=${this.#markOf(container)}`);
  }

  freeze(container: Container): void {
    const inside = this.#inside.get(container);
    if (inside === undefined || inside.guest.frozen) return;
    inside.guest.frozen = true;
    inside.thaw = Promise.withResolvers();
    if (inside.used) signalMarked(`${GUEST_MARK}=${this.#markOf(container)}`, "SIGSTOP");
  }

  unfreeze(container: Container): void {
    const inside = this.#inside.get(container);
    if (inside === undefined || !inside.guest.frozen) return;
    inside.guest.frozen = false;
    if (inside.used) signalMarked(`${GUEST_MARK}=${this.#markOf(container)}`, "SIGCONT");
    inside.thaw?.resolve();
    inside.thaw = undefined;
  }

  async removeDisk(container: Container): Promise<void> {
    if (existsSync(this.folder(container))) await rm(this.folder(container), { recursive: true, force: true });
  }

  /** Copies the files of a container, or of one of its snapshots, into another. */
  async copyDisk(from: Container, to: Container, snapshot?: string): Promise<void> {
    const source = snapshot === undefined ? join(this.folder(from), "disk") : this.#snapshotFolder(from, snapshot);
    if (!existsSync(source)) return;
    const disk = join(this.folder(to), "disk");
    await copyTree(source, disk);
    // PVE::LXC::Setup::Base::post_clone_hook: emptied, so that systemd makes up another.
    const machineId = join(disk, "etc", "machine-id");
    if (existsSync(machineId)) await writeFile(machineId, "\n");
  }

  #snapshotFolder(container: Container, name: string): string {
    return join(this.folder(container), "snapshots", name);
  }

  async snapshotDisk(container: Container, name: string): Promise<void> {
    const disk = join(this.folder(container), "disk");
    if (existsSync(disk)) await copyTree(disk, this.#snapshotFolder(container, name));
  }

  async rollbackDisk(container: Container, name: string): Promise<void> {
    await rm(join(this.folder(container), "disk"), { recursive: true, force: true });
    const kept = this.#snapshotFolder(container, name);
    if (existsSync(kept)) await copyTree(kept, join(this.folder(container), "disk"));
  }

  async dropSnapshot(container: Container, name: string): Promise<void> {
    await rm(this.#snapshotFolder(container, name), { recursive: true, force: true });
  }

  async close(): Promise<void> {
    for (const [container, inside] of this.#inside) {
      clearTimeout(inside.booting);
      closeServer(inside.server);
      inside.thaw?.resolve();
      container.guest = undefined;
    }
    this.#inside.clear();
    if (this.#guard !== undefined) await killMarked(`${OWNER_MARK}=${this.#id}`);
    if (this.#ownsDataDir) await rm(this.#dataDir, { recursive: true, force: true });
    await this.#guard?.close();
  }
}

function copyTree(from: string, to: string): Promise<void> {
  return cp(from, to, { recursive: true, verbatimSymlinks: true, force: true, filter: isCopyable });
}

/** Sockets and pipes of running programs can't be copied, and a real snapshot would hold dead ones. */
async function isCopyable(path: string): Promise<boolean> {
  const facts = await lstat(path).catch(() => undefined);
  return facts !== undefined && !facts.isSocket() && !facts.isFIFO();
}

function closeServer(server: Server | undefined): void {
  server?.close();
  server?.closeAllConnections();
}

function isTaken(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "EADDRINUSE";
}
