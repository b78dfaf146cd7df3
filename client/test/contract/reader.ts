/**
 * The client beneath its dispatch: a source and a feed, put together as a tab does, which tell of events as a browser's
 * EventSource would. Other suites know that, and nothing of envelopes; what is on the wire is judged by it.
 */

import { createFeed } from '../../src/core/feed.js';
import type { Platform } from '../../src/core/platform.js';
import type { Outcome } from '../../src/core/transport.js';
import { createSource, type SourceOptions } from '../../src/polling.js';

export interface Heard {
	type: string;
	data: string;
	lastEventId: string;
}

export interface Reader {
	restart(): void;
	stop(): void;
}

export interface ReaderOptions extends SourceOptions {
	lastEventId?: string | undefined;
	hear(event: Heard): void;
	fail?(outcome: Outcome): void;
}

export function read(url: string, options: ReaderOptions, platform: Platform = globalThis): Reader {
	const { lastEventId, hear, fail = () => {} } = options;
	const feed = createFeed(platform, () => {});
	if (lastEventId) feed.begin(lastEventId);
	const source = createSource({
		platform,
		url,
		options,
		cursor: () => feed.cursor,
		receive(blocks) {
			// One after another: each is told with the position that it led to.
			for (const block of blocks) {
				for (const { data, event = 'message' } of feed.receive([block])) {
					if (data !== undefined) hear({ type: event, data, lastEventId: feed.cursor });
				}
			}
		},
		changed() {},
		failed: fail,
	});
	source.start();
	return source;
}
