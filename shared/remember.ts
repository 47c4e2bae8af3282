/** A function that keeps what it made of the latest texts: for what is read again and again and seldom changes. */
export function remember<T extends object>(make: (text: string) => T, { most }: { most: number }): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    const found = known.get(text);
    if (found) return found;
    const made = make(text);
    known.set(text, made);
    for (const [oldest] of known) {
      if (known.size <= most) break;
      known.delete(oldest);
    }
    return made;
  };
}
