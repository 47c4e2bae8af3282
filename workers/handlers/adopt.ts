import { randomBytes } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { ExposedService } from "../../shared/jobs/fields.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import type { Command } from "../../shared/state/operations.ts";
import { serviceField } from "../../shared/state/records.ts";
import { resolveUrl } from "../../shared/urls.ts";
import { EXECD_TOKEN_ENV } from "../exec/execd.ts";
import type { LxcConfig } from "../pve/api.ts";
import { parseEnv } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { releaseTaken, takeIn } from "../sandbox/adoption.ts";
import { containerOf } from "../sandbox/look.ts";
import { readAddress } from "../sandbox/ready.ts";
import { releaseCommands } from "../sandbox/release.ts";
import { readToken } from "../sandbox/stamp.ts";
import { urlFacts } from "../sandbox/url-facts.ts";
import { readContainerState } from "../ssh/node-tools.ts";
import { NO_WAY_OVER_SSH } from "./exec.ts";
import type { Ending, Handler } from "./handler.ts";

export const adopt: Handler<"adopt"> = {
  async run(run) {
    const config = await run.timed("stamp", () => takeIn(run));
    const state = await readState(run);
    const address = state === "stopped" ? null : await addressOf(run);
    const token = await run.timed("probe", () => usableToken(run, config, { state, address }));
    return finish(run, { state, address, token });
  },

  /** The container stays as it was found. */
  async undo(run) {
    const wasTaken = run.operation.step !== undefined && (await releaseTaken(run, run.undoing()));
    return {
      undone: wasTaken ? ["stamp"] : [],
      write: { sandbox: { state: "failed" }, also: await releaseCommands(run) },
    };
  },
};

interface Standing {
  state: JobOutput<"adopt">["state"];
  address: string | null;
}

/** PVE calls a frozen container running; without SSH nobody can tell, and nobody of the fleet has frozen it. */
async function readState(run: Run): Promise<Standing["state"]> {
  const { place, lxc } = containerOf(run);
  const { status } = await lxc.status(run.call);
  const { shell } = run.context;
  if (status === "stopped" || shell === null) return status;
  try {
    const seen = await readContainerState(shell, place, run.call);
    return seen === "FROZEN" || seen === "FREEZING" ? "paused" : status;
  } catch (error) {
    if (error instanceof FleetError && NO_WAY_OVER_SSH.has(error.code)) return status;
    throw error;
  }
}

/** An address that may not be used keeps nobody's work out of the fleet: it has none then. */
async function addressOf(run: Run): Promise<string | null> {
  try {
    return await readAddress(run);
  } catch (error) {
    if (error instanceof FleetError && error.code === "address_refused") return null;
    throw error;
  }
}

/**
 * The exec token that it was handed at its first boot, where the daemon takes it and no other; null: commands go over SSH.
 * One that can't be asked now is believed.
 */
async function usableToken(run: Run, config: LxcConfig, { state, address }: Standing): Promise<string | null> {
  const token = parseEnv(config.env ?? "")[EXECD_TOKEN_ENV] ?? readToken(config.description);
  if (token === undefined) return null;
  if (state !== "running" || address === null) return token;
  const answer = await run.context.execd.probe({ address, token, signal: run.signal });
  return answer === "ready" || answer === "down" ? token : null;
}

function finish(run: Run<"adopt">, { state, address, token }: Standing & { token: string | null }): Ending<"adopt"> {
  const { keys, secrets, shell } = run.context;
  const { place } = containerOf(run);
  const { hostname } = urlFacts(run, undefined);
  const services = toServices(run, address ?? undefined);
  const also: Command[] = services.map((one) => [
    "HSET",
    keys.sandbox(run.sandbox.id),
    serviceField(one.name),
    JSON.stringify(one),
  ]);
  if (services.length > 0) also.push(["SADD", keys.restamp, run.sandbox.id]);
  if (token !== null) also.push(secrets.toCommand(run.sandbox.id, { execToken: token }));
  return {
    result: {
      sandboxId: run.sandbox.id,
      operationId: run.id,
      ...place,
      hostname,
      state,
      ...(address === null ? {} : { address }),
      exec: token !== null ? "execd" : shell !== null ? "ssh" : "none",
      services,
      timings: run.timings,
    },
    write: { sandbox: { state, ...(state === "stopped" ? {} : { runningAt: Date.now() }) }, also },
  };
}

/** A service without a URL now is exposed once it has one. */
function toServices(run: Run<"adopt">, address: string | undefined): ExposedService[] {
  const { PVE_PUBLIC_DOMAIN: publicDomain, PVE_URL_PATTERN: pattern } = run.context.config;
  const facts = urlFacts(run, address);
  return run.input.services.flatMap((service) => {
    try {
      const epoch = randomBytes(6).toString("hex");
      return [resolveUrl({ ...service, epoch }, facts, { publicDomain, pattern })];
    } catch (error) {
      if (error instanceof FleetError && error.code === "url_unresolvable") return [];
      throw error;
    }
  });
}
