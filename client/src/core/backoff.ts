/** How long to wait before the next attempt. Pure. */

/** Full jitter under a ceiling that doubles with each failure: milliseconds; `draw` is from [0, 1). */
export const backoffMs = (baseMs: number, capMs: number, failures: number, draw: number): number =>
	draw * Math.min(capMs, baseMs * 2 ** failures);
