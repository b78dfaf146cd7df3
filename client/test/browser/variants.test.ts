import type { Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { isLacking, seen, sleep, status, waitUntil, World } from './harness.js';

const ITEMS = ['a', 'b', 'c', 'd'];

describe.skipIf(isLacking())('what stands between', () => {
	const world = new World();
	beforeAll(() => world.start());
	afterAll(() => world.stop());
	beforeEach(() => world.reset(ITEMS));

	/** Two pages that show the database, with one stream between them. */
	async function openTwo(base?: string, options: object = {}): Promise<[Page, Page]> {
		const one = await world.open({ name: 'one', options }, base);
		await world.waitStatus(one, 'live');
		const two = await world.open({ name: 'two', options }, base);
		await world.waitStatus(two, 'follower');
		await world.waitEqual([one, two]);
		return [one, two];
	}

	const reloads = (pages: Page[]) => Promise.all(pages.map(async (page) => (await seen(page)).reloads));

	test('nginx answers 502 while the server is away', async () => {
		await world.proxy('passing');
		const pages = await openTwo(world.nginxUrl);
		await world.stalecast.stop('SIGKILL');
		for (const item of ITEMS) await world.update(item);
		await waitUntil('a 502 was seen', async () => (await seen(pages[0])).errors.some((error) => error.startsWith('502')));
		expect(await status(pages[0])).toBe('connecting');
		await world.stalecast.start();
		await world.waitEqual(pages);
		await world.waitStatus(pages[0], 'live');
		expect(await reloads(pages)).toEqual([0, 0]);
	});

	test('nginx holds streams back: polling takes over, and the stream comes back when it may', async () => {
		await world.proxy('holding');
		const options = { muteAfterMs: 1500, pollMs: 400, probeMs: 1000 };
		const one = await world.open({ name: 'one', options }, world.nginxUrl);
		await world.waitStatus(one, 'polling');
		const two = await world.open({ name: 'two', options }, world.nginxUrl);
		await world.waitStatus(two, 'polling');
		const pages = [one, two];
		await world.waitEqual(pages);
		await sleep(1500);
		const startedAt = Date.now();
		for (const item of ['a', 'b']) await world.update(item);
		await world.waitEqual(pages);
		await sleep(1500);
		// Polling is exact: what did not change is not fetched.
		for (const name of ['one', 'two']) {
			expect(Object.fromEntries(world.counts(name, startedAt))).toEqual({ a: 1, b: 1 });
		}
		expect(await reloads(pages)).toEqual([0, 0]);
		await world.proxy('passing');
		await world.waitStatus(one, 'live');
		await world.waitStatus(two, 'follower');
		await world.update('c');
		await world.waitEqual(pages);
	});

	test('the stream was trimmed meanwhile: each page reloads once', async () => {
		const pages = await openTwo();
		for (const item of ITEMS) await world.update(item);
		await world.waitEqual(pages);
		await world.stalecast.stop('SIGKILL');
		for (let count = 0; count < 20; count++) await world.update(ITEMS[count % 3]!);
		await world.trim(2);
		await world.stalecast.start();
		await world.waitEqual(pages);
		await sleep(2500);
		expect(await reloads(pages)).toEqual([1, 1]);
	});

	test('the leader is closed: another page goes on', async () => {
		const [one, two] = await openTwo();
		const updates = (async () => {
			for (let count = 0; count < 60; count++) {
				await world.update(ITEMS[count % ITEMS.length]!);
				await sleep(15);
			}
		})();
		await sleep(300);
		await one.close();
		await updates;
		await world.waitStatus(two, 'live');
		await world.waitEqual([two]);
		await waitUntil('one stream is left', async () => (await world.gauge()) === 1);
		expect(await reloads([two])).toEqual([0]);
	});

	test('the leader crashes: another page goes on', async () => {
		const [one, two] = await openTwo();
		const crash = one.goto('chrome://crash').catch(() => {});
		for (const item of ITEMS) await world.update(item);
		await world.waitStatus(two, 'live');
		await world.waitEqual([two]);
		await crash;
		expect(await reloads([two])).toEqual([0]);
	});

	test('the leader is told that it is frozen: it lets go at once, and follows from its cursor when it thaws', async () => {
		const [one, two] = await openTwo();
		// Pages without a window are never hidden, so Chromium freezes none of them itself; the events are those it sends.
		await one.evaluate(() => document.dispatchEvent(new Event('freeze')));
		await world.waitStatus(two, 'live');
		for (const item of ITEMS) await world.update(item);
		await world.waitEqual([two]);
		await one.evaluate(() => document.dispatchEvent(new Event('resume')));
		await world.waitStatus(one, 'follower');
		await world.waitEqual([one, two]);
		expect(await reloads([one, two])).toEqual([0, 0]);
		await waitUntil('one stream is left', async () => (await world.gauge()) === 1);
	});

	test('the leader hangs: its lock is stolen, and it follows when it runs again', async () => {
		const [one, two] = await openTwo(undefined, { beatMs: 250 });
		const hung = one.evaluate(() => {
			const end = performance.now() + 6000;
			while (performance.now() < end);
		});
		await world.waitStatus(two, 'live');
		for (const item of ITEMS) await world.update(item);
		await world.waitEqual([two]);
		let isHung = true;
		void hung.then(() => (isHung = false));
		await sleep(0);
		expect(isHung).toBe(true);
		await hung;
		await world.waitStatus(one, 'follower');
		await world.waitEqual([one, two]);
		expect(await reloads([one, two])).toEqual([0, 0]);
		await waitUntil('one stream is left', async () => (await world.gauge()) === 1);
	});

	test('the token expires: it is refreshed once, and what was missed comes', async () => {
		world.validToken = 'first';
		const page = await world.open({ name: 'one', hasToken: true, options: { scope: 'ann' } }, world.siteUrl);
		await world.waitStatus(page, 'live');
		await world.waitEqual([page]);
		// The page holds an old token until it is asked to refresh it.
		await page.evaluate(() => {
			let current = 'first';
			window.token = (refresh) => (current = refresh ? 'second' : current);
		});
		world.validToken = 'second';
		world.cutProxied();
		for (const item of ITEMS) await world.update(item);
		await world.waitEqual([page]);
		await world.waitStatus(page, 'live');
		expect(await seen(page)).toMatchObject({ reloads: 0 });
		// Nor does a refresh help any more.
		world.validToken = 'third';
		world.cutProxied();
		await world.waitStatus(page, 'unauthorized');
		await world.update('a');
		await sleep(1000);
		expect(await status(page)).toBe('unauthorized');
		await page.evaluate(() => {
			window.token = () => 'third';
			window.sse.reconnect();
		});
		await world.waitStatus(page, 'live');
		await world.waitEqual([page]);
	});

	test('the first fetch is slow: what changed during it is fetched again', async () => {
		let isSlow = true;
		let changed: Promise<void> | undefined;
		world.beforeAnswer = async (_, item) => {
			if (item !== 'b' || !isSlow) return;
			changed ??= (async () => {
				await waitUntil('the page listens', async () => (await world.gauge()) === 1);
				await sleep(300);
				isSlow = false;
				await world.update('b'); // the answer is under way, with the old version
				await sleep(500);
			})();
			await changed;
		};
		const page = await world.open({ name: 'one' });
		await waitUntil('the item is shown', async () => ((await world.shown(page)).b ?? -1) >= 0);
		await world.waitEqual([page]);
		expect(world.database.get('b')).toBe(1);
	});

	test('log-out in one page: the other goes on, and users do not mix', async () => {
		const options = { scope: 'ann' };
		const [one, two] = await openTwo(undefined, options);
		await one.evaluate(() => window.sse.close());
		expect(await status(one)).toBe('closed');
		await world.waitStatus(two, 'live');
		await world.update('a');
		await world.waitEqual([two]);
		await one.evaluate(() => window.login('bob'));
		// A stream of his own, though hers is there in the same browser.
		await world.waitStatus(one, 'live');
		expect(await status(two)).toBe('live');
		expect(await world.gauge()).toBe(2);
	});

	test('seven pages over HTTP/1.1 share one stream', async () => {
		const pages: Page[] = [];
		// Six connections to a server are all that a browser opens over HTTP/1.1.
		for (let count = 0; count < 7; count++) pages.push(await world.open({ name: `page-${count}` }, world.siteUrl));
		await world.waitEqual(pages);
		await waitUntil('the server has one client', async () => (await world.gauge()) === 1);
		for (let count = 0; count < 20; count++) await world.update(ITEMS[count % ITEMS.length]!);
		await world.waitEqual(pages);
		const statuses = await Promise.all(pages.map(status));
		expect(statuses.filter((each) => each === 'live')).toHaveLength(1);
		expect(statuses.filter((each) => each === 'follower')).toHaveLength(6);
	});

	test('a page that is loaded anew goes on from its stored cache', async () => {
		const page = await world.open({ name: 'one', persists: true });
		await world.waitStatus(page, 'live');
		await world.waitEqual([page]);
		await world.update('a');
		await world.waitEqual([page]);
		await page.goto('about:blank');
		await world.update('b');
		const startedAt = Date.now();
		await page.goBack();
		await world.waitStatus(page, 'live');
		await world.waitEqual([page]);
		await sleep(1500);
		expect(Object.fromEntries(world.counts('one', startedAt))).toEqual({ b: 1 });
		expect(await reloads([page])).toEqual([0]);
	});
});
