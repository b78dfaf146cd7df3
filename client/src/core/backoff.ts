/** How long to wait before the next attempt: full jitter under a doubling ceiling, above a floor. */
export class Backoff {
	#failures = 0;

	constructor(
		private readonly baseMs: number,
		private readonly capMs: number,
		private readonly random: () => number,
	) {}

	/** Milliseconds. `floorMs` is what the server asked for (`retry:`, Retry-After). */
	next(floorMs: number): number {
		const ceiling = Math.min(this.capMs, this.baseMs * 2 ** this.#failures++);
		return Math.max(floorMs, this.random() * ceiling);
	}

	reset(): void {
		this.#failures = 0;
	}
}
