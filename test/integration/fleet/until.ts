/** Resolves with the first value that is not false, null or undefined; throws after `withinMs`. */
export async function until<T>(
  look: () => Promise<T | false | null | undefined> | T | false | null | undefined,
  what: string,
  withinMs = 30_000,
): Promise<T> {
  const patience = performance.now() + withinMs;
  while (true) {
    const found = await look();
    if (found !== false && found !== null && found !== undefined) return found;
    if (performance.now() > patience) throw new Error(`not within ${withinMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
