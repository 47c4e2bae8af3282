/** A worker process of many fleets, each held at its own edge; the parent kills it when all of them are. */
import { loadWorkerConfig } from "../../../shared/config.ts";
import { startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { type Boundary, runWatched, wrapEdges } from "./edges.ts";

export interface DoomedFleet {
  name: string;
  env: Record<string, string>;
  nth: 1 | 2;
  hold: Boundary | null;
}

export type DoomedMessage =
  | { type: "ready" }
  | { type: "edge"; name: string; edge: string }
  | { type: "held"; name: string };

const tell = (message: DoomedMessage) => process.send?.(message);

wrapEdges();
process.once("message", (fleets: DoomedFleet[]) => {
  const starts = fleets.map(({ env, ...fleet }) => {
    const { name } = fleet;
    const onEdge = (edge: string) => {
      if (fleet.hold === null) tell({ type: "edge", name, edge });
    };
    const config = loadWorkerConfig(env);
    return runWatched({ ...fleet, onEdge, onHeld: () => tell({ type: "held", name }) }, () =>
      startFleetWorkers(config, createLogger(config.LOG_LEVEL)),
    );
  });
  Promise.all(starts).then(
    () => tell({ type: "ready" }),
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
});
