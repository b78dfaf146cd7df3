/** Fetches that every browser begins at one moment, where all that a page shows goes stale: spread, and few at once. */

import type { Query } from './tanstack.js';

/** A fetch that takes longer keeps nothing else from being fetched. */
const HELD_LIMIT_MS = 5000;

/** As `refetchQueries` chooses the active ones. */
export const isWanted = (query: Query): boolean => query.isActive() && !query.isStatic?.();

/** An error is the query's own. */
export const fetchQuery = (query: Query): Promise<unknown> =>
	// Not cancelled: fetches that take longer than events are apart would never end. Which of them began too early,
	// `Race` knows.
	query.fetch(undefined, { cancelRefetch: false }).catch(() => {});

export interface Spread {
	/** At once, at most. */
	limit: number;
	/** Its turn comes at a moment drawn from the next `jitterMs`. */
	add(query: Query, jitterMs?: number): void;
	/** What waits for nothing but this is fetched: no longer paused. */
	run(): void;
}

export function createSpread(isPaused: () => boolean): Spread {
	const queue = new Set<Query>();
	let running = 0;

	const run = () => {
		for (const query of queue) {
			if (running >= spread.limit || isPaused()) return;
			queue.delete(query);
			// Since it was marked somebody may have left it, or have had it fetched.
			if (!query.state.isInvalidated || !isWanted(query)) continue;
			running++;
			const held = new Promise((resolve) => setTimeout(resolve, HELD_LIMIT_MS));
			void Promise.race([held, fetchQuery(query)]).then(() => {
				running--;
				run();
			});
		}
	};

	const spread: Spread = {
		limit: 0,
		run,
		add(query, jitterMs) {
			const join = () => {
				queue.add(query);
				run();
			};
			if (jitterMs) setTimeout(join, Math.random() * jitterMs);
			else join();
		},
	};
	return spread;
}
