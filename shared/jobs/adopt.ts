import { z } from "zod";
import { InstanceId, NodeName, OperationId, SandboxId, ServiceName, TeamId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { ExposedService, Metadata, Service } from "./fields.ts";

/** The services of every cmux workspace. */
export const CMUX_SERVICES = [
  { name: "vscode", port: 39_378 },
  { name: "worker", port: 39_376 },
  { name: "vnc", port: 39_380 },
  { name: "xterm", port: 39_383 },
] as const;

/** What the record of an adopted sandbox has in its template's place. */
export const ADOPTED = "(adopted)";

export const adopt = defineJob({
  summary: "Take a container that exists already into the fleet, without touching what runs in it",
  input: z.strictObject({
    node: NodeName,
    vmid: Vmid,
    /** A name to find it by, and what URLs have in place of its id. */
    instanceId: InstanceId.optional(),
    /** Whom it counts for; a client that was made for one team may only name that one. */
    team: TeamId.optional(),
    metadata: Metadata.default({}),
    /** Those of a cmux workspace when absent. */
    services: z
      .array(Service)
      .max(32)
      .refine((all) => new Set(all.map((one) => one.name)).size === all.length, { error: "names must differ" })
      .default(CMUX_SERVICES.map(({ name, port }) => ({ name: ServiceName.parse(name), port }))),
  }),
  output: z.object({
    sandboxId: SandboxId,
    operationId: OperationId,
    node: NodeName,
    vmid: Vmid,
    hostname: z.string(),
    state: z.enum(["running", "stopped", "paused"]),
    /** Absent while it has none that may be used. */
    address: z.string().optional(),
    /** How commands get in. `none`: its exec daemon's token is not known, and there is no SSH to the nodes. */
    exec: z.enum(["execd", "ssh", "none"]),
    /** Those that have a URL as things stand. */
    services: z.array(ExposedService),
    /** ms per step. */
    timings: z.record(z.string(), z.number()),
  }),
  queue: "node",
  makesSandbox: true,
  quotas: "provisions",
  attempts: 5,
  timeoutMs: 300_000,
});
