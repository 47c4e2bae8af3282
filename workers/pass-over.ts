import type { PassOver } from "../shared/state/codec.ts";
import type { WorkerContext } from "./context.ts";

/** What can't be read is told of, and the others are gone on with. */
export const passOver =
  ({ log }: Pick<WorkerContext, "log">): PassOver =>
  ({ code, text }) =>
    log.warn({ code, problem: text }, "a record was passed over");
