/** How often an address may be wrong: counted in memory, in fixed windows; bounded, so that many addresses cost no more. */
export interface Limiter {
  isOver(address: string): boolean;
  count(address: string): void;
  /** One count less, where it came to no harm. */
  takeBack(address: string): void;
}

const REMEMBERED = 50_000;

export function createLimiter(
  { most, perMs }: { most: number; perMs: number },
  now: () => number = () => performance.now(),
): Limiter {
  const counts = new Map<string, number>();
  let begun = now();
  const turn = () => {
    if (now() - begun < perMs) return;
    counts.clear();
    begun = now();
  };
  return {
    isOver(address) {
      turn();
      return (counts.get(address) ?? 0) >= most;
    },
    count(address) {
      turn();
      if (counts.size >= REMEMBERED && !counts.has(address)) return;
      counts.set(address, (counts.get(address) ?? 0) + 1);
    },
    takeBack(address) {
      const count = counts.get(address);
      if (count !== undefined) counts.set(address, Math.max(0, count - 1));
    },
  };
}
