/** Options that several commands take. */
import { type Command, Option } from "commander";
import { IdleAction, TtlAction } from "../../../shared/jobs/fields.ts";
import { BATCH_POLICIES } from "../../../shared/state/records.ts";
import { IdempotencyKey } from "../../submit.ts";
import { parseAs, parseDurationMs, parseNumber } from "../parse-values.ts";
import type { GlobalOptions } from "../session.ts";

export interface WaitOptions extends GlobalOptions {
  wait: boolean;
  waitTimeout?: number;
  idempotencyKey?: string;
  onQuota?: "refuse" | "wait";
}

export function addWaitOptions(command: Command): Command {
  return addWaiting(command, "only have it accepted and print its operation; see fleet status")
    .option("--idempotency-key <key>", "the same key with the same input never runs twice", parseAs(IdempotencyKey))
    .addOption(onQuotaOption("refuse"));
}

export function addWaiting(command: Command, otherwise: string): Command {
  return command
    .option("--wait", "wait for the result", true)
    .option("--no-wait", otherwise)
    .option("--wait-timeout <duration>", "wait no longer than this, then end with 124; it goes on", parseDurationMs);
}

export const idleActionOption = (): Option =>
  new Option("--idle-action <action>", "what happens then; pause stops where nothing can be frozen").choices(
    IdleAction.options,
  );

export const ttlActionOption = (): Option =>
  new Option("--ttl-action <action>", "what happens then; pause stops where nothing can be frozen").choices(
    TtlAction.options,
  );

export const onQuotaOption = (otherwise: string): Option =>
  new Option("--on-quota <what>", `where the team has used up a quota (${otherwise})`).choices(["refuse", "wait"]);

export const batchIdOption = (): Option =>
  new Option("--id <id>", "the batch's id, of your choice; the same again goes on with it");

export const policyOption = (): Option =>
  new Option("--policy <policy>", "what a failed one means for the others (keep)").choices(BATCH_POLICIES);

/** For the client, as these options say. */
export const toSubmitOptions = ({ idempotencyKey, onQuota }: WaitOptions) => ({ idempotencyKey, onQuota });

export interface ResourceOptions {
  cores?: number;
  cpulimit?: number;
  cpuunits?: number;
  memory?: number;
  swap?: number;
  disk?: number;
  onboot?: boolean;
}

export function addResourceOptions(command: Command): Command {
  return command
    .option("--cores <n>", "CPU cores", parseNumber)
    .option("--cpulimit <n>", "CPU time limit in cores; 0 is none", parseNumber)
    .option("--cpuunits <n>", "CPU weight: 1 to 10000 on cgroup v2, 2 to 500000 on v1", parseNumber)
    .option("--memory <mib>", "memory in MiB", parseNumber)
    .option("--swap <mib>", "swap in MiB", parseNumber)
    .option("--disk <gib>", "root disk in GiB; it can grow, never shrink", parseNumber)
    .addOption(new Option("--onboot", "start when its node boots"))
    .addOption(new Option("--no-onboot", "do not start when its node boots"));
}

export const toResources = (options: ResourceOptions) =>
  withoutUndefined({
    cores: options.cores,
    cpulimit: options.cpulimit,
    cpuunits: options.cpuunits,
    memoryMib: options.memory,
    swapMib: options.swap,
    diskGib: options.disk,
    onboot: options.onboot,
  });

/** Without what was not given, so that a file's or the spec's value holds. */
export function withoutUndefined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Partial<T>; // same keys
}
