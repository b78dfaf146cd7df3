/**
 * Where this tab stands in the stream. Only this file moves the cursor.
 *
 * Ids only grow, but for a `reload_required`, which may lead anywhere. So a block that is not behind the cursor was
 * seen before (from another tab, or from a poll beside the stream) and is dropped.
 */

import { pushBounded, type Ring } from '../tabs/ring.js';
import { RELOAD } from '../types.js';
import { isCarried, isUpTo } from './cursor.js';
import type { Block } from './parser.js';
import type { Platform } from './platform.js';

export interface Envelope {
	event: string;
	data: unknown;
}

export interface Feed {
	/** '' before there is one. */
	cursor: string;
	/** Something has come. Before, the cursor is only somebody's word, if there is one. */
	hasBegun: boolean;
	/** For tabs that come late. */
	ring: Ring;
	/** Begin anew at `cursor`. */
	begin(cursor: string): void;
	/** Returns the blocks that were new. */
	receive(blocks: Block[]): Block[];
}

/** `tell` is given each event; and nothing, once, where the first position proves nothing of what was before. */
export function createFeed(platform: Platform, tell: (envelope?: Envelope) => void): Feed {
	const take = (block: Block): boolean => {
		const { id, data, event } = block;
		const envelope = data === undefined ? undefined : parseEnvelope(data, event);
		const isReload = envelope?.event === RELOAD;
		if (id !== undefined) {
			if (isReload) {
				feed.begin(id);
			} else if (!isCarried(feed.cursor)) {
				feed.begin(id);
				tell();
			} else if (isUpTo(id, feed.cursor)) {
				return false;
			} else {
				feed.cursor = id;
				pushBounded(feed.ring, { ...block, id, at: platform.performance.now() });
			}
		}
		if (envelope) tell(envelope);
		return true;
	};

	const feed: Feed = {
		cursor: '',
		hasBegun: false,
		ring: [],
		begin(id) {
			feed.cursor = id;
			feed.ring = [{ id, at: platform.performance.now() }];
		},
		receive(blocks) {
			feed.hasBegun ||= blocks.length > 0;
			return blocks.filter(take);
		},
	};
	return feed;
}

/**
 * The `event` of an envelope counts; where the data is none, the block's own name. What has neither may have said
 * anything: everything may be stale.
 */
function parseEnvelope(text: string, name: string | undefined): Envelope {
	let data: any = text;
	try {
		data = JSON.parse(text);
		if (typeof data.event === 'string') return data;
	} catch {
		// told below
	}
	return name ? { event: name, data } : { event: RELOAD, data: { reason: 'malformed' } };
}
