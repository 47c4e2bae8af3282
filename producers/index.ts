/** What a backend imports: `import { createFleet } from "sandbox-fleet"`. Nothing here reads the environment on import. */
export type { ErrorFacts, ErrorRecord, FleetErrorCode } from "../shared/errors.ts";
export { FleetError } from "../shared/errors.ts";
export type { OperationId, SandboxId, ServiceName, SnapshotId, TeamId } from "../shared/ids.ts";
export type { JobInput, JobName, JobOutput } from "../shared/jobs/index.ts";
export type { FleetEvent, FleetEventType } from "../shared/state/events.ts";
export type { OperationStatus, SandboxRecord, SandboxState } from "../shared/state/records.ts";
export { assertRepeatable } from "./assert-repeatable.ts";
export type { Wait } from "./end-watch.ts";
export { createFleet, createFleetFromEnv, type Fleet, type JobMethods } from "./fleet.ts";
export type { AnyHandle, ExecHandle, Handle, HandleOf } from "./handle.ts";
export type { CordonOptions, DrainOptions, NodeRest, Nodes, NodeView, QueueCounts } from "./nodes.ts";
export type { FleetOptions } from "./options.ts";
export type { OutputChunk } from "./output.ts";
export type { Sandboxes, SandboxFilter } from "./sandboxes.ts";
export type { OperationView } from "./status.ts";
export type { SubmitOptions } from "./submit.ts";
export type { EventOptions } from "./watch-events.ts";
