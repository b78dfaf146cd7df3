/**
 * Passes over the whole cache, in slices that leave the page time to answer.
 *
 * One pass ends before the next begins: what was told first is marked first.
 */

import { report } from './report.js';
import type { Query, QueryClient } from './tanstack.js';

/** Of a frame of 16 ms, so that it can still be painted. */
const SLICE_MS = 5;

/**
 * Has `visit` called for every query that is in the cache when its pass begins, then `done`; an error is the
 * application's, of a listener or an option, and the pass goes on. What fits into one slice is done before this returns.
 */
export type Sweep = (visit: (query: Query) => void, done?: () => void) => void;

export function createSweep(queryClient: QueryClient): Sweep {
	const passes: Parameters<Sweep>[] = [];
	/** The cache as the first pass found it. */
	let queries: Query[] | undefined;
	let position = 0;

	const run = () => {
		const endsAt = performance.now() + SLICE_MS;
		while (passes[0]) {
			const [visit, done] = passes[0];
			const all = (queries ??= queryClient.getQueryCache().getAll());
			let slice: (() => void) | undefined = () => {
				while (position < all.length) {
					try {
						visit(all[position++]!);
					} catch (error) {
						report(error);
					}
					if (performance.now() >= endsAt) return;
				}
			};
			// TanStack tells its listeners once for all that is done while it filters: a page renders once, not for each query.
			const predicate = () => {
				slice?.();
				slice = undefined;
				return false;
			};
			void queryClient.invalidateQueries({ predicate, refetchType: 'none' });
			predicate();
			if (position < all.length) return soon(run);
			queries = undefined;
			position = 0;
			done?.();
			passes.shift();
		}
	};

	return (...pass) => {
		// While one runs, it is in the list.
		if (passes.push(pass) === 1) run();
	};
}

/** In another task, also in a hidden page, whose timers come once a second. */
function soon(run: () => void): void {
	if (!globalThis.MessageChannel) return void setTimeout(run);
	const { port1, port2 } = new MessageChannel();
	port1.onmessage = () => {
		port1.close(); // it would keep Node from ending
		run();
	};
	port2.postMessage(0);
}
