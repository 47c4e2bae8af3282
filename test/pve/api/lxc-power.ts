import { check } from "../access.ts";
import { now, sleep } from "../clock.ts";
import type { Container } from "../container.ts";
import type { Guests } from "../guest/guests.ts";
import { invalid, refuse } from "../refusal.ts";
import { type Call, flagOf, type Method, type Route, route, vmidOf } from "../router.ts";
import { NODE, VMID } from "../schema/lxc.ts";
import type { Rule, Rules } from "../schema/rules.ts";
import type { Task } from "../task.ts";
import type { World } from "../world.ts";

const base: Rules = { node: NODE, vmid: VMID };
const flag: Rule = { type: "boolean" };
const seconds: Rule = { type: "integer", min: 0 };

function power(action: string, rules: Rules, run: (call: Call) => Promise<string> | string): Route {
  const method: Method = "POST";
  const allow = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.PowerMgmt");
  return route(
    method,
    `/nodes/{node}/lxc/{vmid}/status/${action}`,
    { pace: "task", rules: { ...base, ...rules }, allow },
    run,
  );
}

export const powerRoutes: Route[] = [
  power("start", { skiplock: flag, debug: flag }, start),
  power("stop", { skiplock: flag, "overrule-shutdown": flag }, stop),
  power("shutdown", { timeout: seconds, forceStop: flag }, shutdown),
  power("reboot", { timeout: seconds }, reboot),
  power("suspend", {}, suspend),
  power("resume", {}, resume),
];

/** The file lock as a task waits for it. */
export async function locked<T>(
  world: World,
  task: Task,
  container: Container,
  body: () => T | Promise<T>,
): Promise<T> {
  return container.fileLock.hold(body, {
    timeoutMs: world.timings.lockTimeout,
    signal: task.signal,
    onWait: () => task.log("trying to acquire lock..."),
    onGot: () => {
      task.log(" OK");
      task.clock = now();
    },
  });
}

function fork(call: Call, type: string, body: (task: Task) => Promise<void>): string {
  const { node, by, arrivedAt } = call;
  return call.world.fork({ type, id: vmidOf(call), node, by, arrivedAt }, body).upid;
}

function checkSkiplock(call: Call): void {
  if (flagOf(call, "skiplock")) throw invalid({ skiplock: "Only root may use this option." });
}

/** The container, if its config is on this node; the commands that look at processes see nothing else. */
function running(call: Call): Container | undefined {
  const container = call.world.containers.get(vmidOf(call));
  return container?.node === call.node.name && container.running ? container : undefined;
}

/** Fails with the texts that only the task shows: missing config, template, lock. */
async function inLock(call: Call, task: Task, body: (container: Container) => Promise<void>): Promise<void> {
  const { world, node } = call;
  const container = world.container(node.name, vmidOf(call));
  await locked(world, task, container, () => body(world.container(node.name, vmidOf(call))));
}

function start(call: Call): string {
  checkSkiplock(call);
  const vmid = vmidOf(call);
  if (running(call) !== undefined) throw refuse(`CT ${vmid} already running`);
  call.world.checkQuorum();
  return fork(call, "vzstart", (task) => inLock(call, task, (container) => startLocked(call, task, container)));
}

async function startLocked(call: Call, task: Task, container: Container): Promise<void> {
  const { world, node, guests } = call;
  if (container.template) throw refuse("you can't start a CT if it's a template");
  container.checkLock();
  if (container.running) return;
  await bringUp(world, guests, { task, container, ms: world.takes(world.timings.start), load: node.load });
}

export async function bringUp(
  world: World,
  guests: Guests,
  { task, container, ms, load }: { task: Task; container: Container; ms: number; load: Call["node"]["load"] },
): Promise<void> {
  container.config.applyPending();
  // PVE::LXC::update_lxc_config
  if (container.config.get("rootfs") === undefined) throw new Error("missing 'rootfs' configuration");
  await task.spend(ms, load);
  if (container.traits.startError !== undefined) {
    task.log(container.traits.startError);
    task.log(`__lxc_start: 2107 Failed to spawn container "${container.vmid}"`);
    throw new Error(`startup for container '${container.vmid}' failed`);
  }
  // Somebody may have removed it meanwhile, behind our back.
  if (world.containers.get(container.vmid) !== container)
    throw new Error(`startup for container '${container.vmid}' failed`);
  await guests.start(container);
  const vanished = world.containers.get(container.vmid) !== container;
  if (vanished || container.traits.exitsAfterStart) await guests.stop(container);
}

function stop(call: Call): string {
  checkSkiplock(call);
  const { world, guests, node } = call;
  const vmid = vmidOf(call);
  if (running(call) === undefined) throw refuse(`CT ${vmid} not running`);
  return fork(call, "vzstop", async (task) => {
    if (flagOf(call, "overrule-shutdown")) overrule(call, task);
    await inLock(call, task, async (container) => {
      container.checkLock();
      if (!container.running) return;
      await task.spend(world.takes(world.timings.stop), node.load);
      await guests.stop(container);
    });
  });
}

/** Aborts the shutdowns of this container; they hold its file lock for up to five more seconds. */
function overrule(call: Call, task: Task): void {
  const shutdowns = [...call.node.running].filter(
    (other) => other.type === "vzshutdown" && other.id === String(vmidOf(call)),
  );
  if (shutdowns.length === 0) return;
  for (const other of shutdowns) other.stop("interrupt");
  task.log(`overruled vzshutdown tasks: ${shutdowns.map((other) => other.upid).join(", ")}`);
}

function shutdown(call: Call): string {
  const { world, guests } = call;
  const vmid = vmidOf(call);
  if (running(call) === undefined) throw refuse(`CT ${vmid} not running`);
  return fork(call, "vzshutdown", (task) =>
    inLock(call, task, async (container) => {
      container.checkLock();
      if (!container.running) return;
      const timeout = Number(call.params["timeout"] ?? 60);
      await goDown(call, task, { container, timeout, force: flagOf(call, "forceStop"), ms: world.timings.shutdown });
      await guests.stop(container);
    }),
  );
}

/**
 * Asks the guest to end. One that does not is killed at the timeout (forceStop), or `lxc-stop` fails then and the task
 * looks for another timeout and five seconds before it gives up.
 */
export async function goDown(
  call: Call,
  task: Task,
  { container, timeout, force, ms }: { container: Container; timeout: number; force: boolean; ms: number },
): Promise<void> {
  const { world, node } = call;
  const { timings } = world;
  const deaf = () => container.traits.ignoresShutdown || container.guest?.frozen === true;
  if (!deaf()) return task.spend(world.takes(ms), node.load);
  const command = `command 'lxc-stop -n ${container.vmid} --nokill --timeout ${timeout}' failed`;
  try {
    await task.spend(timeout * 1000 * timings.timeScale);
    if (force) return await task.spend(world.takes(timings.stop), node.load);
    task.log(`${command}: exit code 1`);
    await task.spend((timeout + 5) * 1000 * timings.timeScale);
  } catch (error) {
    if (!(error instanceof Error && "how" in error && error.how === "interrupt")) throw error;
    task.log(`${command}: received interrupt`);
    await sleep(timings.taskAbort, world.closing);
    throw error;
  }
  if (deaf() && container.running) throw new Error("container did not stop");
}

function reboot(call: Call): string {
  const { world, guests, node } = call;
  const vmid = vmidOf(call);
  if (running(call) === undefined) throw refuse(`VM ${vmid} not running`);
  return fork(call, "vzreboot", async (task) => {
    const container = world.container(node.name, vmid);
    await locked(world, task, container, async () => {
      if (!container.running) return;
      const half = world.timings.reboot / 2;
      const timeout = Number(call.params["timeout"] ?? 60);
      await goDown(call, task, { container, timeout, force: true, ms: half });
      await guests.stop(container);
      await bringUp(world, guests, { task, container, ms: world.takes(half), load: node.load });
    });
  });
}

/** CRIU, which mostly is not there. */
function suspend(call: Call): string {
  const vmid = vmidOf(call);
  if (running(call) === undefined) throw refuse(`CT ${vmid} not running`);
  return fork(call, "vzsuspend", (task) =>
    inLock(call, task, async (container) => {
      container.checkLock();
      await task.spend(call.world.takes(150));
      task.log(
        `lxc-checkpoint: ${vmid}: ../src/lxc/criu.c: criu_version_ok: 767 No such file or directory - execing criu failed, is it installed?`,
      );
      task.log(
        `lxc-checkpoint: ${vmid}: ../src/lxc/tools/lxc_checkpoint.c: checkpoint: 182 Checkpointing ${vmid} failed`,
      );
      throw new Error(`command 'lxc-checkpoint -n ${vmid} -s -D /var/lib/vz/dump' failed: exit code 1`);
    }),
  );
}

function resume(call: Call): string {
  const vmid = vmidOf(call);
  if (running(call) !== undefined) throw refuse(`CT ${vmid} already running`);
  return fork(call, "vzresume", async (task) => {
    await task.spend(call.world.takes(150));
    throw new Error(`command 'lxc-checkpoint -n ${vmid} -r --foreground -D /var/lib/vz/dump' failed: exit code 1`);
  });
}
