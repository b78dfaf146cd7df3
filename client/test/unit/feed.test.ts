import { describe, expect, test } from 'vitest';
import { createFeed, type Envelope } from '../../src/core/feed.js';
import type { Block } from '../../src/core/parser.js';
import { testPlatform } from './support.js';

/** What is told of blocks that come after a position. */
function tell(...blocks: Block[]) {
	const told: (Envelope | undefined)[] = [];
	const feed = createFeed(testPlatform(() => new Response()), (envelope) => told.push(envelope));
	feed.begin('1-0');
	feed.receive(blocks);
	return { told, cursor: feed.cursor, ring: feed.ring };
}

const MALFORMED = { event: 'reload_required', data: { reason: 'malformed' } };

describe('what a block says', () => {
	const cases: [string, Block, Envelope][] = [
		['an envelope', { data: '{"event":"a","data":{"id":7}}' }, { event: 'a', data: { id: 7 } }],
		['an envelope in a block with a name: the envelope\'s counts', { event: 'b', data: '{"event":"a","data":7}' }, { event: 'a', data: 7 }],
		['JSON by the name of its block', { event: 'b', data: '{"id":7}' }, { event: 'b', data: { id: 7 } }],
		['an `event` that is no name', { event: 'b', data: '{"event":7}' }, { event: 'b', data: { event: 7 } }],
		['JSON of no object', { event: 'b', data: '[7]' }, { event: 'b', data: [7] }],
		['null', { event: 'b', data: 'null' }, { event: 'b', data: null }],
		['text by the name of its block', { event: 'b', data: '{"id":7' }, { event: 'b', data: '{"id":7' }],
		['nothing at all by a name', { event: 'b', data: '' }, { event: 'b', data: '' }],
		['a name that every object has', { event: 'constructor', data: '7' }, { event: 'constructor', data: 7 }],
		['no envelope and no name: it may have been anything', { data: '{"id":7}' }, MALFORMED],
		['null without a name', { data: 'null' }, MALFORMED],
		['no JSON and no name', { data: 'Hello' }, MALFORMED],
		['an envelope without a name', { data: '{"event":"","data":7}' }, { event: '', data: 7 }],
	];
	test.each(cases)('%s', (_, block, expected) => {
		expect(tell(block)).toMatchObject({ told: [expected], cursor: '1-0' });
		expect(tell({ ...block, id: '2-0' })).toMatchObject({ told: [expected], cursor: '2-0' });
	});

	test('a block that is named so is a reload, which may lead back', () => {
		const block = { event: 'reload_required', data: '{"reason":"trimmed"}' };
		expect(tell({ ...block, id: '0-5' })).toMatchObject({ told: [{ event: 'reload_required', data: { reason: 'trimmed' } }], cursor: '0-5' });
	});

	test('other tabs are told the name too', () => {
		expect(tell({ id: '2-0', event: 'b', data: '7' }).ring.at(-1)).toMatchObject({ id: '2-0', event: 'b', data: '7' });
	});
});

test.each(['', '日本', 'a\nb', 'x'.repeat(1001)])('behind a cursor that the server was not told, what was before is unknown: %j', (cursor) => {
	const told: (Envelope | undefined)[] = [];
	const feed = createFeed(testPlatform(() => new Response()), (envelope) => told.push(envelope));
	feed.begin(cursor);
	feed.receive([{ id: '7-0' }]);
	expect(told).toEqual([undefined]);
	feed.receive([{ id: '7-0' }, { id: '8-0', data: '{"event":"a","data":7}' }]);
	expect([told, feed.cursor, feed.ring.map(({ id }) => id)]).toEqual([[undefined, { event: 'a', data: 7 }], '8-0', ['7-0', '8-0']]);
});

test('a feed has begun with the first block, and returns those that are new', () => {
	const feed = createFeed(testPlatform(() => new Response()), () => {});
	expect([feed.receive([]), feed.hasBegun, feed.cursor, feed.ring]).toEqual([[], false, '', []]);
	const blocks = ['1-0', '1-1', '1-1', '1-0', '1-2'].map((id) => ({ id }));
	expect(feed.receive(blocks)).toEqual([{ id: '1-0' }, { id: '1-1' }, { id: '1-2' }]);
	expect([feed.receive([]), feed.hasBegun, feed.cursor]).toEqual([[], true, '1-2']);
});

test('what the browser had is dated by a clock that nobody sets', () => {
	let steady = 5;
	const feed = createFeed({ ...testPlatform(() => new Response()), performance: { now: () => steady } }, () => {});
	feed.begin('1-0');
	steady = 7;
	feed.receive([{ id: '2-0' }]);
	expect(feed.ring.map(({ at }) => at)).toEqual([5, 7]);
});
