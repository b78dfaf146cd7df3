/**
 * Where this tab stands in the stream. Only this file moves the cursor.
 *
 * A cursor means something within one *lineage* only: the stream as it has been since it was last known to
 * lead here without a gap. A `reload_required` begins another one, named by its id, so that all tabs that were
 * told the same reload agree. Within a lineage ids only grow, so a block that is not behind the cursor was seen
 * before (from another tab, or from a poll beside the stream) and is dropped.
 */

import type { Platform } from './platform.js';
import type { Block } from './transport.js';
import { compareIds } from './cursor.js';
import { Ring } from '../tabs/ring.js';

export interface Envelope {
	event: string;
	data: unknown;
}

export const RELOAD = 'reload_required';

export interface FeedListener {
	/** The first position, without a cursor to prove what came before it. */
	began(): void;
	event(envelope: Envelope): void;
}

export class Feed {
	/** None while the cursor is only somebody's word (seeded), and before there is one. */
	lineage: string | undefined;
	readonly ring = new Ring();

	constructor(
		public cursor: string,
		private readonly platform: Platform,
		private readonly listener: FeedListener,
	) {}

	/** Begin at `cursor`, on somebody's word. False if the stream has begun elsewhere. */
	seed(cursor: string): boolean {
		if (this.cursor) return false;
		this.cursor = cursor;
		return true;
	}

	/** The server has answered for the cursor. */
	prove(): void {
		this.lineage ??= String(this.platform.random());
	}

	/** Take `cursor` for granted: everything that this page has fetched is newer. */
	join(cursor: string, lineage: string): void {
		this.cursor = cursor;
		this.lineage = lineage;
		this.ring.reset(cursor, this.platform.now());
	}

	/** Returns the blocks that were new, each with an id. */
	receive(blocks: Block[]): Block[] {
		return blocks.filter((block) => this.#take(block));
	}

	#take({ id, data }: Block): boolean {
		const envelope = data === undefined ? undefined : parseEnvelope(data);
		const isReload = envelope?.event === RELOAD;
		const at = this.platform.now();
		if (id !== undefined) {
			if (!this.cursor) {
				this.cursor = id;
				this.ring.reset(id, at);
				if (!isReload) this.listener.began();
			} else if (isReload) {
				this.cursor = id;
			} else {
				if (this.ring.baseAt === Infinity) this.ring.reset(this.cursor, at);
				if ((compareIds(id, this.cursor) ?? 1) <= 0) return false;
				this.cursor = id;
				this.ring.push(data === undefined ? { id, at } : { id, data, at });
			}
			if (isReload) {
				this.lineage = id;
				this.ring.reset(id, at);
			}
		}
		if (envelope) this.listener.event(envelope);
		return true;
	}
}

/** What cannot be read may have said anything: everything may be stale. */
function parseEnvelope(data: string): Envelope {
	try {
		const envelope = JSON.parse(data);
		if (typeof envelope.event === 'string') return envelope;
	} catch {
		// told below
	}
	return { event: RELOAD, data: { reason: 'malformed' } };
}
