import { z } from "zod";
import type { JobName } from "../../shared/jobs/index.ts";
import { isEnded, type OperationRecord } from "../../shared/state/records.ts";
import type { Run } from "./run.ts";

/** What BullMQ keeps as the job's result: for the board, never output or secrets. */
export interface JobSummary {
  outcome: "succeeded" | "replaced" | "failed" | "canceled" | "unknown";
  queue?: string;
  node?: string;
  vmid?: number;
  urls?: string[];
}

/** Whose results have URLs of services; a link's lets in, and is not for the board. */
const SHOWS_URLS: ReadonlySet<JobName> = new Set<JobName>(["provision", "expose"]);
const WithServices = z.object({ services: z.array(z.object({ url: z.string() })) });
const Exposed = z.object({ url: z.string() });

export function seenOf({ kind, sandbox: { node, vmid } }: Run, result: unknown): Omit<JobSummary, "outcome"> {
  const services = SHOWS_URLS.has(kind)
    ? (WithServices.safeParse(result).data?.services ?? [Exposed.safeParse(result).data ?? []].flat())
    : [];
  const urls = services.map(({ url }) => url);
  return {
    ...(node === undefined ? {} : { node }),
    ...(vmid === undefined ? {} : { vmid }),
    ...(urls.length === 0 ? {} : { urls }),
  };
}

export function summaryOf(operation: OperationRecord): JobSummary {
  return isEnded(operation.status) ? { outcome: operation.status } : { outcome: "unknown" };
}
