import { FleetError } from "../../shared/errors.ts";
import { nodeQueue } from "../../shared/queues.ts";
import { isBefore, isGone, type SandboxRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { clean, wayToClean } from "../sandbox/clean.ts";
import { convertToTemplate, dressForCleaning, finishTemplate, toDescription, undress } from "../sandbox/convert.ts";
import { clearSource, copySource, leaveSource, loadSource } from "../sandbox/copy-source.ts";
import { mayHaveCloned } from "../sandbox/look.ts";
import { shutDownContainer, startContainer } from "../sandbox/power.ts";
import { destroyContainer, releaseCommands } from "../sandbox/release.ts";
import { type Handler, Reroute } from "./handler.ts";

export const template: Handler<"template"> = {
  async run(run) {
    const source = await goToSource(run);
    const way = await wayToClean(run);
    if (!isCleaned(run)) {
      if (isBefore(run.sandbox.state, "readying")) await onNode(run, () => build(run, source, way));
      await clean(run, way);
      await run.begin(CLEANED);
    }
    await onNode(run, async () => {
      await shutDownContainer(run);
      await undress(run);
      await convertToTemplate(run);
    });
    return finishTemplate(run);
  },

  async undo(run) {
    const call = run.undoing();
    const destroy = () => destroyContainer(run, { call, writing: call });
    const existed = run.sandbox.state !== "placing" && (await onNode(run, destroy, call));
    const snapshot = await clearSource(run, await loadSource(run), call);
    return {
      undone: [...(existed ? ["container"] : []), ...(snapshot ? ["snapshot"] : [])],
      write: { sandbox: { state: "failed" }, also: await releaseCommands(run) },
    };
  },
};

export const CLEANED = "cleaned";
/** Steps that come after it, failed ones too; a copy that is started anew is cleaned anew. */
export const isCleaned = ({ operation: { step }, sandbox: { state } }: Run): boolean =>
  state === "readying" && /^(cleaned|shutdown|undress|convert)( failed)?$/.test(step?.name ?? "");

export function onNode<T>(run: Run, work: () => Promise<T>, call?: Call): Promise<T> {
  return run.withSlot(slotOf.node(run.sandbox.node ?? ""), run.context.config.FLEET_NODE_SLOTS, work, call);
}

/** The copy is made where its source is. Null: it has been made. Throws what stands in the way before anything is touched. */
async function goToSource(run: Run<"template">): Promise<SandboxRecord | null> {
  const { source } = run.operation;
  if (source === undefined) return null;
  const record = await loadSource(run);
  if (!record || isGone(record.state) || record.node === undefined)
    throw new FleetError("sandbox_gone", `sandbox ${source} has ended`, { facts: { sandbox: source } });
  const { node } = record;
  if (node !== run.sandbox.node && run.sandbox.state === "placing" && !mayHaveCloned(run))
    await run.write({ sandbox: { node } });
  if (run.operation.queue !== nodeQueue(node) && run.sandbox.node === node) throw new Reroute(nodeQueue(node));
  checkStorage(run);
  return record;
}

export function checkStorage({ input: { storage }, sandbox: { node }, context }: Run<"template" | "build">): void {
  if (storage === undefined) return;
  const storages = context.inventory.current().nodes.find(({ name }) => name === node)?.storages ?? [];
  if (storages.some(({ name, active, rootdir }) => name === storage && active && rootdir)) return;
  const usable = storages.filter(({ active, rootdir }) => active && rootdir).map(({ name }) => name);
  throw new FleetError(
    "storage_not_found",
    `storage: ${node} has no active storage ${storage} for containers; storages are ${usable.join(", ")}`,
    { facts: { storage, node: node ?? null } },
  );
}

/** Copy, configure, start: what loads the node. A later run goes on at the recorded state. */
async function build(run: Run<"template">, source: SandboxRecord | null, way: "ssh" | "execd"): Promise<void> {
  if (source && isBefore(run.sandbox.state, "configuring")) {
    const { PVE_POOL: pool } = run.context.config;
    const { name: hostname, storage } = run.input;
    await copySource(run, source, (place) => ({
      hostname,
      description: toDescription(run, place),
      ...(pool === undefined ? {} : { pool }),
      ...(storage === undefined ? {} : { storage }),
    }));
    await run.write({ sandbox: { state: "configuring" } });
  }
  if (run.operation.source !== undefined) await leaveSource(run);
  if (isBefore(run.sandbox.state, "starting")) await dressForCleaning(run, way);
  await startContainer(run, { state: "starting" });
  await run.write({ sandbox: { state: "readying" } });
}
