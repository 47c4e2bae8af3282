/** A worker process of many fleets, each held at its own edge; the parent kills or stops it when all of them are. */
import { loadWorkerConfig } from "../../../shared/config.ts";
import { startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { type Boundary, runWatched, type Watch, wrapEdges } from "./edges.ts";

export interface DoomedFleet {
  name: string;
  env: Record<string, string>;
  nth: number;
  hold: Boundary | null;
  scope: "fleet" | "run";
}

/** What the parent says: first which fleets there are, later which may go on. */
export type DoomedCommand = { type: "start"; fleets: DoomedFleet[] } | { type: "release"; names: string[] };

export type DoomedMessage =
  | { type: "ready" }
  | { type: "edge"; name: string; edge: string }
  | { type: "acted"; name: string; edge: string }
  | { type: "held"; name: string }
  | { type: "over"; name: string };

const tell = (message: DoomedMessage) => process.send?.(message);

wrapEdges();
const watches = new Map<string, Watch>();
process.on("message", (command: DoomedCommand) => {
  if (command.type === "release") for (const name of command.names) watches.get(name)?.release();
  else
    start(command.fleets).then(
      () => tell({ type: "ready" }),
      (error: unknown) => {
        console.error(error);
        process.exit(1);
      },
    );
});

async function start(fleets: readonly DoomedFleet[]): Promise<void> {
  const starts = fleets.map(({ env, ...fleet }) => {
    const { name } = fleet;
    const onEdge = (edge: string) => {
      if (fleet.hold === null) tell({ type: "edge", name, edge });
    };
    const onHeld = () => tell({ type: "held", name });
    const onActed = (edge: string) => tell({ type: "acted", name, edge });
    const onOver = () => tell({ type: "over", name });
    const config = loadWorkerConfig(env);
    const { watch, started } = runWatched({ ...fleet, onEdge, onHeld, onActed, onOver }, () =>
      startFleetWorkers(config, createLogger(config.LOG_LEVEL)),
    );
    watches.set(name, watch);
    return started;
  });
  await Promise.all(starts);
}
