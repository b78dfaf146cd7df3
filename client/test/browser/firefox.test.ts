/** Another engine, whose tabs are really hidden: one window shows one of them. */

import type { Page } from 'playwright-core';
import { type Browser, launch } from 'puppeteer-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FIREFOX, isLacking, seen, sleep, waitUntil, World } from './harness.js';

const ITEMS = Array.from({ length: 12 }, (_, index) => `item-${index}`);

describe.skipIf(isLacking(...(FIREFOX ? [] : ['firefox'])))('in Firefox', () => {
	const world = new World();
	let firefox: Browser;
	beforeAll(async () => {
		await world.start();
		firefox = await launch({ browser: 'firefox', executablePath: FIREFOX!, headless: true });
	});
	afterAll(async () => {
		await firefox?.close();
		await world.stop();
	});
	beforeEach(() => world.reset(ITEMS));
	afterEach(async () => {
		const pages = await firefox.pages();
		await firefox.newPage(); // a browser ends with its last page
		for (const page of pages) await page.close();
	});

	/** What the harness asks of a page, both libraries' pages answer alike. */
	async function open(name: string, base?: string, options: object = {}): Promise<Page> {
		const page = await firefox.newPage();
		await page.goto(world.pageUrl({ name, options }, base));
		return page as unknown as Page;
	}

	test('the tab that is shown has the stream, a hidden one fetches when it is shown; the server is killed meanwhile', async () => {
		const one = await open('one');
		await world.waitStatus(one, 'live');
		await world.waitEqual([one]);
		const two = await open('two');
		await world.waitEqual([two]);
		expect(await one.evaluate(() => document.hidden)).toBe(true);
		// It takes over from the hidden one.
		await world.waitStatus(two, 'live');
		await world.waitStatus(one, 'follower');

		const startedAt = Date.now();
		for (let count = 0; count < 120; count++) {
			if (count === 40) await world.stalecast.stop('SIGKILL');
			if (count === 80) await world.stalecast.start();
			await world.update(ITEMS[count % 6]!);
			await sleep(10);
		}
		await world.waitEqual([two]);
		await waitUntil('the hidden tab has heard of all', async () => (await seen(one)).events === 120);
		expect(world.counts('one', startedAt).size).toBe(0);

		await one.bringToFront();
		await world.waitEqual([one]);
		expect(Object.fromEntries(world.counts('one', startedAt))).toEqual(Object.fromEntries(ITEMS.slice(0, 6).map((item) => [item, 1])));
		await world.waitStatus(one, 'live');
		await world.waitStatus(two, 'follower');
		for (const page of [one, two]) expect(await seen(page)).toMatchObject({ events: 120, reloads: 0 });
		await waitUntil('one stream is left', async () => (await world.gauge()) === 1);
	});

	test('a proxy holds streams back: polling, and back to the stream', async () => {
		await world.proxy('holding');
		const page = await open('one', world.nginxUrl, { muteAfterMs: 1500, pollMs: 400, probeMs: 1000 });
		await world.waitStatus(page, 'polling');
		for (const item of ITEMS) await world.update(item);
		await world.waitEqual([page]);
		await world.proxy('passing');
		await world.waitStatus(page, 'live');
		await world.update('item-0');
		await world.waitEqual([page]);
		expect(await seen(page)).toMatchObject({ reloads: 0 });
	});
});
