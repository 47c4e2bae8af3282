import { FleetError } from "../../shared/errors.ts";
import { LINK_PARAMETER, signLink, toLinkKeys } from "../../shared/links.ts";
import { isGone } from "../../shared/state/records.ts";
import type { Handler } from "./handler.ts";

/** Legal in every state of a live sandbox: a link to one that sleeps wakes it. */
export const link: Handler<"link"> = {
  async run(run) {
    const { name, path, ttlSeconds } = run.input;
    const { id, state, services } = run.sandbox;
    const facts = { sandbox: id, service: name };
    if (isGone(state) || state === "destroying")
      throw new FleetError("sandbox_gone", `sandbox ${id} has ended`, { facts });
    const service = services.find((one) => one.name === name);
    if (service === undefined)
      throw new FleetError("service_not_found", `sandbox ${id} exposes no service ${name}; expose it first`, { facts });
    if (service.auth !== "link") {
      const why = `service ${name} has auth ${service.auth}, which takes no links; expose it with auth link`;
      throw new FleetError("unsupported", why, { facts: { ...facts, auth: service.auth } });
    }
    const expiresAtSec = Math.floor(Date.now() / 1_000) + ttlSeconds;
    const target = { sandbox: id, service: name, epoch: service.epoch };
    const token = signLink(toLinkKeys(run.context.config.FLEET_SECRET_KEY), target, { purpose: "link", expiresAtSec });
    const url = new URL(path, service.url);
    url.searchParams.append(LINK_PARAMETER, token);
    return { result: { url: url.href, expiresAt: expiresAtSec * 1_000 } };
  },
};
