/** The first item that fits: one of those there already, else the next one that comes. */
export function waitFor<Item>(
  { present, listeners }: { present: Iterable<Item>; listeners: Set<(item: Item) => void> },
  fits: (item: Item) => boolean,
  signal: AbortSignal,
): Promise<Item> {
  for (const item of present) if (fits(item)) return Promise.resolve(item);
  if (signal.aborted) return Promise.reject(signal.reason);
  return new Promise((resolve, reject) => {
    const leave = () => {
      listeners.delete(listen);
      signal.removeEventListener("abort", abort);
    };
    const abort = () => {
      leave();
      reject(signal.reason);
    };
    const listen = (item: Item) => {
      if (!fits(item)) return;
      leave();
      resolve(item);
    };
    listeners.add(listen);
    signal.addEventListener("abort", abort, { once: true });
  });
}
