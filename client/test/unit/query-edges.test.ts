/** The parts of the binding by themselves: what a cache that behaves hides of them. */

import { dehydrate, QueryClient, QueryObserver } from '@tanstack/react-query';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { SSEClient } from '../../src/core/client.js';
import { createCoalescer } from '../../src/query/coalesce.js';
import { type BindOptions, bindQueryClient, type PersistedCache, withCursor } from '../../src/query/index.js';
import { createRace } from '../../src/query/race.js';
import { fetchQuery, isWanted } from '../../src/query/spread.js';
import { createSweep } from '../../src/query/sweep.js';
import type { Query } from '../../src/query/tanstack.js';
import type { Target } from '../../src/query/targets.js';
import { testPlatform } from './support.js';

beforeEach(() => vi.useFakeTimers({ now: 1_700_000_000_000 }));
afterEach(() => vi.useRealTimers());

const turn = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

function makeQuery(more: Partial<Query> = {}) {
	const query = {
		queryKey: ['item', 'a'],
		queryHash: 'a',
		state: { fetchStatus: 'fetching', isInvalidated: true },
		promise: Promise.resolve() as Promise<unknown>,
		isActive: () => true,
		invalidate: vi.fn(),
		fetch: vi.fn(async () => {}),
	};
	return Object.assign(query, more);
}

describe('frames and turns', () => {
	/** The host marks when it is told to, where `isSlow`. */
	function start({ isSlow = false } = {}) {
		const host = {
			isHidden: false,
			marked: [] as string[][],
			fetched: [] as string[],
			done: [] as (() => void)[],
		};
		const names = (targets: Target[]) => targets.map(({ queryKey }) => String(queryKey));
		const coalescer = createCoalescer({
			isHidden: () => host.isHidden,
			markStale(targets, done) {
				host.marked.push(names(targets));
				if (isSlow) host.done.push(done);
				else done();
			},
			refetch: (targets) => void host.fetched.push(...names(targets)),
		});
		const add = (key: string) => coalescer.add({ queryKey: [key], minIntervalMs: 1000 });
		return { host, coalescer, add };
	}

	test('what is gathered while a batch is marked is marked after it, in one batch', async () => {
		const { host, coalescer, add } = start({ isSlow: true });
		add('a');
		await turn(16);
		for (const key of ['b', 'c', 'b']) {
			add(key);
			await turn(50);
		}
		// Nothing else may move the cursor meanwhile, not even what names nothing.
		coalescer.endFrame();
		expect([host.marked, host.fetched]).toEqual([[['a']], []]);
		host.done.shift()!();
		await turn(16);
		expect([host.marked, host.fetched]).toEqual([[['a'], ['b', 'c']], ['a']]);
		host.done.shift()!();
		expect(host.fetched).toEqual(['a', 'b', 'c']);
	});

	test('nothing is fetched in a hidden page, nor when its turn has come', async () => {
		const { host, coalescer, add } = start();
		add('a');
		await turn(16);
		add('a');
		host.isHidden = true;
		await turn(5000);
		expect([host.fetched, host.marked.length, coalescer.isPaused()]).toEqual([['a'], 2, true]);
		host.isHidden = false;
		coalescer.resume();
		expect(host.fetched).toEqual(['a', 'a']);
	});

	test('paused, what waits for its turn waits on; what was gathered is marked at once', async () => {
		const { host, coalescer, add } = start();
		expect(coalescer.isPaused()).toBe(false);
		add('a');
		await turn(16);
		add('a');
		coalescer.pause();
		expect([host.marked.length, coalescer.isPaused()]).toEqual([2, true]);
		await turn(5000);
		expect([host.fetched, host.marked.length]).toEqual([['a'], 2]);
		coalescer.pause(); // no frame is open
		expect(host.marked.length).toBe(2);
		coalescer.resume();
		expect(host.fetched).toEqual(['a', 'a']);
	});

	test('no timer runs for what was fetched and does not wait again', async () => {
		const { host, add } = start();
		for (const key of ['a', 'b']) {
			add(key);
			await turn(16);
		}
		expect([host.fetched, vi.getTimerCount()]).toEqual([['a', 'b'], 0]);
	});
});

describe('a fetch under way', () => {
	test.each<[string, Partial<Query>]>([
		['of a query that rests: its last is over', { state: { fetchStatus: 'idle', isInvalidated: false } }],
		['that has no promise yet', { promise: undefined }],
	])('none %s', async (_, more) => {
		const lost = vi.fn();
		const race = createRace(lost);
		const query = makeQuery(more);
		race.watch(query);
		expect(race.isOpen(query)).toBe(false);
		await turn();
		expect([query.invalidate.mock.calls.length, lost.mock.calls.length]).toEqual([0, 0]);
	});

	test('marks its query once more when it settles, however it does, and however many events there were', async () => {
		for (const settle of [async () => {}, async () => Promise.reject(new Error('no'))]) {
			const lost = vi.fn();
			const race = createRace(lost);
			const query = makeQuery({ promise: settle() });
			race.watch(query);
			race.watch(query);
			expect(race.isOpen(query)).toBe(true);
			await turn();
			expect([query.invalidate.mock.calls.length, lost.mock.calls, race.isOpen(query)]).toEqual([1, [[query]], false]);
		}
	});

	test('that another replaced, before an event, counts no more: the query is in doubt until the other settles', async () => {
		const lost = vi.fn();
		const race = createRace(lost);
		const query = makeQuery();
		const settle: (() => void)[] = [];
		for (let fetch = 0; fetch < 2; fetch++) {
			query.promise = new Promise<void>((resolve) => settle.push(resolve));
			race.watch(query);
		}
		settle[0]!();
		await turn();
		expect([race.isOpen(query), query.invalidate.mock.calls.length]).toEqual([true, 0]);
		settle[1]!();
		await turn();
		expect([race.isOpen(query), query.invalidate.mock.calls.length, lost.mock.calls.length]).toEqual([false, 1, 1]);
	});
});

describe('a fetch', () => {
	test.each<[boolean, Partial<Query>]>([
		[true, {}],
		[true, { isStatic: () => false }],
		[false, { isStatic: () => true }],
		[false, { isActive: () => false }],
	])('is wanted: %s', (expected, more) => expect(isWanted(makeQuery(more))).toBe(expected));

	test('cancels none that is under way, and its error is its own', async () => {
		const fetch = vi.fn(async () => {
			throw new Error('no');
		});
		await expect(fetchQuery(makeQuery({ fetch }))).resolves.toBeUndefined();
		expect(fetch).toHaveBeenCalledWith(undefined, { cancelRefetch: false });
	});
});

describe('bindings of one stream to one cache', () => {
	afterEach(() => vi.unstubAllGlobals());

	/** A stream that says only what the test does, and a cache whose queries somebody looks at. */
	function start(ids = ['a']) {
		const sse = new SSEClient('https://example.test/s', { initialLastEventId: '1-0' }, testPlatform(() => new Response()));
		const queryClient = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity, gcTime: Infinity } } });
		const fetches: string[] = [];
		for (const id of ids) {
			queryClient.setQueryData(['item', id], 0);
			const queryFn = () => new Promise((resolve) => setTimeout(resolve, 100, fetches.push(id)));
			new QueryObserver(queryClient, { queryKey: ['item', id], queryFn }).subscribe(() => {});
		}
		const bind = (more: Partial<BindOptions> = {}) =>
			bindQueryClient(sse, queryClient, { keys: { argument_updated: ({ id }) => [['item', id]] }, ...more });
		const hear = (id: string, event = 'argument_updated') =>
			sse.dispatchEvent(new MessageEvent('message', { data: { event, data: { id } } }));
		const isStale = () => queryClient.getQueryCache().getAll().some(({ state }) => state.isInvalidated);
		return { sse, queryClient, fetches, bind, hear, isStale };
	}

	test('one that is ended hears nothing', async () => {
		const { sse, bind, hear, isStale } = start();
		bind()();
		hear('a');
		for (const type of ['began', 'lost']) sse.dispatchEvent(new Event(type));
		await turn(5000);
		expect(isStale()).toBe(false);
	});

	test('one that is ended twice ends no other', async () => {
		const { fetches, bind, hear } = start();
		bind();
		const unbind = bind();
		unbind();
		unbind();
		hear('a');
		await turn(500);
		expect(fetches).toEqual(['a']);
	});

	test('after the last, what waits for its turn waits until there is one again, also when the page is shown', async () => {
		const { fetches, bind, hear } = start();
		const unbind = bind();
		hear('a');
		await turn(200);
		hear('a');
		unbind();
		await turn(5000);
		document.dispatchEvent(new Event('visibilitychange'));
		await turn(500);
		expect(fetches).toEqual(['a']);
		bind();
		await turn(500);
		expect(fetches).toEqual(['a', 'a']);
	});

	test('there may be no page', async () => {
		vi.stubGlobal('document', undefined);
		const { fetches, bind, hear } = start();
		const unbind = bind();
		hear('a');
		await turn(500);
		unbind();
		expect(fetches).toEqual(['a']);
	});

	test('what events name is fetched at once, however much it is', async () => {
		const ids = ['a', 'b', 'c', 'd', 'e'];
		const { fetches, bind, hear } = start(ids);
		bind({ reloadConcurrency: 2 });
		for (const id of ids) hear(id);
		await turn(50);
		expect(fetches).toEqual(ids);
	});

	test('an event that names nothing costs no pass over the cache', async () => {
		const { queryClient, bind, hear } = start();
		bind();
		const passes = vi.spyOn(queryClient.getQueryCache(), 'getAll');
		hear('a', 'another');
		await turn(500);
		expect(passes).not.toHaveBeenCalled();
	});

	test('a seed that comes too late moves no cursor', () => {
		const unbind = start().bind();
		expect([unbind.seed('9-0'), unbind.lastEventId]).toEqual([false, '1-0']);
	});
});

test('slices of a pass are tasks of their own, by no timer: those of a hidden page come once a second', () => {
	const tasks: (() => void)[] = [];
	vi.stubGlobal('MessageChannel', class {
		port1 = { onmessage: () => {}, close: () => {} };
		port2 = { postMessage: () => tasks.push(() => this.port1.onmessage()) };
	});
	const queryClient = new QueryClient();
	for (const id of ['a', 'b', 'c']) queryClient.setQueryData([id], 0);
	const timers = vi.getTimerCount();
	let steady = 0;
	const clock = vi.spyOn(performance, 'now').mockImplementation(() => (steady += 10));
	const seen: string[] = [];
	createSweep(queryClient)(({ queryHash }) => void seen.push(queryHash));
	const counts = [];
	for (; tasks.length; tasks.shift()!()) counts.push(seen.length);
	clock.mockRestore();
	vi.unstubAllGlobals();
	expect(counts.length).toBeGreaterThan(0);
	expect([seen.length, vi.getTimerCount()]).toEqual([3, timers]);
});

describe('a persister with a cursor', () => {
	const binding = bindQueryClient(
		new SSEClient('https://example.test/s', {}, testPlatform(() => new Response())),
		new QueryClient(),
		{ keys: {} },
	);
	const makePersister = (stored: PersistedCache | undefined) => ({
		persistClient: () => {},
		restoreClient: () => stored,
		removeClient: vi.fn(),
	});

	test('restores nothing from an empty store, and removes what it is told to', async () => {
		const persister = makePersister(undefined);
		const both = withCursor(persister, binding);
		expect(await both.restoreClient()).toBeUndefined();
		await both.removeClient();
		expect(persister.removeClient).toHaveBeenCalledOnce();
	});

	test('restores as stale what was stored without one', async () => {
		const queryClient = new QueryClient();
		queryClient.setQueryData(['a'], 1);
		const stored = { timestamp: 0, buster: '', clientState: dehydrate(queryClient) };
		const restored = await withCursor(makePersister(stored), binding).restoreClient();
		expect(restored!.clientState).toMatchObject({ queries: [{ state: { isInvalidated: true } }] });
	});
});
