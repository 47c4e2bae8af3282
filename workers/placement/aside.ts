/** How long an operation steps aside: pure. */

const FIRST_MS = 500;
const LAST_MS = 120_000;
/** All that stand aside together cost the placer about 50 looks a second, a small part of its time. */
const LOOK_EVERY_MS = 20;

/**
 * Doubles from half a second with each time, as far as the crowd that stands aside asks for: a few are looked at often,
 * so that what becomes free is soon taken, and ten thousand don't keep the placer from the others.
 */
export function asideMs(timesBefore: number, crowd: number): number {
  const most = Math.min(LAST_MS, Math.max(FIRST_MS, crowd * LOOK_EVERY_MS));
  return Math.min(most, FIRST_MS * 2 ** Math.min(timesBefore, 20));
}
