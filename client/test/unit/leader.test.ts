/** One tab, with the lock and the other tabs in the test's hand: what races of a browser bring rarely. */

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { SSEClient, type SSEClientOptions } from '../../src/core/client.js';
import type { Platform } from '../../src/core/platform.js';
import type { Message, Question, Word } from '../../src/tabs/channel.js';
import { Stream, testPlatform } from './support.js';

beforeEach(() => vi.useFakeTimers({ now: 1_700_000_000_000 }));
afterEach(() => vi.useRealTimers());

const turn = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

interface Asked {
	options: LockOptions;
	grant: () => unknown;
	reject: (error: Error) => void;
}

function start(changes: Partial<Platform> = {}, options: SSEClientOptions = { initialLastEventId: '1-0' }) {
	const locks: Asked[] = [];
	const posted: Message[] = [];
	const streams: Stream[] = [];
	const channels: Channel[] = [];
	class Channel {
		onmessage: ((event: MessageEvent) => void) | null = null;
		constructor() {
			channels.push(this);
		}
		postMessage = (message: Message) => void posted.push(message);
		close = () => {};
	}
	const request = (...[, options, grant]: [string, LockOptions, () => unknown]) =>
		new Promise((_, reject) => {
			let isGranted = false;
			locks.push({ options, reject, grant: () => ((isGranted = true), grant()) });
			// As the standard says: what was granted is not aborted any more.
			options.signal?.addEventListener('abort', () => isGranted || reject(new DOMException('aborted', 'AbortError')));
		});
	const platform = testPlatform(
		(_, { signal }) => {
			const stream = new Stream(signal);
			streams.push(stream);
			return stream.response;
		},
		{
			performance: { now: () => performance.now() },
			navigator: { locks: { request } as unknown as LockManager },
			BroadcastChannel: Channel,
			...changes,
		},
	);
	const sse = new SSEClient('https://example.test/s', options, platform);
	const told: string[] = [];
	sse.on('argument_updated', ({ id }) => told.push(String(id)));
	sse.connect();
	const hear = (message: Partial<Word> | Question | { mode: 'poll' }) => channels.at(-1)!.onmessage!({ data: message } as MessageEvent);
	const words = () => posted.filter((message): message is Word => 'term' in message);
	const questions = () => posted.filter((message): message is Question => 'from' in message);
	return { sse, platform, locks, posted, streams, told, hear, words, questions };
}

const state = { term: 1, count: 5, now: 0, hasBegun: true, status: 'live', mode: 'auto', isHidden: false } as const;
const block = (seq: number, id: string) => ({
	id: `1-${seq}`,
	data: JSON.stringify({ event: 'argument_updated', data: { id, reason: 'edited' } }),
});

/** A follower in step, at 1-0, with what its leader had told five times. */
async function follow() {
	const tab = start();
	await turn();
	const { from, cursor } = tab.questions()[0]!;
	tab.hear({ ...state, to: from, cursor, blocks: [] });
	expect(tab.sse.status).toBe('follower');
	return { ...tab, id: from };
}

describe('the lock', () => {
	test('granted to a tab that has left meanwhile is let go at once', async () => {
		const { sse, locks, streams } = start();
		sse.close();
		expect(await locks[0]!.grant()).toBeUndefined();
		await turn(10_000);
		expect([sse.role, streams.length, vi.getTimerCount()]).toEqual([undefined, 0, 0]);
	});

	test('stolen, the tab follows, and waits for the lock again', async () => {
		const { sse, locks, streams } = start();
		void locks[0]!.grant();
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn();
		expect([sse.status, sse.role]).toEqual(['live', 'leader']);
		locks[0]!.reject(new DOMException('stolen', 'AbortError'));
		await turn();
		expect([sse.role, streams[0]!.isAborted, locks.length]).toEqual(['follower', true, 2]);
	});

	test('stolen from a tab that has left meanwhile, it changes nothing', async () => {
		const { sse, locks, streams } = start();
		void locks[0]!.grant();
		await turn();
		sse.close();
		locks[0]!.reject(new DOMException('stolen', 'AbortError'));
		await turn(10_000);
		expect([sse.status, sse.role, locks.length, streams.length]).toEqual(['closed', undefined, 1, 1]);
	});

	test('stolen from itself, a tab leads on, whichever it hears of first', async () => {
		const { sse, locks, streams } = start();
		await turn(8000); // nobody answers: it steals, and is granted what it waited for just then
		expect(locks.map(({ options }) => !!options.steal)).toEqual([false, true]);
		void locks[0]!.grant();
		void locks[1]!.grant();
		locks[0]!.reject(new DOMException('stolen', 'AbortError'));
		await turn();
		expect([sse.role, streams.length]).toEqual(['leader', 1]);
	});

	test('not allowed here, the tab has a stream of its own', async () => {
		const { sse, locks, streams } = start();
		locks[0]!.reject(new DOMException('opaque origin', 'SecurityError'));
		await turn();
		expect([sse.role, streams.length]).toEqual(['alone', 1]);
	});

	test.each<[string, Partial<Platform>]>([
		['locks', { navigator: {} }],
		['a navigator', { navigator: undefined }],
		['channels', { BroadcastChannel: undefined }],
		[
			'the right to a channel',
			{
				BroadcastChannel: class {
					constructor() {
						throw new DOMException('opaque origin', 'SecurityError');
					}
				} as never,
			},
		],
	])('without %s, too', async (_, changes) => {
		const { sse, streams } = start(changes);
		await turn();
		expect([sse.role, streams.length]).toEqual(['alone', 1]);
	});

	test('a page that was left takes no part until it is back, whoever asks for the stream', async () => {
		const page = new EventTarget();
		const { sse, locks } = start({ addEventListener: page.addEventListener.bind(page) });
		page.dispatchEvent(new Event('pagehide'));
		sse.connect();
		expect([sse.role, locks.length]).toEqual([undefined, 1]);
		page.dispatchEvent(new Event('pageshow'));
		expect([sse.role, locks.length]).toEqual(['follower', 2]);
	});

	test('a follower that leaves leaves nothing', async () => {
		const { sse, locks } = await follow();
		sse.close();
		await turn();
		expect([vi.getTimerCount(), locks[0]!.options.signal!.aborted]).toEqual([0, true]);
	});
});

describe('what a follower hears', () => {
	test('news are taken in their order', async () => {
		const { hear, told, sse } = await follow();
		hear({ ...state, count: 6, blocks: [block(1, 'a')] });
		hear({ ...state, count: 7, blocks: [block(2, 'b')] });
		expect([told, sse.lastEventId, sse.hasBegun]).toEqual([['a', 'b'], '1-2', true]);
	});

	test.each<[string, Partial<Word>]>([
		['news', { count: 7, blocks: [block(2, 'b')] }],
		['a state', { count: 6 }],
		['another term', { term: 2, count: 5 }],
		// It begins at another tab's cursor: what was told before that is not in it.
		['an answer to another tab', { count: 6, to: 9, cursor: '1-1', blocks: [block(2, 'b')] }],
	])('%s after something was missed: it asks, and takes nothing', async (_, message) => {
		const { hear, told, sse, questions } = await follow();
		const before = questions().length;
		hear({ ...state, ...message });
		expect([told, sse.lastEventId, questions().length - before]).toEqual([[], '1-0', 1]);
	});

	test('the answer to an earlier question is none', async () => {
		const { hear, told, sse, id } = await follow();
		hear({ ...state, count: 6, blocks: [block(1, 'a')] });
		hear({ ...state, count: 7, to: id, cursor: '1-0', blocks: [block(2, 'b')] });
		expect([told, sse.lastEventId]).toEqual([['a'], '1-1']);
	});

	test('a leader that cannot tell: a stream of its own, until the leader can', async () => {
		const { hear, told, streams, id, sse, questions } = await follow();
		hear({ ...state, count: 8 });
		hear({ ...state, count: 8, to: id, cursor: '1-0' });
		await turn();
		expect(streams).toHaveLength(1);
		hear({ ...state, count: 8, to: id, cursor: '1-0' }); // told again, it goes on
		streams[0]!.write(`id: ${block(2, '').id}\ndata: ${block(2, 'b').data}\n\n`);
		await turn();
		expect([told, streams.length, questions().at(-1)!.cursor]).toEqual([['b'], 1, '1-2']);
		hear({ ...state, count: 9, to: id, cursor: '1-2', blocks: [block(3, 'c')] });
		await turn();
		expect([told, sse.status, streams[0]!.isAborted]).toEqual([['b', 'c'], 'follower', true]);
	});

	test('a mode, from a tab that was told to use it: it stays in step', async () => {
		const { hear, sse, questions } = await follow();
		const before = questions().length;
		hear({ mode: 'poll' });
		expect([sse.mode, sse.status, questions().length]).toEqual(['poll', 'follower', before]);
	});

	test('it asks no leader that it has just heard; while it has to catch up, at each beat', async () => {
		const { hear, questions } = await follow();
		const asked: number[] = [];
		const beat = async (word: Partial<Word>) => {
			hear({ ...state, ...word });
			const before = questions().length;
			await turn(2000);
			asked.push(questions().length - before);
		};
		for (let count = 0; count < 3; count++) await beat({});
		for (let count = 0; count < 3; count++) await beat({ count: 7, to: 9, cursor: '1-6', blocks: [] });
		expect(asked).toEqual([0, 0, 0, 1, 1, 1]);
	});

	test('nothing where there is no network, whatever the leader said last', async () => {
		const { platform, hear, sse } = await follow();
		Object.assign(platform.navigator!, { onLine: false });
		hear(state);
		expect(sse.status).toBe('offline');
	});

	test('without a cursor, a question says since when the page may have fetched, by the clock of the leader that it heard', async () => {
		const { hear, questions, sse } = start({ performance: { now: () => 50_000 } }, {});
		await turn();
		expect(questions().at(-1)).toMatchObject({ cursor: '', term: undefined, since: undefined });
		hear({ ...state, now: 70_000 });
		// With a second in hand: browsers may read their clocks roughly.
		const { from: to, ...question } = questions().at(-1)!;
		expect(question).toEqual({ cursor: '', term: 1, since: 19_000 });
		hear({ ...state, to, cursor: '', blocks: [{ id: '1-0' }, block(1, 'a')] });
		expect([sse.status, sse.lastEventId]).toEqual(['follower', '1-1']);
	});
});

describe('what a leader says', () => {
	async function lead() {
		const tab = start();
		void tab.locks[0]!.grant();
		await turn();
		tab.streams[0]!.write('id: 1-0\n\n');
		await turn();
		tab.posted.length = 0;
		return tab;
	}

	test('one word for each piece with events, and none for heartbeats', async () => {
		const { streams, words } = await lead();
		for (let beat = 0; beat < 5; beat++) {
			streams[0]!.write(':\n\n');
			await turn(1000);
		}
		expect(words()).toEqual([]);
		streams[0]!.write(`id: 1-1\ndata: ${block(1, 'a').data}\n\nid: 1-2\ndata: ${block(2, 'b').data}\n\n`);
		await turn();
		expect(words().map(({ blocks }) => blocks?.map(({ id }) => id))).toEqual([['1-1', '1-2']]);
	});

	test('its own mode, after another tab told one: what was on its way before said the old one', async () => {
		const { hear, words } = await lead();
		hear({ mode: 'poll' });
		expect(words().at(-1)).toMatchObject({ mode: 'poll' });
	});

	test('nothing to another leader: the browser tells which of them is none any more', async () => {
		const { hear, posted, sse } = await lead();
		hear({ ...state, term: 2 });
		expect([posted, sse.status]).toEqual([[], 'live']);
	});

	test('to questions: what is behind the very entry; where that is unknown, nothing', async () => {
		const { streams, hear, words } = await lead();
		streams[0]!.write(`id: 1-1\ndata: ${block(1, 'a').data}\n\nid: 1-3\ndata: ${block(3, 'b').data}\n\n`);
		await turn();
		const ask = (cursor: string) => {
			hear({ from: 9, cursor });
			return words().at(-1)!.blocks?.map(({ id }) => id);
		};
		expect([ask('1-0'), ask('1-1'), ask('1-3')]).toEqual([['1-1', '1-3'], ['1-3'], []]);
		expect([ask('1-2'), ask('0-9'), ask('2-0')]).toEqual([undefined, undefined, undefined]);
		expect(words().at(-1)).toMatchObject({ to: 9, cursor: '2-0', count: 2, hasBegun: true });
	});

	test('to a question without a cursor: what came since, by its own clock in its own term', async () => {
		let steady = 0;
		const { locks, streams, hear, words } = start({ performance: { now: () => steady } });
		void locks[0]!.grant();
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn();
		for (const [seq, item] of [[1, 'a'], [2, 'b']] as const) {
			steady += 1000;
			streams[0]!.write(`id: 1-${seq}\ndata: ${block(seq, item).data}\n\n`);
			await turn();
		}
		const { term, now } = words().at(-1)!;
		expect(now).toBe(2000);
		const ask = (since: number | undefined, heard: number | undefined = term) => {
			hear({ from: 9, cursor: '', term: heard, since });
			const { to, blocks, began } = words().at(-1)!;
			return [to, blocks?.map(({ id }) => id), began];
		};
		expect(ask(500)).toEqual([9, ['1-0', '1-1', '1-2'], false]);
		expect(ask(1500)).toEqual([9, ['1-1', '1-2'], false]);
		expect(ask(2500)).toEqual([9, ['1-2'], false]);
		expect(ask(-500)).toEqual([9, ['1-2'], true]); // older than all that it knows
		// Of another's clock it knows nothing: all who hear its state may ask by its own.
		expect(ask(2500, term + 1)).toEqual([undefined, undefined, undefined]);
		hear({ from: 9, cursor: '' });
		expect(words().at(-1)).not.toHaveProperty('to');
	});

	test('before anything but heartbeats came, a leader has no answers', async () => {
		const { locks, streams, hear, words } = start();
		void locks[0]!.grant();
		await turn();
		streams[0]!.write('retry: 100\n\n:\n\n');
		await turn();
		hear({ from: 9, cursor: '1-0' });
		expect(words().at(-1)).toMatchObject({ hasBegun: false });
		expect(words().at(-1)).not.toHaveProperty('to');
	});
});
