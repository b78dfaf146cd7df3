/**
 * The newest blocks of a stream, so that a tab that comes late or slept needs no stream of its own. Pure.
 *
 * The first entry is the base: behind its position nothing is missing. What is older, the server tells.
 */

import type { Block } from '../core/parser.js';

/** A block and when this tab had it, by its own `performance.now()`. */
export interface Entry extends Block {
	id: string;
	at: number;
}

export type Ring = Entry[];

/** Enough for a tab that slept through a busy minute. */
const LIMIT_ENTRIES = 512;

export function pushBounded(ring: Ring, entry: Entry): void {
	if (ring.push(entry) > LIMIT_ENTRIES) ring.shift();
}

/**
 * Everything behind `cursor`, or nothing where that cannot be said: the entry itself has to be here. Order proves
 * nothing, since ids of a stream that was wiped meanwhile compare just as well.
 */
export const entriesAfter = (ring: Ring, cursor: string): Entry[] | undefined => entriesFrom(ring, ({ id }) => id === cursor, 1);

/** Everything that came from `since` on, led by the entry before it; nothing where that cannot be said. */
// Within one millisecond, either may have been first.
export const entriesSince = (ring: Ring, since: number): Entry[] | undefined => entriesFrom(ring, ({ at }) => at < since, 0);

/** From the last one on that is so, without the first `skipped`. */
function entriesFrom(ring: Ring, isSo: (entry: Entry) => boolean, skipped: number): Entry[] | undefined {
	const at = ring.findLastIndex(isSo);
	return at < 0 ? undefined : ring.slice(at + skipped);
}
