import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { SSEClientOptions } from '../../src/core/client.js';
import { Browser, Clock, Server } from './world.js';

const ITEMS = ['a', 'b', 'c', 'd'];
/** Steals, reconnects and catching up, all at their slowest, each more than once. */
const REST_MS = 700_000;

type Step =
	| { do: 'event'; item: string }
	| { do: 'wait'; ms: number }
	| { do: 'drop' | 'down' | 'up' | 'wipe' }
	| { do: 'trim'; keep: number }
	| { do: 'freeze'; tab: number; warned: boolean }
	| { do: 'thaw'; tab: number; keeps: boolean }
	| { do: 'show'; tab: number; hidden: boolean }
	| { do: 'kill' | 'poll'; tab: number }
	| { do: 'killLeader' }
	| { do: 'open'; lateMs: number }
	| { do: 'set'; tab: number; ms: number }
	| { do: 'sleep'; ms: number; cut: boolean }
	| { do: 'answer'; as: keyof typeof ANSWERS; cut: boolean }
	| { do: 'expire' }
	| { do: 'network'; isOnline: boolean };

/** Of what stands before a server: a router while a container is replaced, a proxy, a login page. */
const ANSWERS = {
	404: { status: 404 },
	403: { status: 403 },
	408: { status: 408 },
	425: { status: 425 },
	429: { status: 429, headers: { 'Retry-After': '7' } },
	502: { status: 502 },
	503: { status: 503, headers: { 'Retry-After': 'Tue, 14 Nov 2023 22:20:00 GMT', Date: 'Tue, 14 Nov 2023 22:19:50 GMT' } },
	login: { status: 200, headers: { 'Content-Type': 'text/html' }, body: '<form>' },
	stream: undefined,
};

const tab = fc.nat(6);
const step: fc.Arbitrary<Step> = fc.oneof(
	{ weight: 8, arbitrary: fc.record({ do: fc.constant('event' as const), item: fc.constantFrom(...ITEMS) }) },
	{ weight: 6, arbitrary: fc.record({ do: fc.constant('wait' as const), ms: fc.constantFrom(0, 1, 20, 700, 3000, 20_000) }) },
	{ weight: 3, arbitrary: fc.record({ do: fc.constantFrom('drop' as const, 'down' as const, 'up' as const) }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constant('wipe' as const) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant('trim' as const), keep: fc.nat(3) }) },
	{ weight: 3, arbitrary: fc.record({ do: fc.constant('freeze' as const), tab, warned: fc.boolean() }) },
	{ weight: 3, arbitrary: fc.record({ do: fc.constant('thaw' as const), tab, keeps: fc.boolean() }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant('show' as const), tab, hidden: fc.boolean() }) },
	{ weight: 1, arbitrary: fc.record({ do: fc.constantFrom('kill' as const, 'poll' as const), tab }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant('killLeader' as const) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant('open' as const), lateMs: fc.constantFrom(0, 700, 3000) }) },
	{
		weight: 3,
		arbitrary: fc.record({
			do: fc.constant('set' as const),
			tab,
			ms: fc.constantFrom(-86_400_000, -3_600_000, -60_000, -2000, 2000, 60_000, 3_600_000, 86_400_000),
		}),
	},
	{
		weight: 2,
		arbitrary: fc.record({
			do: fc.constant('sleep' as const),
			ms: fc.constantFrom(10, 3000, 60_000, 3_600_000),
			cut: fc.boolean(),
		}),
	},
	{
		weight: 3,
		arbitrary: fc.record({
			do: fc.constant('answer' as const),
			as: fc.constantFrom(...(Object.keys(ANSWERS) as (keyof typeof ANSWERS)[]), 'stream' as const, 'stream' as const),
			cut: fc.boolean(),
		}),
	},
	{ weight: 1, arbitrary: fc.record({ do: fc.constant('expire' as const) }) },
	{ weight: 2, arbitrary: fc.record({ do: fc.constant('network' as const), isOnline: fc.boolean() }) },
);

/** What is wrong on purpose. */
interface Plant {
	browser?: (browser: Browser) => void;
	options?: SSEClientOptions;
}

async function play(seed: number, tabs: number, steps: Step[], plant: Plant) {
	const clock = new Clock();
	const server = new Server(clock);
	server.token = 0;
	/** As a page does it that keeps its token until it is refused. */
	const open = (lateMs = 0) => {
		let token = server.token!;
		const headers = ({ refresh }: { refresh: boolean }) => {
			if (refresh) token = server.token!;
			return { Authorization: `Bearer ${token}` };
		};
		browser.open({ scope: 'ann', headers, ...plant.options }, lateMs);
	};
	for (const item of ITEMS) server.database.set(item, 0);
	let state = seed;
	// A generator of our own: fast-check shrinks the steps, not the draws.
	const random = () => {
		state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
		return state / 2 ** 31;
	};
	const browser = new Browser(clock, server, random);
	plant.browser?.(browser);
	for (let count = 0; count < tabs; count++) open();
	for (const step of steps) {
		const chosen = 'tab' in step ? browser.living[step.tab % Math.max(1, browser.living.length)] : undefined;
		if (step.do === 'event') server.change(step.item);
		else if (step.do === 'wait') await clock.advance(step.ms);
		else if (step.do === 'drop') server.cutLines();
		else if (step.do === 'down') server.down();
		else if (step.do === 'up') server.up();
		else if (step.do === 'wipe') server.wipe();
		else if (step.do === 'trim') server.trim(step.keep);
		else if (step.do === 'open') open(step.lateMs);
		else if (step.do === 'set') chosen?.setClock(step.ms);
		else if (step.do === 'sleep') await browser.sleep(step.ms, step.cut);
		else if (step.do === 'expire') server.token++;
		else if (step.do === 'network') browser.connectNetwork(step.isOnline);
		else if (step.do === 'answer') {
			server.answer = ANSWERS[step.as];
			if (step.cut) server.cutLines();
		}
		else if (step.do === 'freeze') chosen?.freeze(step.warned);
		else if (step.do === 'thaw') chosen?.thaw(step.keeps);
		else if (step.do === 'show') chosen?.show(step.hidden);
		else if (step.do === 'poll') chosen?.toggleMode();
		else if (step.do === 'kill') chosen?.kill();
		else browser.living.find((one) => one.client.role === 'leader')?.kill();
		await clock.settle();
		if (!browser.isOnline) {
			// A page that is frozen has yet to hear of it; what it showed last, nobody sees.
			const running = browser.living.filter((one) => one.state === 'running');
			expect(running.map((one) => one.client.status).filter((status) => /live|follower/.test(status))).toEqual([]);
		}
	}
	server.answer = undefined;
	server.up();
	browser.connectNetwork(true);
	for (const one of browser.living) one.thaw(true);
	await clock.advance(REST_MS);
	return { browser, server };
}

/** What it has found before, and does not find each time. */
const FOUND: [number, number, Step[]][] = [
	// An answer to a question that a frozen tab had asked when it had no cursor yet.
	[
		0,
		2,
		[
			{ do: 'wait', ms: 3000 },
			{ do: 'killLeader' },
			{ do: 'freeze', tab: 0, warned: false },
			{ do: 'open', lateMs: 0 },
			{ do: 'freeze', tab: 1, warned: false },
			{ do: 'open', lateMs: 0 },
			{ do: 'wait', ms: 20_000 },
			{ do: 'event', item: 'a' },
		],
	],
	// A leader that had not heard of a wipe yet took a tab that had come past it for its own.
	[
		0,
		4,
		[
			{ do: 'show', tab: 1, hidden: true },
			{ do: 'event', item: 'a' },
			{ do: 'freeze', tab: 1, warned: false },
			{ do: 'event', item: 'a' },
			{ do: 'wipe' },
			{ do: 'thaw', tab: 1, keeps: false },
			{ do: 'down' },
			{ do: 'wait', ms: 3000 },
			{ do: 'event', item: 'c' },
			{ do: 'killLeader' },
		],
	],
];

const scenario = [fc.nat(), fc.integer({ min: 1, max: 5 }), fc.array(step, { maxLength: 40, size: 'max' })] as const;
const runs = Number(process.env.MODEL_RUNS ?? 600);

/** Throws where a tab misses something, or the tabs have more or fewer streams than one. */
async function check(seed: number, tabs: number, steps: Step[], plant: Plant = {}): Promise<void> {
	const { browser, server } = await play(seed, tabs, steps, plant);
	for (const one of browser.living) {
		expect([...one.cache]).toEqual([...server.database]);
		expect(one.client.readyState).toBe(1);
		// Nothing was lost, so nobody is told that it was.
		if (!steps.some((step) => step.do === 'wipe' || step.do === 'trim')) expect(one.reloads).toBe(0);
	}
	const polls = browser.living.every((one) => one.client.mode === 'poll');
	const streams = browser.living.filter((one) => one.client.status === 'live').length;
	if (browser.living.length) expect(streams).toBe(polls ? 0 : 1);
	expect(server.connections).toBe(streams);
	for (const one of browser.living) one.kill();
	await browser.clock.settle();
	expect(server.connections).toBe(0);
}

test('every tab ends equal to the server, with one stream in all', async () => {
	const property = fc.asyncProperty(...scenario, (seed, tabs, steps) => check(seed, tabs, steps));
	await fc.assert(property, { numRuns: runs, examples: FOUND });
}, 3_600_000);

test.each<[string, Plant]>([
	['a server that forgets where a client was', { browser: (browser) => (browser.server.forgets = true) }],
	['durations measured by a clock that is set', { browser: (browser) => (browser.measuresByWall = true) }],
	['a client that gives up at a 404', { options: { shouldRetry: ({ status }) => (status === 404 ? false : undefined) } }],
	['a page that knows no fresh token', { options: { headers: { Authorization: 'Bearer 0' } } }],
	['tabs that never look at the clock', { options: { silenceMs: 1e9 } }],
])('%s: found out', async (_, plant) => {
	const property = fc.asyncProperty(...scenario, (seed, tabs, steps) => check(seed, tabs, steps, plant));
	// The same draws each time: how soon one comes by it is no matter of luck.
	expect((await fc.check(property, { numRuns: 2000, seed: 1, endOnFailure: true })).failed).toBe(true);
}, 3_600_000);
