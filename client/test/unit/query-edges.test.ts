/** The parts of the binding by themselves: what a cache that behaves hides of them. */

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { createCoalescer } from '../../src/query/coalesce.js';
import { createRace } from '../../src/query/race.js';
import { fetchQuery, isWanted } from '../../src/query/spread.js';
import type { Query } from '../../src/query/tanstack.js';
import type { Target } from '../../src/query/targets.js';

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
