import { toFleetError } from "../../shared/errors.ts";
import type { WorkerContext } from "../context.ts";

/**
 * Does something for each, one after the other. One that fails, such as a record that can't be read, is logged and passed
 * over: the clockwork is for all of them.
 */
export async function forEachRecord<T extends { id: string }>(
  { log }: Pick<WorkerContext, "log">,
  records: Iterable<T>,
  work: (record: T) => Promise<void>,
): Promise<void> {
  for (const record of records) {
    try {
      await work(record);
    } catch (error) {
      const { code, text, cause } = toFleetError(error);
      log.error({ code, id: record.id, problem: text, err: cause }, "the clockwork passed over a record");
    }
  }
}
