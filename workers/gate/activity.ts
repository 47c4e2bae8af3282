/** When sandboxes that may not be idle for ever, or whose TTL counts from there, were last used through this gate; written down every few seconds at most. */
import type { Logger } from "pino";
import { runScript } from "../../shared/redis/script.ts";
import { withPrelude } from "../../shared/state/prelude.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";

/** Well below the shortest `idleSeconds`. */
const EVERY_MS = 2_000;

export interface Activity extends AsyncDisposable {
  touch(sandbox: SandboxRecord): void;
}

/** Of those that are looked at; a later time stays. ARGV: prefix, then for each: sandbox, time. */
const TOUCH = withPrelude(`
for i = 2, #ARGV, 2 do
  local known = redis.call('HGET', P..':uses', ARGV[i])
  if known and tonumber(known) < tonumber(ARGV[i + 1]) then redis.call('HSET', P..':uses', ARGV[i], ARGV[i + 1]) end
  extendByUse(ARGV[i], ARGV[i + 1])
end
return 1
`);

export function startActivity({ redis, keys, log }: Pick<WorkerContext, "redis" | "keys"> & { log: Logger }): Activity {
  const used = new Map<string, number>();
  const written = new Map<string, number>();
  let writing: Promise<unknown> = Promise.resolve();
  const write = (entries: Iterable<readonly [string, number]>) => {
    const args = [...entries].flat();
    if (args.length === 0) return;
    writing = runScript(redis, TOUCH, [keys.uses], [keys.prefix, ...args]).catch((error: unknown) =>
      log.debug({ err: error }, "could not write down which sandboxes are used"),
    );
  };
  const timer = setInterval(() => {
    const since = Date.now() - EVERY_MS;
    write([...used].filter(([id, at]) => at > (written.get(id) ?? 0)));
    for (const [id, at] of used) written.set(id, at);
    for (const [id, at] of written) if (at < since) written.delete(id);
    used.clear();
  }, EVERY_MS);
  return {
    touch({ id, idleSeconds, ttlExtendOnUse }) {
      if (idleSeconds === undefined && !ttlExtendOnUse) return;
      const now = Date.now();
      // The first use in a while is written at once: its time may be just about up.
      if (written.has(id)) used.set(id, now);
      else {
        written.set(id, now);
        write([[id, now]]);
      }
    },
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      write(used);
      await writing;
    },
  };
}
