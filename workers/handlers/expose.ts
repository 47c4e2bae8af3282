import { serviceField } from "../../shared/state/records.ts";
import { resolveUrl } from "../../shared/urls.ts";
import { urlFacts } from "../sandbox/url-facts.ts";
import { stayWithNode } from "./exec.ts";
import type { Handler } from "./handler.ts";

export const expose: Handler<"expose"> = {
  async run(run) {
    stayWithNode(run);
    const { PVE_PUBLIC_DOMAIN: publicDomain, PVE_URL_PATTERN: pattern } = run.context.config;
    const service = resolveUrl(run.input, urlFacts(run, run.sandbox.address), { publicDomain, pattern });
    const key = run.context.keys.sandbox(run.sandbox.id);
    return { result: service, write: { also: [["HSET", key, serviceField(service.name), JSON.stringify(service)]] } };
  },
};
