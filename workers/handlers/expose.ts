import { randomBytes } from "node:crypto";
import { serviceField } from "../../shared/state/records.ts";
import { resolveUrl } from "../../shared/urls.ts";
import { awaitService } from "../sandbox/service-ready.ts";
import { urlFacts } from "../sandbox/url-facts.ts";
import { stayWithNode } from "./exec.ts";
import type { Handler } from "./handler.ts";

export const expose: Handler<"expose"> = {
  async run(run) {
    stayWithNode(run);
    const { PVE_PUBLIC_DOMAIN: publicDomain, PVE_URL_PATTERN: pattern } = run.context.config;
    const { name, port, auth, waitUntilReady: probe, readyTimeoutMs: timeoutMs } = run.input;
    const known = run.sandbox.services.find((one) => one.name === name);
    // Renewing keeps the links to it; what is hidden and exposed again is another.
    const epoch = known?.epoch ?? randomBytes(6).toString("hex");
    const asked = { name, port, auth: auth ?? known?.auth, epoch };
    const service = resolveUrl(asked, urlFacts(run, run.sandbox.address), { publicDomain, pattern });
    if (probe !== undefined) await awaitService(run, port, { probe, timeoutMs });
    const { keys } = run.context;
    const { id } = run.sandbox;
    const field = ["HSET", keys.sandbox(id), serviceField(service.name), JSON.stringify(service)];
    return { result: service, write: { also: [field, ["SADD", keys.restamp, id]] } };
  },
};
