/**
 * Fetches that were under way when their query went stale.
 *
 * Such a fetch may bring what was read before the change, and its success makes the query count as fresh: the
 * invalidation would be lost (TanStack/query #8530, #11526). The same happens when a fetch is cancelled and the
 * query goes back to what it was before. So each of these queries is invalidated once more when that fetch
 * settles.
 */

import type { Query } from './tanstack.js';

export interface Race {
	/** The query is being invalidated now. */
	watch(query: Query): void;
	/** Whether what the query holds now, or gets next, may be older than the last event. */
	isOpen(query: Query): boolean;
}

/** `lost` is called when the query was invalidated once more. */
export function createRace(lost: (query: Query) => void): Race {
	const fetches = new Map<Query, Promise<unknown>>();
	return {
		watch(query) {
			const { promise } = query;
			if (query.state.fetchStatus === 'idle' || !promise || fetches.get(query) === promise) return;
			fetches.set(query, promise);
			const settled = () => {
				if (fetches.get(query) !== promise) return;
				fetches.delete(query);
				// Where a fetch that began after the event replaced this one, its success makes the query fresh again.
				query.invalidate();
				lost(query);
			};
			promise.then(settled, settled);
		},
		isOpen: (query) => fetches.has(query),
	};
}
