/** `import { createCmuxClient } from "sandbox-fleet/cmux"`: today's in-process client's interface, on the fleet. */
export { FleetError } from "../../shared/errors.ts";
export type { Health } from "../health.ts";
export {
  type CmuxClient,
  type CmuxClientOptions,
  createCmuxClient,
  type Instances,
  type StartOptions,
} from "./client.ts";
export type { InstanceQuery } from "./find.ts";
export type {
  CmuxInstance,
  ExecResult,
  HttpService,
  InstanceSnapshot,
  InstanceStatus,
  Networking,
  PauseOutcome,
} from "./instance.ts";
export type { SnapshotManifest, SnapshotResolver, Snapshots } from "./snapshots.ts";
export type { OrphanedTemplate, SavedTemplate } from "./templates.ts";
