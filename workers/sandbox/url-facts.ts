import type { SandboxRecord } from "../../shared/state/records.ts";
import type { UrlFacts } from "../../shared/urls.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";

/** What URL resolution needs to know of the run's sandbox. */
export function urlFacts(run: Run, address: string | undefined, sandbox: SandboxRecord = run.sandbox): UrlFacts {
  const { place } = containerOf(run, sandbox);
  const node = run.context.inventory.current().nodes.find(({ name }) => name === place.node);
  return {
    id: sandbox.id,
    instanceId: sandbox.instanceId,
    vmid: place.vmid,
    hostname: sandbox.hostname ?? `ct-${place.vmid}`,
    dnsSearch: node?.dnsSearch,
    address,
  };
}
