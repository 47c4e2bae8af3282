import type { UrlFacts } from "../../shared/urls.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";

/** What URL resolution needs to know of the run's sandbox. */
export function urlFacts(run: Run, address: string | undefined): UrlFacts {
  const { place } = containerOf(run);
  const node = run.context.inventory.current().nodes.find(({ name }) => name === place.node);
  return {
    id: run.sandbox.id,
    instanceId: run.sandbox.instanceId,
    vmid: place.vmid,
    hostname: run.sandbox.hostname ?? `ct-${place.vmid}`,
    dnsSearch: node?.dnsSearch,
    address,
  };
}
