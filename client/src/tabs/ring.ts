/** The newest blocks of a stream, so that a tab that comes late or slept needs no stream of its own. */

import { compareIds } from '../core/cursor.js';
import type { Block } from '../core/transport.js';

/** A block and when this browser had it, in milliseconds since 1970. */
export interface Entry extends Block {
	id: string;
	at: number;
}

/** Enough for a tab that slept through a busy minute; what is older, the server tells. */
const LIMIT_ENTRIES = 512;

export class Ring {
	/** Behind this position, reached at `baseAt`, nothing is missing. */
	base = '';
	baseAt = Infinity;
	#entries: Entry[] = [];

	/** Start anew: what is behind `base` will follow. */
	reset(base: string, at: number): void {
		this.base = base;
		this.baseAt = at;
		this.#entries = [];
	}

	push(entry: Entry): void {
		this.#entries.push(entry);
		if (this.#entries.length > LIMIT_ENTRIES) {
			const { id, at } = this.#entries.shift()!;
			this.base = id;
			this.baseAt = at;
		}
	}

	/**
	 * Everything behind `cursor`, or nothing where that cannot be said. `related`: the cursor is known to
	 * belong to the stream as it is now, so that its place can be told by order. Otherwise the entry itself has
	 * to be here: ids of a stream that was wiped meanwhile compare just as well.
	 */
	after(cursor: string, related: boolean): Entry[] | undefined {
		const at = this.#entries.findLastIndex((entry) => entry.id === cursor);
		if (at >= 0 || cursor === this.base) return this.#entries.slice(at + 1);
		if (!related || !((compareIds(cursor, this.base) ?? -1) > 0)) return undefined;
		return this.#entries.filter((entry) => !((compareIds(entry.id, cursor) ?? 1) <= 0));
	}

	/** Everything that came from `at` on, with the position before it; nothing where that cannot be said. */
	since(at: number): { base: string; entries: Entry[] } | undefined {
		if (at <= this.baseAt) return undefined; // within one millisecond, either may have been first
		const first = this.#entries.findIndex((entry) => entry.at >= at);
		if (first < 0) return { base: this.#entries.at(-1)?.id ?? this.base, entries: [] };
		return { base: this.#entries[first - 1]?.id ?? this.base, entries: this.#entries.slice(first) };
	}
}
