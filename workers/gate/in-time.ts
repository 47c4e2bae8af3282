/** What is read of Redis for a visitor, who is told sooner than a connection that is silent or gone would be noticed. */
import { FleetError } from "../../shared/errors.ts";

const ANSWER_MS = 3_000;

/** Throws `redis_unavailable` where the reading takes too long. */
export async function inTime<T>(reading: Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => reject(new FleetError("redis_unavailable", "Redis has not answered for three seconds")),
    ANSWER_MS,
  );
  try {
    return await Promise.race([reading, late]);
  } finally {
    clearTimeout(timer);
  }
}
