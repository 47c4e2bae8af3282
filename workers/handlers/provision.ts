import { randomBytes } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import { SnapshotId } from "../../shared/ids.ts";
import type { ExposedService } from "../../shared/jobs/fields.ts";
import { execQueue, PLACE, WARM } from "../../shared/queues.ts";
import type { Command, Write } from "../../shared/state/operations.ts";
import { isBefore, type SandboxRecord, serviceField } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { resolveUrl } from "../../shared/urls.ts";
import { endLeftovers, nameOf } from "../exec/leftovers.ts";
import { toDelivery } from "../exec/shell.ts";
import { leaveBadNode } from "../placement/leave-node.ts";
import { place } from "../placement/place.ts";
import { claimMember } from "../pool/claim.ts";
import type { Run } from "../run/run.ts";
import { cloneContainer } from "../sandbox/clone.ts";
import { configureClone } from "../sandbox/configure-clone.ts";
import { closeFirewall } from "../sandbox/firewall.ts";
import { containerOf } from "../sandbox/look.ts";
import { startContainer } from "../sandbox/power.ts";
import { awaitReady } from "../sandbox/ready.ts";
import { destroyContainer, releaseCommands } from "../sandbox/release.ts";
import { urlFacts } from "../sandbox/url-facts.ts";
import { sendBefore } from "./exec.ts";
import { type Ending, type Handler, Reroute } from "./handler.ts";

export const provision: Handler<"provision"> = {
  async run(run) {
    const { queue } = run.operation;
    if (run.sandbox.node === undefined || queue === PLACE || queue === WARM) return claimOrPlace(run);
    await leaveBadNode(run);
    const token = await execToken(run);
    if (isBefore(run.sandbox.state, "readying")) await build(run, token);
    const address = await ready(run, token);
    if (run.input.setup.length > 0) await runSetup(run, { address, token: token ?? "" });
    return finish(run, run.sandbox, address);
  },

  async undo(run) {
    const call = run.undoing();
    const { node } = run.sandbox;
    const existed =
      node !== undefined &&
      run.sandbox.state !== "placing" && // nothing was asked for, and a dead node's slots may never be free
      (await run.withSlot(
        slotOf.node(node),
        run.context.config.FLEET_NODE_SLOTS,
        () => destroyContainer(run, { call, writing: call }),
        call,
      ));
    return {
      undone: existed ? ["container"] : [],
      write: { sandbox: { state: "failed" }, also: [...(await releaseCommands(run)), ...countFailure(run)] },
    };
  },
};

/** A pool's member is its own at once, without a turn or a slot; what has none stands in line for a node. */
async function claimOrPlace(run: Run<"provision">): Promise<Ending<"provision">> {
  const { sandbox, operation, input } = run;
  const claim = sandbox.node === undefined ? await claimMember(run) : null;
  if (claim === null) {
    if (operation.queue !== WARM) return place(run);
    // As if it had never been here: its turn, and its time, begin with its place in line.
    throw new Reroute(PLACE, { operation: { status: "queued", startedAt: null, claims: operation.claims - 1 } });
  }
  const { member, write } = claim;
  if (input.setup.length > 0)
    throw new Reroute(execQueue(member.node), { ...write, sandbox: { state: "readying" }, leavesLine: true });
  const { node, vmid, hostname, address } = member;
  const { write: last, ...ending } = finish(run, { ...sandbox, node, vmid, hostname, member: member.member }, address);
  return { ...ending, write: { ...last, ...write, also: [...(write.also ?? []), ...(last?.also ?? [])] } };
}

/** A pool whose members can't be made is filled less often; those that are removed in the making are no failures. */
function countFailure({ context: { keys }, sandbox: { pool }, operation: { abort } }: Run<"provision">): Command[] {
  if (pool === undefined || abort?.code === "canceled") return [];
  const counts = keys.poolCounts(pool);
  return [
    ["HINCRBY", counts, "failures", 1],
    ["HSET", counts, "failedAt", Date.now()],
  ];
}

/** Clone, configure, start: what loads the node, under one of its slots. A later run goes on at the recorded state. */
async function build(run: Run<"provision">, token: string | null): Promise<void> {
  const node = run.sandbox.node ?? "";
  await run.withSlot(slotOf.node(node), run.context.config.FLEET_NODE_SLOTS, async () => {
    const config = isBefore(run.sandbox.state, "configuring") ? await cloneContainer(run, token) : null;
    try {
      if (isBefore(run.sandbox.state, "starting")) {
        await configureClone(run, token, config);
        await closeFirewall(run);
      }
      await startContainer(run, { state: "starting" });
    } catch (error) {
      throw await vanished(run, error);
    }
    await run.write({ sandbox: { state: "readying" } });
  });
  // Setup may take minutes and only talks to the container: it must not keep a place in the node's queue.
  if (run.input.setup.length > 0) throw new Reroute(execQueue(node));
}

/** A container that somebody removed while it was made is made again, by the next attempt. */
async function vanished(run: Run<"provision">, error: unknown): Promise<unknown> {
  if (!(error instanceof FleetError) || (error.code !== "container_missing" && error.code !== "sandbox_gone"))
    return error;
  await run.begin("vanished", { sandbox: { state: "placing", hwaddr: null } });
  return new FleetError("container_missing", "the container was removed while it was being made", {
    cause: error,
    facts: error.facts,
  });
}

/** A container that answers at once is waited for here; a slow one must not keep a place in the node's queue. */
const SHORT_PATIENCE_MS = 5_000;

async function ready(run: Run<"provision">, token: string | null): Promise<string> {
  const slowQueue = execQueue(run.sandbox.node ?? "");
  const isShort = run.operation.queue !== slowQueue;
  try {
    return await (isShort ? awaitReady(run, token, SHORT_PATIENCE_MS) : awaitReady(run, token));
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    if (isShort && (error.code === "no_address" || error.code === "not_ready")) throw new Reroute(slowQueue);
    // Stopped again: the next attempt starts it anew.
    if (error.code === "start_failed") await run.write({ sandbox: { state: "configuring" } });
    throw await vanished(run, error);
  }
}

/** The exec token, made once a sandbox and never shared; sealed beside the environment that the caller gave. */
async function execToken(run: Run<"provision">): Promise<string | null> {
  const { secrets } = run.context;
  const [known, { env = await branchedEnv(run) }] = await Promise.all([
    secrets.get(run.sandbox.id),
    secrets.get(run.id),
  ]);
  const needsToken = run.input.waitFor === "execd";
  if (known.execToken !== undefined || !(needsToken || env)) return known.execToken ?? null;
  const token = needsToken ? randomBytes(32).toString("hex") : null;
  const values = { ...(token === null ? {} : { execToken: token }), ...(env ? { env } : {}) };
  await run.write({ also: [secrets.toCommand(run.sandbox.id, values)] });
  return token;
}

/** A branch has the environment of its source. */
async function branchedEnv({ input, context: { store, secrets } }: Run<"provision">) {
  const id = SnapshotId.safeParse(input.template);
  const snapshot = id.success ? await store.loadSnapshot(id.data) : null;
  return snapshot?.branch === undefined ? undefined : (await secrets.get(snapshot.sandbox)).env;
}

async function runSetup(run: Run<"provision">, { address, token }: { address: string; token: string }): Promise<void> {
  const { env } = await run.context.secrets.get(run.sandbox.id);
  const begun = /^setup (\d+)$/.exec(run.operation.step?.name ?? "")?.[1];
  await run.timed("setup", async () => {
    // A later run goes on with the command that was cut short, of which something may still be there.
    for (const [index, command] of run.input.setup.entries()) {
      if (index < Number(begun ?? 0)) continue;
      const name = nameOf(run.id, index);
      if (index === Number(begun)) await endLeftovers(run, { address, token, name });
      await run.begin(`setup ${index}`);
      const call = { address, token, signal: run.signal, guard: run.check };
      // What it leaves in the background would hold the reply back by its output, which nobody reads.
      const quiet = `exec >/dev/null 2>&1\n${command}`;
      const { before, script } = toDelivery(quiet, env ? { env } : {}, { name: `.fleet-${name}` });
      await sendBefore(run, before, call);
      const outcome = await run.context.execd.exec({ ...call, script, name, timeoutMs: 0, keepBytes: 0 });
      if (outcome.exitCode !== 0) {
        throw new FleetError(
          "setup_failed",
          `setup command ${index + 1} of ${run.input.setup.length} ended with exit code ${outcome.exitCode}`,
          {
            facts: { index, exitCode: outcome.exitCode },
          },
        );
      }
    }
  });
}

function finish(run: Run<"provision">, sandbox: SandboxRecord, address: string): Ending<"provision"> {
  const { keys } = run.context;
  const { place } = containerOf(run, sandbox);
  const facts = urlFacts(run, address, sandbox);
  const settings = { publicDomain: run.context.config.PVE_PUBLIC_DOMAIN, pattern: run.context.config.PVE_URL_PATTERN };
  const services: ExposedService[] = run.input.services.map((service) => {
    const known = run.sandbox.services.find(({ name }) => name === service.name);
    return resolveUrl({ ...service, epoch: known?.epoch ?? randomBytes(6).toString("hex") }, facts, settings);
  });
  const also: Command[] = services.map((one) => [
    "HSET",
    keys.sandbox(run.sandbox.id),
    serviceField(one.name),
    JSON.stringify(one),
  ]);
  if (services.length > 0) also.push(["SADD", keys.restamp, run.sandbox.id]);
  if (sandbox.pool !== undefined) also.push(...countMade(run, sandbox.pool));
  const state = sandbox.pool === undefined ? "running" : "warm";
  const write: Write = { sandbox: { state, runningAt: Date.now() }, also };
  return {
    result: {
      sandboxId: run.sandbox.id,
      operationId: run.id,
      ...place,
      hostname: facts.hostname,
      address,
      services,
      warm: sandbox.member !== undefined,
      timings: run.timings,
    },
    write,
  };
}

function countMade({ context: { keys }, operation: { acceptedAt } }: Run<"provision">, pool: string): Command[] {
  const counts = keys.poolCounts(pool);
  return [
    ["HINCRBY", counts, "made", 1],
    ["HINCRBY", counts, "madeMs", Math.max(0, Date.now() - acceptedAt)],
    ["HSET", counts, "failures", 0],
  ];
}
