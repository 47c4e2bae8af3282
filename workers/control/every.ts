/**
 * Work of each process by itself, not as jobs of `control`: the worker that has such a job may just have died, and the queue
 * be full or gone. One round at a time: while Redis is away one waits, not many.
 */
export function startEvery(ms: number, work: () => Promise<unknown>, onError: (error: unknown) => void): Disposable {
  let ended = false;
  let working = false;
  const timer = setInterval(() => {
    if (working) return;
    working = true;
    work()
      .catch((error: unknown) => ended || onError(error))
      .finally(() => {
        working = false;
      });
  }, ms);
  return {
    [Symbol.dispose]() {
      ended = true;
      clearInterval(timer);
    },
  };
}
