import { FleetError } from "../../shared/errors.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import { execQueue } from "../../shared/queues.ts";
import type { Command } from "../../shared/state/operations.ts";
import { isBefore } from "../../shared/state/records.ts";
import { loadTemplates, type Template } from "../../shared/state/templates.ts";
import { passOver } from "../pass-over.ts";
import type { Run } from "../run/run.ts";
import { checkBase, configureBase, makeBase } from "../sandbox/build-base.ts";
import { fill, wayOf } from "../sandbox/build-steps.ts";
import { clean, cleaningToken } from "../sandbox/clean.ts";
import { convertToTemplate, finishTemplate, undress } from "../sandbox/convert.ts";
import { ownContainer } from "../sandbox/look.ts";
import { shutDownContainer, startContainer } from "../sandbox/power.ts";
import { destroyContainer, releaseCommands } from "../sandbox/release.ts";
import { toReservation } from "../sandbox/reservation.ts";
import { type Handler, Reroute } from "./handler.ts";
import { CLEANED, checkStorage, isCleaned, onNode } from "./template.ts";

export const build: Handler<"build"> = {
  async run(run) {
    const way = wayOf(run);
    if (run.operation.step === undefined) await checkBefore(run);
    if (!isCleaned(run)) {
      const token = way === "execd" ? await cleaningToken(run) : null;
      if (isBefore(run.sandbox.state, "readying")) await onNode(run, () => make(run, token));
      // Commands may take minutes and only talk to the container: they must not keep a place in the node's queue.
      const queue = execQueue(run.sandbox.node ?? "");
      if (run.operation.queue !== queue) throw new Reroute(queue);
      await fill(run, way, token);
      await clean(run, way);
      await run.begin(CLEANED);
    }
    await onNode(run, async () => {
      await shutDownContainer(run);
      await undress(run);
      await convertToTemplate(run);
    });
    return finishTemplate(run, await retire(run));
  },

  async undo(run) {
    const call = run.undoing();
    const destroy = () => destroyContainer(run, { call, writing: call });
    const existed = run.sandbox.state !== "placing" && (await onNode(run, destroy, call));
    return {
      undone: existed ? ["container"] : [],
      write: { sandbox: { state: "failed" }, also: await releaseCommands(run) },
    };
  },
};

async function checkBefore(run: Run<"build">): Promise<void> {
  const { name, version, replace } = run.input;
  if (!replace && version !== undefined) {
    const same = (await namesakes(run)).find((one) => isVersion(one, run.input));
    if (same) {
      throw new FleetError(
        "template_exists",
        `there is a template ${name}:${version} already, ${same.id}; give another version, or replace it`,
        { facts: { template: same.id, name, version } },
      );
    }
  }
  checkStorage(run);
  await checkBase(run);
}

async function make(run: Run<"build">, token: string | null): Promise<void> {
  if (isBefore(run.sandbox.state, "configuring")) await makeBase(run, token);
  if (isBefore(run.sandbox.state, "starting")) {
    await configureBase(run, token);
    const { place, config } = await ownContainer(run);
    await run.write({ also: reserve(run.context.keys, place.node, run.sandbox.id, toReservation(config)) });
  }
  await startContainer(run, { state: "starting" });
  await run.write({ sandbox: { state: "readying" } });
}

/** The team's other templates of this name, newest first. */
async function namesakes({ context, sandbox: { id, team }, input }: Run<"build">): Promise<Template[]> {
  const templates = await loadTemplates(context.redis, context.keys, team, passOver(context));
  return templates
    .filter((one) => one.replica.name === input.name && one.id !== id)
    .sort((a, b) => b.createdAt - a.createdAt);
}

const isVersion = ({ replica }: Template, { name, version }: Run<"build">["input"]): boolean =>
  version === undefined ? replica.tags.length === 0 : replica.tags.includes(`${name}-${version}`);

/** Those that this one takes the place of go in the same step, and are destroyed once nothing is linked to them. */
async function retire(run: Run<"build">): Promise<Command[]> {
  const { keys } = run.context;
  const { replace, keepVersions } = run.input;
  const others = await namesakes(run);
  const replaced = replace ? others.filter((one) => isVersion(one, run.input)) : [];
  const rest = others.filter((one) => !replaced.includes(one));
  const old = keepVersions === undefined ? [] : rest.slice(keepVersions - 1);
  return [...replaced, ...old].map(({ id }) => ["HSET", keys.retired, id, run.id]);
}
