/** How long to wait before the next attempt. Pure. */

/** What anybody waits for without asking why. */
const LEAST_PATIENCE_MS = 4000;

/**
 * The longest pause while something has failed for `sinceMs`, in milliseconds: half of that. So the end of a short
 * trouble is noticed soon after it, and a long one costs few attempts.
 */
export const patienceMs = (sinceMs: number): number => Math.max(LEAST_PATIENCE_MS, sinceMs / 2);

/** Full jitter under a ceiling that doubles with each failure: milliseconds; `draw` is from [0, 1). */
export const backoffMs = (baseMs: number, capMs: number, failures: number, draw: number): number =>
	draw * Math.min(capMs, baseMs * 2 ** failures);
