/** What once ended tabs for good, or left them behind: four tabs of each engine, and all of them live again soon. */

import type { ServerResponse } from 'node:http';
import type { Page } from 'playwright-core';
import { type Browser, launch, type Page as FirefoxPage } from 'puppeteer-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { FIREFOX, isLacking, seen, sleep, status, suspend, waitUntil, World } from './harness.js';

const ITEMS = ['a', 'b', 'c', 'd'];
/** From when the server can be reached again. */
const LIVE_AGAIN_MS = 5000;
const REFUSED_MS = 8000;
/** SLEEP_MS=60000 for as long as a lid is closed; a third of it is already more than any pause of the client's. */
const SLEEP_MS = Number(process.env.SLEEP_MS ?? 20_000);

const REFUSALS: [string, (response: ServerResponse) => void][] = [
	['404', (response) => void response.writeHead(404, { 'Content-Type': 'text/plain' }).end('404 page not found')],
	['408', (response) => void response.writeHead(408, { Connection: 'close' }).end()],
	['a login page', (response) => void response.writeHead(200, { 'Content-Type': 'text/html' }).end('<form>Who are you?</form>')],
];

const isLive = async (page: Page) => ['live', 'follower'].includes(await status(page));

describe.skipIf(isLacking(...(FIREFOX ? [] : ['firefox'])))('four tabs each of Chromium and Firefox', () => {
	const world = new World();
	let firefox: Browser;
	/** Set while the browsers are stopped. */
	let wake = () => {};
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
		wake();
		const pages = await firefox.pages();
		await firefox.newPage(); // a browser ends with its last page
		for (const page of pages) await page.close();
	});

	/** What the harness asks of a page, both libraries' pages answer alike. */
	let inFirefox: FirefoxPage[] = [];
	let pages: Page[] = [];
	let updates = 0;

	/** In each browser two tabs share a stream, as is usual, and two have their own. */
	async function openAll(): Promise<void> {
		inFirefox = [];
		pages = [];
		updates = 0;
		for (const [index, shareTabs] of [true, true, false, false].entries()) {
			const config = (engine: string) => ({ name: `${engine}-${index}`, options: { shareTabs } });
			const page = await firefox.newPage();
			inFirefox.push(page);
			const [opened] = await Promise.all([
				world.open(config('chromium'), world.siteUrl),
				page.goto(world.pageUrl(config('firefox'), world.siteUrl)),
			]);
			pages.push(opened);
		}
		pages.push(...(inFirefox as unknown as Page[]));
		await waitLive(Date.now() + 20_000);
		await sleep(500); // what a page fetches as its stream begins is under way
	}

	async function waitLive(end: number): Promise<void> {
		for (const page of pages) await waitUntil('every tab is live', () => isLive(page), end - Date.now(), () => seen(page));
	}

	/** An event every half second. */
	async function updateFor(ms: number): Promise<void> {
		for (const end = Date.now() + ms; Date.now() < end; await sleep(500)) {
			await world.update(ITEMS[updates++ % ITEMS.length]!);
		}
	}

	/** Live in time, with every event, and showing the database. */
	async function expectAllWell(): Promise<void> {
		const end = Date.now() + LIVE_AGAIN_MS;
		await waitLive(end);
		for (const page of pages) {
			const isThere = async () => (await seen(page)).events === updates;
			await waitUntil('nothing is lost', isThere, end - Date.now(), async () => ({ updates, ...(await seen(page)) }));
		}
		// A tab of Firefox that is not shown fetches when it is.
		for (const page of inFirefox) {
			await page.bringToFront();
			await world.waitEqual([page as unknown as Page]);
		}
		await world.waitEqual(pages);
		for (const page of pages) expect(await seen(page)).toMatchObject({ events: updates, reloads: 0 });
	}

	test.each(REFUSALS)('8 s of %s while the server is up: all live again, nothing lost', async (_, refuse) => {
		await openAll();
		world.refuse = refuse;
		world.cutProxied();
		await updateFor(REFUSED_MS);
		for (const page of pages) expect(await isLive(page)).toBe(false);
		world.refuse = undefined;
		await expectAllWell();
	});

	test('no network: nobody says live; and then there is one: all live again, nothing lost', async () => {
		await openAll();
		await setOffline(true);
		for (const page of pages) await waitUntil('it says so', async () => !(await isLive(page)), 1000, () => seen(page));
		const before = await Promise.all(pages.map(async (page) => (await seen(page)).statuses.length));
		await updateFor(3000);
		for (const [index, page] of pages.entries()) {
			expect(await isLive(page)).toBe(false);
			expect((await seen(page)).statuses.slice(before[index])).not.toContain('live');
		}
		await setOffline(false);
		await expectAllWell();
	});

	/** The browsers leave the lines that stand open, so these go dead. */
	async function setOffline(isOffline: boolean): Promise<void> {
		await world.setOffline(isOffline);
		for (const page of inFirefox) await page.setOfflineMode(isOffline);
		if (isOffline) world.forgetProxied();
	}

	test(`${SLEEP_MS / 1000} s of sleep, in which the lines are lost: all live again, nothing lost`, { timeout: SLEEP_MS + 60_000 }, async () => {
		await openAll();
		const wakeAll = [await world.chromiumPid(), firefox.process()!.pid!].map(suspend);
		wake = () => {
			for (const each of wakeAll) each();
			wake = () => {};
		};
		world.forgetProxied();
		await updateFor(SLEEP_MS);
		wake();
		await expectAllWell();
	});
});
