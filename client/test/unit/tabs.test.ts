/** What the model says of all tabs in the end, here step by step: who leads, and what that costs. */

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Browser, Clock, Server, type Tab } from '../model/world.js';

let clock: Clock;
let server: Server;
let browser: Browser;

beforeEach(() => {
	clock = new Clock();
	server = new Server(clock);
	for (const item of ['a', 'b']) server.database.set(item, 0);
	browser = new Browser(clock, server, () => 0.5);
	let draws = 0;
	// Names must differ; what is drawn for a pause need not.
	Object.assign(browser, { random: () => ((draws++ * 0.618) % 1) });
});

afterEach(() => browser.living.forEach((tab) => tab.kill()));

async function open(count: number): Promise<Tab[]> {
	const tabs: Tab[] = [];
	for (; tabs.length < count; await clock.advance(100)) tabs.push(browser.open());
	return tabs;
}

const statuses = (tabs: Tab[]) => tabs.map(({ client }) => client.status);

describe('tabs of one browser', () => {
	test('share one stream, and each hears of everything once', async () => {
		const tabs = await open(7);
		const told = tabs.map((tab) => {
			const events: string[] = [];
			tab.client.on('argument_updated', ({ id }) => events.push(String(id)));
			return events;
		});
		expect(statuses(tabs)).toEqual(['live', ...Array(6).fill('follower')]);
		expect([server.connections, server.requests.length]).toEqual([1, 1]);
		for (const item of ['a', 'b', 'a']) server.change(item);
		await clock.settle();
		expect(told).toEqual(Array(7).fill(['a', 'b', 'a']));
	});

	test('a late tab gets what it may have missed from the ring, and fetches nothing anew', async () => {
		const [first] = await open(1);
		await clock.advance(5000);
		const late = browser.open(); // its page has fetched before the event, and joins behind it
		server.change('a');
		await clock.advance(100);
		expect([late.client.status, late.begun, late.cache.get('a')]).toEqual(['follower', 0, 1]);
		expect([first!.client.status, server.requests.length]).toEqual(['live', 1]);
	});

	test('the leader is closed: the next one goes on from its cursor', async () => {
		const tabs = await open(3);
		server.change('a');
		await clock.settle();
		const cursor = tabs[1]!.client.lastEventId;
		tabs[0]!.client.close();
		server.change('b');
		await clock.advance(100);
		expect(statuses(tabs)).toEqual(['closed', 'live', 'follower']);
		expect(server.requests.at(-1)!.headers.get('Last-Event-ID')).toBe(cursor);
		expect([tabs[1]!, tabs[2]!].map(({ cache }) => cache.get('b'))).toEqual([1, 1]);
	});

	test('a leader that is frozen without a word is stolen from, and follows when it wakes', async () => {
		const tabs = await open(3);
		tabs[0]!.freeze(false);
		server.change('a');
		await clock.advance(30_000);
		expect(statuses(tabs.slice(1)).sort()).toEqual(['follower', 'live']);
		tabs[0]!.thaw(true);
		await clock.advance(100);
		expect(tabs[0]!.client.status).toBe('follower');
		expect([server.connections, tabs[0]!.cache.get('a'), tabs[0]!.reloads]).toEqual([1, 1, 0]);
	});

	test('a leader that is told of its freezing lets go at once', async () => {
		const tabs = await open(2);
		tabs[0]!.freeze(true);
		await clock.advance(50);
		expect(tabs[1]!.client.status).toBe('live');
	});

	test('a visible tab takes over from a hidden one, and not from a visible one', async () => {
		const tabs = await open(2);
		tabs[1]!.show(true);
		tabs[1]!.show(false);
		await clock.advance(5000);
		expect(statuses(tabs)).toEqual(['live', 'follower']);
		tabs[0]!.show(true);
		await clock.advance(5000);
		expect(statuses(tabs)).toEqual(['follower', 'live']);
		expect([server.connections, ...tabs.map(({ reloads }) => reloads)]).toEqual([1, 0, 0]);
	});

	test('a tab that slept beyond the ring catches up by a stream of its own', async () => {
		const tabs = await open(2);
		server.change('a');
		await clock.settle();
		tabs[1]!.freeze(false);
		for (let count = 0; count < 600; count++) {
			server.change(count % 2 ? 'a' : 'b');
			await clock.advance(10);
		}
		const before = server.requests.length;
		tabs[1]!.thaw(false);
		await clock.advance(5000);
		expect(statuses(tabs)).toEqual(['live', 'follower']);
		expect([server.requests.length - before, server.connections, tabs[1]!.reloads]).toEqual([1, 1, 0]);
		expect([...tabs[1]!.cache]).toEqual([...server.database]);
	});

	test('a wipe while a tab slept: it is told to reload, though its cursor looks newer than the stream', async () => {
		const tabs = await open(2);
		server.change('a');
		await clock.settle();
		tabs[1]!.freeze(false);
		server.wipe();
		server.database.set('b', 5);
		await clock.advance(1000);
		tabs[1]!.thaw(false);
		await clock.advance(5000);
		expect(tabs.map(({ reloads }) => reloads)).toEqual([1, 1]);
		expect(tabs[1]!.cache.get('b')).toBe(5);
	});

	test('the leader is refused: another tab tries, with headers of its own', async () => {
		const tabs = await open(2);
		server.answer = { status: 401 };
		server.cutLines();
		await clock.advance(3000);
		expect(statuses(tabs)).toEqual(['unauthorized', 'unauthorized']);
		server.answer = undefined;
		tabs[1]!.client.reconnect();
		await clock.advance(1000);
		expect(statuses(tabs)).toEqual(['unauthorized', 'live']);
	});

	test('the switch counts for all tabs', async () => {
		const tabs = await open(2);
		tabs[1]!.client.mode = 'poll';
		await clock.advance(1000);
		expect(statuses(tabs)).toEqual(['polling', 'polling']);
		server.change('a');
		await clock.advance(10_000);
		expect(tabs.map(({ cache }) => cache.get('a'))).toEqual([1, 1]);
		tabs[0]!.client.mode = 'auto';
		await clock.advance(1000);
		expect(statuses(tabs)).toEqual(['live', 'follower']);
	});
});
