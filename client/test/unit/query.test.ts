import type { PersistedClient } from '@tanstack/query-persist-client-core';
import { dehydrate, hydrate, QueryClient, QueryObserver } from '@tanstack/react-query';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { SSEClient } from '../../src/core/client.js';
import { type Binding, bindQueryClient, type BindOptions, withCursor } from '../../src/query/index.js';
import { reload, Stream, testPlatform, updated } from './support.js';

const FRAME_MS = 16;
const turn = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => vi.useFakeTimers({ now: 1_700_000_000_000 }));
afterEach(() => {
	hide(false);
	vi.useRealTimers();
});

function hide(isHidden: boolean): void {
	Object.defineProperty(document, 'hidden', { value: isHidden, configurable: true });
	document.dispatchEvent(new Event('visibilitychange'));
}

const KEYS: BindOptions['keys'] = { argument_updated: ({ id }) => [['item', id]] };

/** A database, a page's cache of it that never fetches by itself, and a stream that the test writes to. */
function start({ cursor = '1-0', options = {} }: { cursor?: string; options?: Partial<BindOptions> } = {}) {
	let stream!: Stream;
	const sse = new SSEClient(
		'https://example.test/s',
		cursor ? { initialLastEventId: cursor } : {},
		testPlatform((_, { signal }) => (stream = new Stream(signal)).response),
	);
	const queryClient = new QueryClient({
		defaultOptions: {
			queries: { staleTime: Infinity, gcTime: Infinity, retry: false, refetchOnMount: false, refetchOnWindowFocus: false },
		},
	});
	const database = new Map<string, number>();
	const fetches: string[] = [];
	let delayMs = 0;
	const show = (id: string) => {
		const observer = new QueryObserver(queryClient, {
			queryKey: ['item', id],
			queryFn: async () => {
				fetches.push(id);
				const version = database.get(id) ?? 0;
				if (delayMs) await new Promise((resolve) => setTimeout(resolve, delayMs));
				return version;
			},
		});
		return observer.subscribe(() => {});
	};
	const unbind = bindQueryClient(sse, queryClient, { keys: KEYS, ...options });
	sse.connect();
	return {
		sse, queryClient, database, fetches, show, unbind,
		write: (text: string) => stream.write(text),
		cut: () => stream.end(),
		slow: (ms: number) => (delayMs = ms),
		data: (id: string) => queryClient.getQueryData<number>(['item', id]),
		change: (id: string, eventId: string) => {
			database.set(id, (database.get(id) ?? 0) + 1);
			stream.write(updated(eventId, id));
		},
	};
}

async function live(given?: Parameters<typeof start>[0]) {
	const page = start(given);
	await turn();
	page.write('id: 1-0\n\n');
	await turn();
	return page;
}

describe('binding', () => {
	test('what an event names is fetched, once for all that came in a frame, and nothing else', async () => {
		const page = await live();
		for (const id of ['a', 'b', 'c']) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		for (let seq = 0; seq < 50; seq++) page.change('a', `2-${seq}`);
		page.change('b', '3-0');
		await turn(FRAME_MS);
		expect(page.fetches).toEqual(['a', 'b']);
		expect([page.data('a'), page.data('b')]).toEqual([50, 1]);
	});

	test('one key is fetched only so often, and the last event is not lost', async () => {
		const page = await live();
		page.show('a');
		await turn(2000);
		page.fetches.length = 0;
		for (let count = 0; count < 30; count++) {
			page.change('a', `2-${count}`);
			await turn(100);
		}
		await turn(2000);
		expect(page.fetches.length).toBeLessThanOrEqual(5);
		expect(page.data('a')).toBe(30);
	});

	test('a clock that is set back keeps nothing from being fetched', async () => {
		const page = await live();
		page.show('a');
		await turn(2000);
		page.change('a', '2-0');
		await turn(FRAME_MS);
		vi.setSystemTime(Date.now() - 3_600_000);
		page.change('a', '3-0');
		await turn(2000);
		expect(page.data('a')).toBe(2);
	});

	test('fetches slower than events are apart still end, and the last is newest', async () => {
		const page = await live({ options: { minIntervalMs: 0 } });
		page.show('a');
		await turn(100);
		page.slow(700);
		for (let count = 0; count < 20; count++) {
			page.change('a', `2-${count}`);
			await turn(100);
		}
		expect(page.data('a')).toBeGreaterThan(0);
		await turn(2000);
		expect(page.data('a')).toBe(20);
	});

	test('an event during the first fetch has it fetched again', async () => {
		const page = await live();
		page.slow(500);
		page.show('a');
		await turn(100);
		page.change('a', '2-0');
		await turn(2000);
		expect(page.fetches).toEqual(['a', 'a']);
		expect(page.data('a')).toBe(1);
	});

	test('a fetch that was begun anew after the event is not repeated', async () => {
		const page = await live();
		page.show('a');
		await turn(2000);
		page.fetches.length = 0;
		page.slow(500);
		void page.queryClient.refetchQueries({ queryKey: ['item', 'a'] });
		await turn(100);
		page.change('a', '2-0');
		await turn(100);
		void page.queryClient.refetchQueries({ queryKey: ['item', 'a'] }, { cancelRefetch: true });
		await turn(2000);
		expect(page.fetches).toEqual(['a', 'a']);
		expect(page.queryClient.getQueryState(['item', 'a'])).toMatchObject({ data: 1, isInvalidated: false });
	});

	test('an event during a fetch that nobody looks at any more leaves it stale', async () => {
		const page = await live();
		page.slow(500);
		const leave = page.show('a');
		await turn(100);
		page.change('a', '2-0');
		await turn(50);
		leave();
		await turn(2000);
		expect(page.queryClient.getQueryState(['item', 'a'])?.isInvalidated).toBe(true);
	});

	test('a hidden page only marks, and fetches when it is shown', async () => {
		const page = await live();
		page.show('a');
		await turn(2000);
		page.fetches.length = 0;
		hide(true);
		for (let count = 0; count < 5; count++) {
			page.change('a', `2-${count}`);
			await turn(3000);
		}
		expect(page.fetches).toEqual([]);
		expect(page.queryClient.getQueryState(['item', 'a'])?.isInvalidated).toBe(true);
		hide(false);
		await turn();
		expect(page.fetches).toEqual(['a']);
		expect(page.data('a')).toBe(5);
	});

	test('reload_required: everything bound is fetched once, after a jitter', async () => {
		const page = await live({ options: { bound: [['item']] } });
		for (const id of ['a', 'b']) page.show(id);
		page.queryClient.setQueryData(['other'], 1);
		await turn(2000);
		page.fetches.length = 0;
		vi.spyOn(Math, 'random').mockReturnValue(0.5);
		page.write(reload('5-0'));
		await turn(FRAME_MS);
		expect(page.fetches).toEqual([]);
		expect(page.queryClient.getQueryState(['item', 'a'])?.isInvalidated).toBe(true);
		await turn(1000);
		vi.restoreAllMocks();
		await turn(5000);
		expect(page.fetches).toEqual(['a', 'b']);
		expect(page.queryClient.getQueryState(['other'])?.isInvalidated).toBe(false);
	});

	test('reload_required: fetches are spread, few at once, and one that never ends keeps nothing from the others', async () => {
		const page = await live({ options: { reloadConcurrency: 3 } });
		const ids = Array.from({ length: 40 }, (_, number) => String(number));
		for (const id of ids) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		page.slow(100_000);
		vi.spyOn(Math, 'random').mockImplementation(() => (page.queryClient.isFetching() + 1) / 100);
		page.write(reload('5-0'));
		await turn(FRAME_MS);
		expect(page.fetches).toEqual([]);
		await turn(1000);
		expect(page.fetches.length).toBe(3);
		await turn(5000);
		expect(page.fetches.length).toBe(6);
		vi.restoreAllMocks();
		page.slow(100);
		await turn(5000);
		let most = 0;
		for (let count = 0; count < 200; count++) {
			await turn(20);
			most = Math.max(most, page.queryClient.isFetching());
		}
		expect(most).toBeLessThanOrEqual(3 + 6);
		expect([...page.fetches].sort()).toEqual([...ids].sort());
	});

	test('reload_required: each query draws its own moment', async () => {
		const page = await live({ options: { reloadJitterMs: 1000 } });
		for (const id of ['a', 'b', 'c']) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		const draws = [0.9, 0.1, 0.5];
		vi.spyOn(Math, 'random').mockImplementation(() => draws.shift() ?? 0);
		page.write(reload('5-0'));
		await turn(FRAME_MS + 150);
		expect(page.fetches).toEqual(['b']);
		await turn(400);
		expect(page.fetches).toEqual(['b', 'c']);
		await turn(400);
		expect(page.fetches).toEqual(['b', 'c', 'a']);
		vi.restoreAllMocks();
	});

	test('reload_required: what was left or fetched before its turn is not fetched, what is hidden when it is shown', async () => {
		const page = await live();
		const leave = page.show('a');
		for (const id of ['b', 'c']) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		vi.spyOn(Math, 'random').mockReturnValue(0.5);
		page.write(reload('5-0'));
		await turn(500);
		leave();
		page.change('b', '6-0');
		await turn(FRAME_MS);
		expect(page.fetches).toEqual(['b']);
		hide(true);
		await turn(3000);
		expect(page.fetches).toEqual(['b']);
		hide(false);
		await turn();
		expect(page.fetches).toEqual(['b', 'c']);
		expect(page.queryClient.getQueryState(['item', 'a'])?.isInvalidated).toBe(true);
		vi.restoreAllMocks();
	});

	test('a stream that begins here calls stale what was fetched before', async () => {
		const page = start({ cursor: '' });
		page.show('a');
		await turn();
		page.database.set('a', 7);
		page.write('id: 9-0\n\n');
		await turn(FRAME_MS);
		expect(page.data('a')).toBe(7);
	});

	test('keys that throw make everything stale, and say so', async () => {
		const report = vi.fn();
		vi.stubGlobal('reportError', report);
		const page = await live({
			options: {
				keys: {
					argument_updated: () => {
						throw new Error('no such id');
					},
				},
			},
		});
		page.show('a');
		await turn(2000);
		page.change('a', '2-0');
		await turn(FRAME_MS);
		expect(page.data('a')).toBe(1);
		expect(report).toHaveBeenCalledWith(new Error('no such id'));
		vi.unstubAllGlobals();
	});

	test.each<[string, BindOptions['keys'], string[]]>([
		['a function', KEYS, ['item', 'list', 'other']],
		['lists', { argument_updated: [['item', ({ id }) => String(id)], ['list', 'new']], reload_required: [['note']] }, ['item', 'list']],
		['a list and a function', { argument_updated: [['item']], reload_required: () => [] }, ['item', 'list', 'other']],
		['a list that begins with a function', { argument_updated: [[({ id }) => id]] }, ['item', 'list', 'other']],
		['nothing', {}, ['item', 'list', 'other']],
	])('bound by default: %s', async (_, keys, stale) => {
		const page = await live({ options: { keys } });
		for (const key of [['item', 'a'], ['list', 'new', 1], ['other']]) page.queryClient.setQueryData(key, 1);
		page.write(reload('5-0'));
		await turn(FRAME_MS);
		const queries = page.queryClient.getQueryCache().getAll();
		expect(queries.filter(({ state }) => state.isInvalidated).map(({ queryKey }) => queryKey[0])).toEqual(stale);
	});

	test('a key whose part is a function names what the data says', async () => {
		const page = await live({ options: { keys: { argument_updated: [['item', ({ id }) => String(id)]] } } });
		for (const id of ['a', 'b']) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		page.change('b', '2-0');
		await turn(FRAME_MS);
		expect(page.fetches).toEqual(['b']);
	});

	test('unbound, nothing is fetched; bound anew after events, everything is stale; without any, nothing is', async () => {
		const page = await live();
		page.show('a');
		await turn(2000);
		page.fetches.length = 0;
		page.unbind();
		let unbind = bindQueryClient(page.sse, page.queryClient, { keys: KEYS });
		await turn(100);
		expect(page.fetches).toEqual([]);
		unbind();
		page.change('a', '2-0');
		await turn(2000);
		expect(page.fetches).toEqual([]);
		unbind = bindQueryClient(page.sse, page.queryClient, { keys: KEYS });
		await turn(100);
		expect(page.data('a')).toBe(1);
		unbind();
		unbind();
	});
});

describe('a large cache', () => {
	/** Every look at the clock takes so long, so that a slice ends after few queries; tasks are fake timers. */
	function slowDown(lookMs: number) {
		vi.stubGlobal('MessageChannel', undefined);
		const now = performance.now.bind(performance);
		let addedMs = 0;
		vi.spyOn(performance, 'now').mockImplementation(() => now() + (addedMs += lookMs));
	}
	afterEach(() => {
		vi.restoreAllMocks();
		vi.unstubAllGlobals();
	});
	const isStale = (page: { queryClient: QueryClient }) =>
		page.queryClient.getQueryCache().getAll().map(({ state }) => state.isInvalidated);

	test('is gone through once for a batch, however many keys it names', async () => {
		const page = await live();
		let reads = 0;
		for (let item = 0; item < 300; item++) {
			page.queryClient.setQueryData(['item', `${item}`], 0);
			const query = page.queryClient.getQueryCache().find({ queryKey: ['item', `${item}`] })!;
			const { queryKey } = query;
			Object.defineProperty(query, 'queryKey', { get: () => (reads++, queryKey) });
		}
		const cache = page.queryClient.getQueryCache();
		const passes = [vi.spyOn(cache, 'getAll'), vi.spyOn(cache, 'findAll')];
		page.write(Array.from({ length: 300 }, (_, item) => updated(`2-${item}`, `${item}`)).join(''));
		await turn(FRAME_MS);
		expect(isStale(page)).not.toContain(false);
		expect(reads).toBeLessThanOrEqual(4 * 300);
		expect(passes[0]!.mock.calls.length + passes[1]!.mock.calls.length).toBeLessThan(20);
	});

	test('is marked in slices, and the cursor follows the last', async () => {
		const page = await live();
		const ids = ['a', 'b', 'c', 'd', 'e'];
		for (const id of ids) page.queryClient.setQueryData(['item', id], 0);
		slowDown(3);
		page.write(ids.map((id, seq) => updated(`2-${seq}`, id)).join(''));
		const seen = new Map<number, string>();
		while (page.unbind.lastEventId !== '2-4') {
			await vi.advanceTimersToNextTimerAsync();
			seen.set(isStale(page).filter(Boolean).length, page.unbind.lastEventId);
		}
		expect(seen.size).toBeGreaterThan(2);
		for (const [marked, lastEventId] of seen) expect([marked, lastEventId]).toEqual([marked, marked < 5 ? '1-0' : '2-4']);
	});

	test('a fetch under way is repeated, whether it ends before its query is marked or after', async () => {
		const page = await live();
		const ids = ['a', 'b', 'c', 'd', 'e', 'f'];
		for (const id of ids) page.show(id);
		await turn(2000);
		page.slow(30);
		void page.queryClient.refetchQueries({ queryKey: ['item'] });
		page.write(ids.map((id, seq) => (page.database.set(id, 7), updated(`2-${seq}`, id))).join(''));
		slowDown(3);
		// A task takes its time: some fetches end between two slices.
		vi.stubGlobal('MessageChannel', class {
			port1 = { onmessage: () => {}, close: () => {} };
			port2 = { postMessage: () => setTimeout(() => this.port1.onmessage(), 5) };
		});
		await turn(3000);
		expect(ids.map(page.data)).toEqual(ids.map(() => 7));
		expect(isStale(page)).not.toContain(true);
	});

	test('events that come while it is marked are marked after, and the cursor follows them too', async () => {
		const page = await live();
		for (const id of ['a', 'b', 'c', 'd', 'e']) page.queryClient.setQueryData(['item', id], 0);
		slowDown(3);
		page.write(updated('2-0', 'a'));
		let isSent = false;
		while (page.unbind.lastEventId !== '3-0') {
			await vi.advanceTimersToNextTimerAsync();
			if (!isSent && isStale(page)[0]) {
				page.write(updated('3-0', 'b'));
				isSent = true;
				await turn();
				expect([page.sse.lastEventId, page.unbind.lastEventId]).toEqual(['3-0', '1-0']);
			}
		}
		expect(isStale(page)).toEqual([true, true, false, false, false]);
	});

	test("an application's listener that throws keeps nothing from being marked or fetched", async () => {
		const say = vi.spyOn(console, 'error').mockImplementation(() => {});
		vi.stubGlobal('reportError', undefined);
		const page = await live();
		for (const id of ['a', 'b', 'c']) page.queryClient.setQueryData(['item', id], 0);
		const unsubscribe = page.queryClient.getQueryCache().subscribe(() => {
			throw new Error('oops');
		});
		page.write(['a', 'b', 'c'].map((id, seq) => updated(`2-${seq}`, id)).join(''));
		await turn(FRAME_MS);
		expect([isStale(page), page.unbind.lastEventId]).toEqual([[true, true, true], '2-2']);
		expect(say).toHaveBeenCalledTimes(3);
		unsubscribe();
	});

	test('hidden between two slices, what is left is fetched when it is shown', async () => {
		const page = await live();
		const ids = ['a', 'b', 'c', 'd', 'e'];
		for (const id of ids) page.show(id);
		await turn(2000);
		page.fetches.length = 0;
		slowDown(3);
		page.write(ids.map((id, seq) => updated(`2-${seq}`, id)).join(''));
		while (!page.fetches.length) await vi.advanceTimersToNextTimerAsync();
		hide(true);
		await turn(1000);
		expect(page.fetches.length).toBeLessThan(5);
		hide(false);
		await turn(1000);
		expect(page.fetches.sort()).toEqual(ids);
	});
});

describe('the cursor', () => {
	test('follows only when the invalidation was issued', async () => {
		const page = await live();
		page.change('a', '2-0');
		await turn();
		expect([page.sse.lastEventId, page.unbind.lastEventId]).toEqual(['2-0', '1-0']);
		await turn(FRAME_MS);
		expect(page.unbind.lastEventId).toBe('2-0');
	});

	/** One slot, as localStorage. */
	function makeStore() {
		let stored: string | undefined;
		const persister = {
			persistClient: (client: PersistedClient) => void (stored = JSON.stringify(client)),
			restoreClient: () => (stored === undefined ? undefined : (JSON.parse(stored) as PersistedClient)),
			removeClient: () => void (stored = undefined),
		};
		const save = (queryClient: QueryClient, binding: Binding) =>
			withCursor(persister, binding).persistClient({ timestamp: 0, buster: '', clientState: dehydrate(queryClient) });
		return { persister, save, stored: () => JSON.parse(stored ?? 'null') };
	}

	test('is stored with the cache in one write, and resumed from', async () => {
		const store = makeStore();
		const page = await live();
		page.show('a');
		await turn(2000);
		page.change('a', '2-0');
		await turn(FRAME_MS);
		page.change('a', '3-0');
		await turn();
		await store.save(page.queryClient, page.unbind); // in the middle of a frame
		expect(store.stored().stalecast).toEqual({ stream: 'https://example.test/s ', lastEventId: '2-0' });

		const next = start({ cursor: '' });
		const restored = await withCursor(store.persister, next.unbind).restoreClient();
		hydrate(next.queryClient, restored!.clientState);
		expect(next.sse.lastEventId).toBe('2-0');
		expect(next.unbind.lastEventId).toBe('2-0');
		expect(next.queryClient.getQueryState(['item', 'a'])).toMatchObject({ data: 1, isInvalidated: false });
	});

	test('a fetch that an event overtook is stored as stale', async () => {
		const store = makeStore();
		const page = await live();
		page.show('a');
		await turn(2000);
		page.slow(500);
		void page.queryClient.refetchQueries({ queryKey: ['item', 'a'] });
		await turn(100);
		page.change('a', '2-0');
		await turn(FRAME_MS);
		// As a persister does that writes at every change: also at the one that makes the old answer look fresh.
		page.queryClient.getQueryCache().subscribe((change) => {
			if (change.type !== 'updated' || change.action.type !== 'success') return;
			expect(change.query.state.isInvalidated).toBe(false);
			void store.save(page.queryClient, page.unbind);
		});
		await turn(450);
		expect(store.stored().clientState.queries[0].state.isInvalidated).toBe(true);
	});

	test('too late, or of nobody, the cache is restored as stale; of another user, not at all', async () => {
		const store = makeStore();
		const page = await live();
		page.show('a');
		await turn(2000);
		await store.save(page.queryClient, page.unbind);
		const late = await live({ cursor: '' });
		const restored = await withCursor(store.persister, late.unbind).restoreClient();
		expect(restored!.clientState.queries.map(({ state }) => state.isInvalidated)).toEqual([true]);

		const sse = new SSEClient('https://example.test/s', { scope: 'bob' }, testPlatform(() => new Response()));
		const other = bindQueryClient(sse, new QueryClient(), { keys: KEYS });
		expect(await withCursor(store.persister, other).restoreClient()).toBeUndefined();
		expect(store.stored()).toBe(null);
	});
});

test('a stream that is given up leaves everything bound stale', async () => {
	const say = vi.spyOn(console, 'warn').mockImplementation(() => {});
	let isGone = false;
	const streams: Stream[] = [];
	const platform = testPlatform((_, { signal }) => {
		if (isGone) return new Response(null, { status: 204 });
		streams.push(new Stream(signal));
		return streams.at(-1)!.response;
	});
	const sse = new SSEClient('https://example.test/s', { initialLastEventId: '1-0' }, platform);
	const queryClient = new QueryClient();
	const unbind = bindQueryClient(sse, queryClient, { keys: KEYS });
	queryClient.setQueryData(['item', 'a'], 1);
	sse.connect();
	await turn();
	streams[0]!.write('id: 1-0\n\n');
	await turn(FRAME_MS);
	expect(queryClient.getQueryState(['item', 'a'])!.isInvalidated).toBe(false);
	isGone = true;
	streams[0]!.end();
	await turn(5000);
	expect([sse.status, queryClient.getQueryState(['item', 'a'])!.isInvalidated]).toEqual(['closed', true]);
	unbind();
	say.mockRestore();
});
