import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { isLacking, seen, sleep, waitUntil, World } from './harness.js';

const ITEMS = Array.from({ length: 24 }, (_, index) => `item-${index}`);
/** Changed only while the server is down, each several times. */
const ABSENT = ITEMS.slice(0, 8);
const PRESENT = ITEMS.slice(8);
const pick = (items: string[]): string => items[Math.floor(Math.random() * items.length)]!;

describe.skipIf(isLacking())('two pages of one browser', () => {
	const world = new World();
	beforeAll(() => world.start());
	afterAll(() => world.stop());
	beforeEach(() => world.reset(ITEMS));

	/** 200 random updates; the server is killed after 70 and back after 130. Returns when it was back. */
	async function updateThroughRestart(): Promise<number> {
		for (let count = 0; count < 70; count++) {
			await world.update(pick(PRESENT));
			await sleep(10);
		}
		await world.stalecast.stop('SIGKILL');
		for (let count = 0; count < 60; count++) {
			await world.update(pick(ABSENT));
			await sleep(10);
		}
		const backAt = Date.now();
		await world.stalecast.start();
		for (let count = 0; count < 70; count++) {
			await world.update(pick(PRESENT));
			await sleep(10);
		}
		return backAt;
	}

	test('the server is killed and restarted: both equal the database, by one fetch for each change', async () => {
		const names = ['one', 'two'];
		const pages = await Promise.all(names.map((name) => world.open({ name })));
		await world.waitEqual(pages);
		await waitUntil('the server has one client', async () => (await world.gauge()) === 1);
		expect((await Promise.all(pages.map((page) => page.evaluate(() => window.sse.status)))).sort()).toEqual(['follower', 'live']);
		await sleep(1200);
		const startedAt = Date.now();
		const changes = new Map(world.database);

		const backAt = await updateThroughRestart();
		await world.waitEqual(pages);
		await sleep(1500); // a storm would still be under way
		for (const [index, page] of pages.entries()) {
			expect(await world.isEqual(page)).toBe(true);
			expect((await seen(page)).reloads).toBe(0);
			const counts = world.counts(names[index]!, startedAt);
			const changed = ABSENT.filter((item) => world.database.get(item)! > changes.get(item)!);
			// Changed many times while nobody could hear of it: fetched once.
			expect(Object.fromEntries(ABSENT.map((item) => [item, counts.get(item) ?? 0]))).toEqual(
				Object.fromEntries(ABSENT.map((item) => [item, changed.includes(item) ? 1 : 0])),
			);
			for (const item of PRESENT) expect(counts.get(item) ?? 0).toBeLessThanOrEqual(world.database.get(item)!);
		}
		expect(world.fetches.filter(({ at, item }) => at > backAt && ABSENT.includes(item)).length).toBeLessThanOrEqual(2 * ABSENT.length);
		expect(await world.gauge()).toBe(1);
	});

	test('without resume, the same misses what happened meanwhile', async () => {
		const pages = await Promise.all(['one', 'two'].map((name) => world.open({ name, forgets: true })));
		await world.waitEqual(pages);
		await waitUntil('the server has one client', async () => (await world.gauge()) === 1);
		await updateThroughRestart();
		await sleep(3000);
		for (const page of pages) expect(await world.isEqual(page)).toBe(false);
	});
});
