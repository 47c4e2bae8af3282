/** A copy on its way to a template: dressed for its cleaning, undressed of all that was only its own, converted. */

import { FleetError } from "../../shared/errors.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import type { Command } from "../../shared/state/operations.ts";
import { toTemplateCommand } from "../../shared/state/templates.ts";
import type { Ending } from "../handlers/handler.ts";
import { toReplica } from "../inventory/collect.ts";
import type { Params } from "../pve/api.ts";
import { formatNet, formatTags, type NetConfig, parseNet } from "../pve/config-format.ts";
import { isTaskSuccess, taskError } from "../pve/errors.ts";
import type { TaskEntry } from "../pve/replies.ts";
import { Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";
import { cleaningToken } from "./clean.ts";
import { changedParams, desiredNet, rangeOf, tokenParams } from "./configure-clone.ts";
import { ownContainer, type Place } from "./look.ts";
import { mapNetworks, withoutAddress } from "./networks.ts";
import { toReservation } from "./reservation.ts";
import { formatDescription, toFacts } from "./stamp.ts";
import { failedStep, wasRefused } from "./task.ts";

/** What becomes a template. */
export type Maker = Run<"template"> | Run<"build">;

export function toDescription({ sandbox, context, operation, input }: Maker, { vmid }: Place): string {
  const { source, version } = sandbox;
  const stamp = {
    fleet: context.config.FLEET_PREFIX,
    vmid,
    sandbox: sandbox.id,
    operation: operation.id,
    team: sandbox.team,
    at: operation.acceptedAt,
    origin: context.origin,
    template: { ...(source === undefined ? {} : { source }), ...(version === undefined ? {} : { version }) },
    facts: toFacts(sandbox),
  };
  return formatDescription(stamp, { token: null, text: input.description });
}

/**
 * So that it can be started beside its source: with no address, token or network of that one. Over SSH it gets no network
 * at all; for the exec daemon it is a machine of its own.
 */
export async function dressForCleaning(run: Run<"template">, way: "ssh" | "execd"): Promise<void> {
  const { config: settings, inventory, keys } = run.context;
  const own = await ownContainer(run);
  const { place, config } = own;
  const needsLease = way === "execd" && settings.PVE_IP_RANGE !== undefined;
  const leasedIp = needsLease ? await run.leaseAddress(rangeOf(settings)) : undefined;
  const networks = run.operation.networks ?? mapNetworks(config, withoutAddress);
  const forNow = mapNetworks(networks, (net, key) =>
    way === "execd" && key === "net0" ? desiredNet(formatNet(net), {}, settings, leasedIp) : offline(net),
  );
  const token = way === "ssh" ? {} : tokenParams(config, await cleaningToken(run), inventory.current().version);
  const hwaddr = config.net0 === undefined ? undefined : parseNet(config.net0).hwaddr?.toUpperCase();
  await run.begin("configure", {
    operation: { networks },
    sandbox: { hwaddr: hwaddr ?? null },
    also: reserve(keys, place.node, run.sandbox.id, toReservation(config)),
  });
  await put(run, own, { ...commonParams(run), ...forNow, ...token });
}

/** What it needed for its cleaning goes, and what could only be true of its source. */
export async function undress(run: Maker): Promise<void> {
  const own = await ownContainer(run);
  if (own.config.template === true) return;
  await run.begin("undress");
  await put(run, own, {
    ...commonParams(run),
    ...(run.operation.networks ?? mapNetworks(own.config, withoutAddress)),
    description: toDescription(run, own.place),
  });
}

/** Protected it could not be undone; its source's tags say what that one was made from. */
const commonParams = ({ input: { name, version } }: Maker): Params => ({
  onboot: false,
  protection: false,
  ...(version === undefined ? {} : { tags: formatTags([`${name}-${version}`]) }),
});

/** What differs is changed; `env`, which held a token, and tags go where none are wanted. */
async function put(run: Run, { lxc, config }: Awaited<ReturnType<typeof ownContainer>>, wanted: Params): Promise<void> {
  const gone = ["env", "tags"].filter((key) => config[key] !== undefined && wanted[key] === undefined);
  const params = changedParams(config, wanted);
  if (Object.keys(params).length === 0 && gone.length === 0) return;
  const removed = gone.length === 0 ? {} : { delete: gone.join(",") };
  await lxc.setConfig({ ...params, ...removed, digest: config.digest }, run.writing);
}

/** Without a link, and without a boot that waits for one. */
const offline = (net: NetConfig): NetConfig => ({
  ...net,
  ip: "manual",
  ...(net.ip6 === undefined ? {} : { ip6: "manual" }),
  linkDown: true,
});

/** Ends the operation of a container that has become a template. */
export async function finishTemplate(run: Maker, also: readonly Command[] = []): Promise<Ending<"template" | "build">> {
  const { keys, inventory } = run.context;
  const { id, team, address, leasedIp } = run.sandbox;
  const { place, config } = await ownContainer(run);
  const { name, version } = run.input;
  const replica = { ...toReplica(place, {}, config, inventory.current().nodes), locked: false };
  return {
    result: {
      templateId: id,
      snapshotId: id,
      operationId: run.id,
      name,
      ...(version === undefined ? {} : { version }),
      ...place,
      timings: run.timings,
    },
    write: {
      sandbox: { state: "template", address: null, leasedIp: null },
      also: [
        toTemplateCommand(keys, team, { id, createdAt: Date.now(), replica }),
        ...reserve(keys, place.node, id, toReservation({ ...config, template: true })),
        ["DEL", keys.secret(id)],
        ...(address === undefined ? [] : [["HDEL", keys.addresses, address]]),
        ...(leasedIp === undefined ? [] : [["HDEL", keys.ips, leasedIp]]),
        ...also,
      ],
    },
  };
}

const POLL_MS = 250;
const PATIENCE_MS = 60_000;

/** Makes the stopped container a PVE template, once. PVE tells no UPID: the config says when it is one. */
export async function convertToTemplate(run: Run): Promise<void> {
  const { place, lxc, config } = await ownContainer(run);
  if (config.template === true) return;
  await run.timed("convert", async () => {
    const earlier = await listConversions(run, place);
    await run.begin("convert", { open: true });
    // An earlier run's may be at work.
    if (!earlier.some(({ endtime }) => endtime === undefined)) {
      await lxc.template(run.writing).catch(async (error: unknown) => {
        if (wasRefused(error)) await run.begin("convert");
        throw error;
      });
    }
    await awaitConversion(
      run,
      place,
      new Set(earlier.filter(({ endtime }) => endtime !== undefined).map(({ upid }) => upid)),
    );
    run.close();
  });
}

async function awaitConversion(run: Run, place: Place, earlier: ReadonlySet<string>): Promise<void> {
  const patience = performance.now() + PATIENCE_MS;
  while ((await ownContainer(run)).config.template !== true) {
    const failed = (await listConversions(run, place)).find(
      ({ upid, endtime, status = "" }) => endtime !== undefined && !earlier.has(upid) && !isTaskSuccess(status),
    );
    if (failed === undefined && performance.now() < patience) {
      await run.pause(POLL_MS);
      continue;
    }
    await run.begin(failedStep("convert"));
    if (failed !== undefined) throw taskError(failed.status ?? "", Upid.parse(failed.upid));
    throw new FleetError("task_failed", `container ${place.vmid} on ${place.node} has not become a template`, {
      facts: { ...place },
    });
  }
}

const listConversions = ({ context, call }: Run, { node, vmid }: Place): Promise<TaskEntry[]> =>
  context.pve.tasks.list(node, { source: "all", vmid, typefilter: "vztemplate" }, call);
