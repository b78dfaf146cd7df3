import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { SSEClient, type SSEClientOptions } from '../../src/core/client.js';
import type { Platform } from '../../src/core/platform.js';
import { type Answer, reload, Stream, testPlatform, updated } from './support.js';

beforeEach(() => vi.useFakeTimers({ now: 1_700_000_000_000 }));
afterEach(() => vi.useRealTimers());

function start(options: SSEClientOptions = {}, changes: Partial<Platform> = {}, answer?: Answer) {
	const streams: Stream[] = [];
	const requests: { url: string; cursor: string | null; at: number }[] = [];
	const page = new EventTarget();
	/** Signals of those who listen to the page. */
	const listeners = new Set<AbortSignal>();
	const platform = testPlatform(
		(url, init) => {
			requests.push({ url, cursor: new Headers(init.headers).get('Last-Event-ID'), at: Date.now() });
			if (answer) return answer(url, init);
			const stream = new Stream(init.signal);
			streams.push(stream);
			return stream.response;
		},
		{
			addEventListener: (type, listener, options) => {
				const signal = options.signal!;
				listeners.add(signal);
				signal.addEventListener('abort', () => listeners.delete(signal));
				page.addEventListener(type, listener, options);
			},
			...changes,
		},
	);
	const sse = new SSEClient('https://example.test/v1/sse/42', options, platform);
	const told: unknown[] = [];
	sse.on('argument_updated', ({ id }, lastEventId) => told.push([id, lastEventId]));
	sse.on('reload_required', ({ reason }, lastEventId) => told.push([reason, lastEventId]));
	sse.addEventListener('began', () => told.push('began'));
	const errors: [string | undefined, number | undefined, boolean][] = [];
	sse.addEventListener('error', ({ message, status, fatal }) => errors.push([message, status, fatal]));
	const statuses: string[] = [];
	sse.addEventListener('statuschange', () => statuses.push(sse.status));
	const release = sse.connect();
	const tell = (type: string) => page.dispatchEvent(new Event(type));
	return { sse, streams, requests, told, errors, statuses, release, tell, listeners };
}

const turn = (ms = 0) => vi.advanceTimersByTimeAsync(ms);

describe('events', () => {
	test('a handler costs nothing where another event is told', async () => {
		const { sse, streams } = start();
		await turn();
		let calls = 0;
		const add = vi.spyOn(sse, 'addEventListener').mockImplementation(function (this: EventTarget, type, listener) {
			const counted = (event: any) => {
				calls++;
				(listener as (event: any) => void)(event);
			};
			EventTarget.prototype.addEventListener.call(this, type, counted);
		});
		for (let count = 0; count < 200; count++) sse.on(`other_${count}` as 'argument_updated', () => {});
		add.mockRestore();
		streams[0]!.write(`id: 1-0\n\n${updated('2-0', 'a')}`);
		await turn();
		expect(calls).toBe(0);
	});

	test('are dispatched in order, and the cursor is sent at the next connect', async () => {
		const { sse, streams, requests, told } = start();
		expect([sse.lastEventId, sse.hasBegun]).toEqual(['', false]);
		await turn();
		expect([sse.status, sse.getSnapshot()]).toEqual(['connecting', 'connecting']);
		streams[0]!.write('retry: 100\n\nid: 1-0\n\n');
		await turn();
		expect([sse.status, sse.readyState, sse.lastEventId, sse.hasBegun]).toEqual(['live', 1, '1-0', true]);
		streams[0]!.write(updated('2-0', 'a') + updated('3-0', 'b'));
		streams[0]!.end();
		await turn();
		expect(told).toEqual(['began', ['a', '2-0'], ['b', '3-0']]);
		expect(sse.status).toBe('connecting');
		await turn(1000);
		expect(requests.map(({ cursor }) => cursor)).toEqual([null, '3-0']);
	});

	test('a block with only an id moves the cursor', async () => {
		const { sse, streams, told } = start({ initialLastEventId: '1-0' });
		await turn();
		streams[0]!.write('id: 9-9\n\n');
		await turn();
		expect([sse.lastEventId, told]).toEqual(['9-9', []]);
	});

	test('what was seen is not dispatched again; reload_required moves the cursor back', async () => {
		const { sse, streams, told } = start({ initialLastEventId: '5-0' });
		await turn();
		streams[0]!.write(updated('5-0', 'a') + updated('4-18446744073709551615', 'b') + updated('10-0', 'c') + reload('0-77'));
		streams[0]!.write(updated('6-0', 'd'));
		await turn();
		expect(told).toEqual([['c', '10-0'], ['trimmed', '0-77'], ['d', '6-0']]);
		expect(sse.lastEventId).toBe('6-0');
	});

	test('an event that cannot be read may have said anything', async () => {
		const { streams, told } = start({ initialLastEventId: '1-0' });
		await turn();
		streams[0]!.write('id: 2-0\ndata: {oops\n\nid: 3-0\ndata: 7\n\n');
		await turn();
		expect(told).toEqual([['malformed', '2-0'], ['malformed', '3-0']]);
	});
});

describe('reconnecting', () => {
	test('502 and 429 are tried again, behind Retry-After; 204 is not', async () => {
		const answers = [
			new Response('', { status: 502 }),
			new Response('', { status: 429, headers: { 'Retry-After': '20' } }),
			new Response(null, { status: 204 }),
		];
		const { sse, requests, errors } = start({}, {}, () => answers.shift()!);
		await turn();
		expect(sse.status).toBe('connecting');
		await turn(1000);
		expect(requests).toHaveLength(2);
		await turn(19_000);
		expect(requests).toHaveLength(2);
		await turn(1100);
		expect(requests).toHaveLength(3);
		expect(sse.status).toBe('closed');
		expect(errors.map(([, status, fatal]) => [status, fatal])).toEqual([[502, false], [429, false], [204, true]]);
		await turn(300_000);
		expect(requests).toHaveLength(3);
	});

	test.each([403, 404, 405, 410, 422])('%i is tried again, slowly: soon after a short time, ever more rarely after a long one', async (status) => {
		let isRefused = true;
		const answer: Answer = (_, { signal }) => {
			if (isRefused) return new Response('', { status });
			const stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			return stream.response;
		};
		for (const draw of [0, 0.999]) {
			isRefused = true;
			const { sse, requests, errors } = start({}, { Math: { random: () => draw } }, answer);
			await turn(8000);
			expect(sse.status).toBe('connecting');
			expect(requests.length).toBeLessThan(6);
			isRefused = false;
			await turn(4000);
			expect(sse.status).toBe('live');
			expect(errors.every(([, , fatal]) => !fatal)).toBe(true);
		}
		isRefused = true;
		const { requests, tell } = start({}, {}, answer);
		await turn(7_200_000);
		const gaps = requests.slice(1).map(({ at }, index) => at - requests[index]!.at);
		expect(Math.max(...gaps)).toBeGreaterThan(200_000);
		expect(Math.max(...gaps)).toBeLessThanOrEqual(300_000);
		const before = requests.length;
		tell('visibilitychange');
		await turn();
		tell('online');
		await turn();
		expect(requests.length).toBe(before + 2);
	});

	test.each([408, 425, 500])('%i for 8 s: live again within 4 s, whatever is drawn', async (status) => {
		for (const draw of [0.05, 0.5, 0.999]) {
			let isUp = false;
			const { sse } = start({}, { Math: { random: () => draw } }, (_, { signal }) => {
				if (!isUp) return new Response('', { status });
				const stream = new Stream(signal);
				stream.write('id: 1-0\n\n');
				return stream.response;
			});
			await turn(8000);
			isUp = true;
			await turn(4000);
			expect(sse.status).toBe('live');
		}
	});

	test('refused while it polls, it polls slowly, until an answer came', async () => {
		let isUp = false;
		const { sse, requests } = start({ mode: 'poll' }, {}, () => {
			if (!isUp) return new Response('', { status: 404 });
			const answer = new Stream();
			answer.write('id: 1-0\n\n');
			answer.end();
			return answer.response;
		});
		await turn(3_600_000);
		expect(sse.status).toBe('connecting');
		expect(requests.length).toBeLessThan(40);
		isUp = true;
		await turn(300_000);
		expect(sse.status).toBe('polling');
		isUp = false;
		await turn(7875);
		expect(sse.status).toBe('connecting');
		isUp = true;
		await turn(7875);
		expect(sse.status).toBe('polling');
	});

	test.each([200, 502])('polls come as often where the server answers and where it is down, and never sooner than asked: %i', async (status) => {
		for (const draw of [0, 0.5, 0.999]) {
			const headers = { 'Content-Type': 'text/event-stream' };
			const answer = () => new Response(status === 200 ? 'id: 1-0\n\n' : '', { status, headers });
			const { requests, release } = start({ mode: 'poll', pollMs: 4000 }, { Math: { random: () => draw } }, answer);
			await turn(600_000);
			const gaps = requests.slice(1).map(({ at }, index) => at - requests[index]!.at);
			expect(new Set(gaps)).toEqual(new Set([Math.floor(4000 * (1 + draw / 4))]));
			release();
		}
	});

	test('shouldRetry decides otherwise, and what is fatal is said', async () => {
		const say = vi.spyOn(console, 'warn').mockImplementation(() => {});
		const shouldRetry = vi.fn(({ status }: { status?: number }) => (status === 404 ? false : status === 204 || undefined));
		const answers = [204, 503, 404];
		const { sse, requests, errors } = start({ shouldRetry }, {}, () => {
			const status = answers.shift() ?? 404;
			return new Response(status === 204 ? null : '', { status });
		});
		const lost = vi.fn();
		sse.addEventListener('lost', lost);
		await turn(20_000);
		expect(errors.map(([, status, fatal]) => [status, fatal])).toEqual([[204, false], [503, false], [404, true]]);
		expect([sse.status, sse.lastError?.status, sse.lastError?.fatal, lost.mock.calls.length]).toEqual(['closed', 404, true, 1]);
		expect(say.mock.calls.map(([text]) => text)).toEqual([expect.stringContaining('gave up on https://example.test/v1/sse/42')]);
		await turn(600_000);
		expect(requests).toHaveLength(3);
		sse.reconnect();
		expect(sse.lastError).toBeUndefined();
		await turn();
		expect(requests).toHaveLength(4);
		say.mockRestore();
	});

	test('a stream that cannot be given up, by an application that throws', async () => {
		const say = vi.spyOn(console, 'warn').mockImplementation(() => {});
		const shouldRetry = () => {
			throw new Error('oops');
		};
		const { requests, release } = start({ shouldRetry }, {}, () => new Response('', { status: 503 }));
		await turn(10_000);
		release();
		expect(requests.length).toBeGreaterThan(2);
		expect(say).toHaveBeenLastCalledWith('stalecast: shouldRetry threw', new Error('oops'));
		say.mockClear();
		start({}, {}, () => new Response('', { status: 503 }));
		await turn(10_000);
		expect(say).not.toHaveBeenCalled();
		say.mockRestore();
	});

	test('lastError lasts until something comes through', async () => {
		let isUp = false;
		const { sse } = start({}, {}, (_, { signal }) => {
			if (!isUp) return new Response('', { status: 502 });
			const stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			return stream.response;
		});
		await turn();
		expect(sse.lastError).toMatchObject({ kind: 'failed', status: 502, fatal: false });
		isUp = true;
		await turn(10_000);
		expect([sse.status, sse.lastError]).toEqual(['live', undefined]);
	});

	test('the ceiling doubles up to its cap, and a healthy while resets it', async () => {
		let healthy = false;
		const { requests } = start({ backoffBaseMs: 1000, backoffCapMs: 8000 }, {}, (_, { signal }) => {
			if (!healthy) return new Response('', { status: 500 });
			const stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			setTimeout(() => stream.end(), 12_000);
			return stream.response;
		});
		await turn(40_000);
		const pauses = requests.slice(1).map(({ at }, index) => at - requests[index]!.at);
		expect(pauses.slice(0, 6)).toEqual([500, 1000, 2000, 4000, 4000, 4000]);
		healthy = true;
		await turn(30_000);
		const after = requests.slice(-2).map(({ at }) => at);
		expect(after[1]! - after[0]!).toBe(12_500);
	});

	test('streams that never last are failures too', async () => {
		const { requests } = start({ backoffBaseMs: 1000, backoffCapMs: 8000 }, {}, (_, { signal }) => {
			const stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			setTimeout(() => stream.end(), 5000);
			return stream.response;
		});
		await turn(40_000);
		const pauses = requests.slice(1).map(({ at }, index) => at - requests[index]!.at - 5000);
		expect(pauses.slice(0, 5)).toEqual([500, 1000, 2000, 4000, 4000]);
	});

	test('retry: is a floor, which a page that is shown need not wait for; Retry-After it must', async () => {
		const { streams, requests, tell } = start();
		await turn();
		streams[0]!.write('retry: 60000\n\nid: 1-0\n\n');
		streams[0]!.end();
		await turn(59_000);
		expect(requests).toHaveLength(1);
		tell('visibilitychange');
		await turn();
		expect(requests).toHaveLength(2);

		const limited = start({}, {}, () => new Response('', { status: 503, headers: { 'Retry-After': '30' } }));
		await turn();
		for (const event of ['online', 'visibilitychange', 'resume']) limited.tell(event);
		await turn(29_000);
		expect(limited.requests).toHaveLength(1);
		await turn(1100);
		expect(limited.requests).toHaveLength(2);
	});

	test('a server that asks for a pause without end is asked again within the hour, and not before', async () => {
		for (const ask of ['retry: 99999999999999\n\nid: 1-0\n\n', '']) {
			const { requests } = start({}, {}, (_, { signal }) => {
				if (!ask) return new Response('', { status: 503, headers: { 'Retry-After': '99999999999' } });
				const stream = new Stream(signal);
				stream.write(ask);
				stream.end();
				return stream.response;
			});
			await turn(3_599_000);
			expect(requests).toHaveLength(1);
			await turn(1100);
			expect(requests).toHaveLength(2);
		}
	});

	test.each(['stream', 'poll'] as const)('a page that is hidden waits as before; shown, or online, it does not: %s', async (mode) => {
		const document = { baseURI: 'https://example.test/', hidden: false };
		const { requests, tell } = start({ mode, backoffBaseMs: 30_000, pollMs: 30_000 }, { document }, () => new Response('', { status: 502 }));
		await turn();
		document.hidden = true;
		tell('visibilitychange');
		await turn(100);
		expect(requests).toHaveLength(1);
		tell('online'); // also a hidden page may have the stream for others
		await turn(100);
		expect(requests).toHaveLength(2);
		document.hidden = false;
		tell('visibilitychange');
		await turn(100);
		expect(requests).toHaveLength(3);
	});

	test('a page that wakes while the first answer is awaited does not begin anew', async () => {
		const { requests, tell, statuses } = start({}, {}, (_, { signal }) => new Promise((__, reject) => signal!.addEventListener('abort', reject)));
		await turn(5000);
		for (const event of ['online', 'visibilitychange', 'pageshow']) tell(event);
		await turn();
		expect([requests.length, statuses]).toEqual([1, []]);
	});

	test('reconnect() replaces what stands', async () => {
		const { sse, streams, requests } = start();
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn();
		sse.reconnect();
		await turn();
		expect([streams[0]!.isAborted, requests.map(({ cursor }) => cursor)]).toEqual([true, [null, '1-0']]);
	});

	test('a stream that was quiet for too long is cut when the page wakes', async () => {
		const { streams, requests, tell, errors, statuses } = start({ backoffBaseMs: 60_000 });
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(10_000);
		tell('online');
		await turn();
		expect(requests).toHaveLength(1);
		streams[0]!.write(':\n\n');
		await turn(23_000);
		tell('online');
		await turn();
		expect(requests).toHaveLength(2);
		expect([errors, statuses]).toEqual([[], ['live', 'connecting']]);
	});

	test('unauthorized until somebody reconnects', async () => {
		let allowed = false;
		const headers = vi.fn(() => ({}));
		const { sse, requests } = start({ headers }, {}, (_, { signal }) => {
			if (!allowed) return new Response('', { status: 401 });
			const stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			return stream.response;
		});
		await turn(60_000);
		expect([sse.status, sse.readyState, requests.length, headers.mock.calls.length]).toEqual(['unauthorized', 2, 2, 2]);
		allowed = true;
		sse.reconnect();
		await turn();
		expect(sse.status).toBe('live');
	});

	test('offline is what the browser says it is', async () => {
		let online = false;
		const { sse, tell, requests } = start({}, { navigator: { get onLine() { return online; } } }, () => Promise.reject(new TypeError('no')));
		await turn();
		expect(sse.status).toBe('offline');
		online = true;
		const before = requests.length;
		tell('online');
		await turn();
		expect(requests.length).toBe(before + 1);
		expect(sse.status).toBe('connecting');
	});
});

describe('clocks', () => {
	/** A machine whose clocks a test sets. */
	function clocks() {
		let wallMs = 0;
		let steadyMs = 0;
		const changes: Partial<Platform> = {
			Date: { now: () => Date.now() + wallMs },
			performance: { now: () => performance.now() + steadyMs },
		};
		const step = (wall: number, steady = 0) => {
			wallMs += wall;
			steadyMs += steady;
		};
		return { changes, step };
	}

	test.each([-3_600_000, -60_000, -1000, 1000, 4000])('set by %i ms in the first heartbeat interval, a healthy stream stays', async (ms) => {
		const { changes, step } = clocks();
		const { sse, streams, requests } = start({ initialLastEventId: '1-0' }, changes);
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(1000);
		step(ms);
		for (let beat = 0; beat < 10; beat++) {
			await turn(4000);
			streams[0]!.write(':\n\n');
		}
		await turn();
		expect([sse.status, requests.length]).toEqual(['live', 1]);
	});

	test('set forward far, at most a line is made anew', async () => {
		const { changes, step } = clocks();
		const { sse, streams, requests } = start({ initialLastEventId: '1-0' }, changes);
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(1000);
		step(3_600_000);
		await turn(4000);
		streams.at(-1)!.write('id: 1-0\n\n');
		await turn();
		expect([sse.status, requests.length]).toEqual(['live', 2]);
	});

	test.each([['the clock stood still', [60_000, 0]], ['it went on', [60_000, 60_000]], ['it was set back meanwhile', [-3_600_000, 60_000]]] as const)(
		'a machine that slept tries at once: %s',
		async (_, [wall, steady]) => {
			for (const shareTabs of [true, false]) {
				const { changes, step } = clocks();
				const { sse, streams, requests } = start({ shareTabs }, changes);
				await turn();
				streams[0]!.write('id: 1-0\n\n');
				await turn(5000);
				step(wall, steady);
				await turn(2000);
				expect([sse.role, requests.length, streams[0]!.isAborted]).toEqual(['alone', 2, true]);
			}
		},
	);

	test('what came before a sleep proves nothing when it is read after it', async () => {
		const { changes, step } = clocks();
		const { streams, requests } = start({}, changes);
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(1000);
		step(60_000, 60_000);
		streams[0]!.write(':\n\n'); // waited in the machine
		await turn(2000);
		expect(requests).toHaveLength(2);
	});

	test('ticks that a browser holds up in a hidden page are no sleep', async () => {
		let held: (() => void) | undefined;
		const { streams, requests } = start({}, {
			setTimeout: (run, ms) => (ms === 2000 ? ((held = run), undefined) : setTimeout(run, ms)),
		});
		await turn();
		for (let beat = 0; beat < 45; beat++) {
			streams[0]!.write(beat ? ':\n\n' : 'id: 1-0\n\n');
			await turn(4000);
			if (beat % 15 === 14) held!();
		}
		await turn();
		expect(requests).toHaveLength(1);
	});

	test('a pause ends with the sleep, but for what Retry-After asks', async () => {
		const { changes, step } = clocks();
		const { requests } = start({}, changes, () => new Response('', { status: 503, headers: { 'Retry-After': '600' } }));
		await turn(1000);
		step(300_000);
		await turn(2000);
		expect(requests).toHaveLength(1);
		step(300_000);
		await turn(2000);
		expect(requests).toHaveLength(2);
	});

	test('a pause that Retry-After asked for is as long, whatever a clock shows', async () => {
		const { changes, step } = clocks();
		const { requests } = start({}, changes, () => new Response('', { status: 503, headers: { 'Retry-After': '30' } }));
		await turn(1000);
		step(-3_600_000);
		await turn(28_000);
		expect(requests).toHaveLength(1);
		await turn(1100);
		expect(requests).toHaveLength(2);
	});
});

describe('networks', () => {
	test.each(['event', 'tick'] as const)('none: never live, and the line is not trusted when there is one again: %s', async (how) => {
		let onLine = true;
		const { sse, streams, requests, statuses, tell } = start({}, { navigator: { get onLine() { return onLine; } } });
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(1);
		onLine = false;
		if (how === 'event') tell('offline');
		await turn(how === 'event' ? 0 : 2000);
		expect([sse.status, sse.readyState, streams[0]!.isAborted]).toEqual(['offline', 0, true]);
		streams.at(-1)!.write('id: 1-0\n\n');
		await turn(1000);
		expect(statuses.slice(-1)).toEqual(['offline']);
		const before = requests.length;
		onLine = true;
		if (how === 'event') tell('online');
		await turn(how === 'event' ? 0 : 2000);
		expect(requests.length).toBe(before + 1);
		streams.at(-1)!.write('id: 1-0\n\n');
		await turn();
		expect(sse.status).toBe('live');
	});

	test('one that goes in a pause is told of at once; Retry-After holds all the same', async () => {
		let onLine = true;
		const navigator = { get onLine() { return onLine; } };
		const { requests, statuses } = start({}, { navigator }, () => new Response('', { status: 503, headers: { 'Retry-After': '30' } }));
		await turn(1000);
		onLine = false;
		await turn(2000);
		expect(statuses).toEqual(['offline']);
		onLine = true;
		await turn(26_000);
		expect([statuses, requests.length]).toEqual([['offline', 'connecting'], 1]);
		await turn(1100);
		expect(requests).toHaveLength(2);
	});
});

describe('addresses', () => {
	const made = (url: string, changes: Partial<Platform>) => new SSEClient(url, {}, testPlatform(() => new Response(), changes)).url;
	const at = (href: string) => ({ location: { href } });
	test('a relative one stands beside the page, or what the worker was made of', () => {
		expect(made('/s', { document: { baseURI: 'https://a.test/b/', hidden: false }, ...at('https://c.test/') })).toBe('https://a.test/s');
		expect(made('s', at('https://a.test/js/worker.js'))).toBe('https://a.test/js/s');
		expect(made('/s?x', at('blob:https://a.test/0f6c'))).toBe('https://a.test/s?x');
		expect(made('s', at('https://a.test/blob:/app'))).toBe('https://a.test/blob:/s');
		expect(made('https://b.test/s', at('data:text/javascript,0'))).toBe('https://b.test/s');
		expect(made('/s', {})).toBe('/s');
	});
	test.each(['data:text/javascript,0', 'blob:null/0f6c', 'about:blank'])('where nothing is beside, that is said: %s', (href) => {
		expect(() => made('/s', at(href))).toThrow(`/s is no absolute URL`);
	});
});

describe('streams that are held back', () => {
	const isPoll = (url: string) => url.endsWith('?live=false');

	test('the stream is probed ever more rarely, and as at first once it came through', async () => {
		let holds = true;
		let stream: Stream | undefined;
		const probed = start({ initialLastEventId: '1-0', backoffBaseMs: 0 }, {}, (url, { signal }) => {
			if (isPoll(url)) {
				const answer = new Stream();
				answer.write('id: 1-0\n\n');
				answer.end();
				return answer.response;
			}
			if (holds) return new Promise((_, reject) => signal!.addEventListener('abort', reject));
			stream = new Stream(signal);
			stream.write('id: 1-0\n\n');
			return stream.response;
		});
		const gaps = () => {
			const at = probed.requests.filter(({ url }) => !isPoll(url)).map((request) => request.at);
			return at.slice(1).map((time, index) => (time - at[index]! - 8000) / 60_000);
		};
		await turn(3_000_000);
		expect(gaps().slice(0, 6)).toEqual([1, 2, 4, 8, 8, 8]);
		// Polled all the while, and no other status between.
		expect(probed.statuses).toEqual(['polling']);
		holds = false;
		for (let second = 0; second < 600 && !stream; second++) await turn(1000);
		await turn(1000);
		stream!.write(':\n\n');
		await turn();
		expect(probed.sse.status).toBe('live');
		holds = true;
		const before = gaps().length;
		stream!.end();
		await turn(400_000);
		// The first is the stream's own time; then one attempt after the other, mute at once.
		expect(gaps().slice(before + 1, before + 3)).toEqual([1, 2]);
	});

	test('a page that is shown asks at once', async () => {
		const { requests, tell } = start({ mode: 'poll', initialLastEventId: '1-0' }, {}, () => {
			const answer = new Stream();
			answer.write('id: 1-0\n\n');
			answer.end();
			return answer.response;
		});
		await turn(1000);
		expect(requests).toHaveLength(1);
		tell('visibilitychange');
		await turn();
		expect(requests).toHaveLength(2);
	});

	test('a poll that is to come later is no way that is closed', async () => {
		const { sse, requests } = start({ initialLastEventId: '1-0' }, {}, (url, { signal }) => {
			if (isPoll(url)) return new Response('', { status: 429, headers: { 'Retry-After': '30' } });
			return new Promise((_, reject) => signal!.addEventListener('abort', reject));
		});
		await turn(8000 + 61_000);
		expect(requests.filter(({ url }) => isPoll(url))).toHaveLength(3);
		expect(sse.status).toBe('connecting');
	});

	test('the doubt about one stream is not the next one\'s, nor its proof', async () => {
		const { streams, requests } = start({ initialLastEventId: '1-0' });
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		await turn(19_000);
		streams[0]!.end();
		await turn(1000);
		streams[1]!.write('id: 1-0\n\n');
		await turn(19_000);
		expect(requests.filter(({ url }) => isPoll(url))).toHaveLength(0);
		await turn(1000);
		expect(requests.filter(({ url }) => isPoll(url))).toHaveLength(1);
	});

	test('mute: polling takes over, and the stream is probed until it comes through', async () => {
		let holds = true;
		let stream: Stream | undefined;
		const { sse, requests, told } = start({ initialLastEventId: '1-0' }, {}, (url, { signal }) => {
			if (isPoll(url)) {
				const answer = new Stream();
				answer.write(updated('2-0', 'a'));
				answer.end();
				return answer.response;
			}
			if (holds) return new Promise((_, reject) => signal!.addEventListener('abort', reject));
			stream = new Stream(signal);
			stream.write('id: 2-0\n\n');
			return stream.response;
		});
		await turn(8000);
		expect(sse.status).toBe('polling');
		await turn(30_000);
		expect(told).toEqual([['a', '2-0']]);
		const polls = () => requests.filter(({ url }) => isPoll(url));
		expect(polls().length).toBeGreaterThan(3);
		expect(polls().at(-1)!.cursor).toBe('2-0');
		holds = false;
		await turn(40_000);
		// Its first bytes alone do not end the polling.
		expect([stream !== undefined, sse.status]).toEqual([true, 'polling']);
		const before = polls().length;
		stream!.write(':\n\n');
		await turn();
		expect(sse.status).toBe('live');
		await turn(30_000);
		expect(polls().length).toBe(before);
	});

	test('first bytes, and then nothing: polling begins beside the stream', async () => {
		await turn(5000); // by the clock that is read then, less is not as good as nothing
		const { sse, streams, requests } = start({ initialLastEventId: '1-0' });
		await turn();
		streams[0]!.write('retry: 2000\n\n');
		await turn(100);
		streams[0]!.write('id: 1-0\n\n'); // one flush in two pieces proves no more
		await turn(18_900);
		expect(sse.status).toBe('live');
		await turn(1100);
		expect(requests.map(({ url }) => isPoll(url))).toEqual([false, true]);
		streams[1]!.write('id: 1-0\n\n');
		streams[1]!.end();
		await turn();
		expect(sse.status).toBe('polling');
		streams[0]!.write(updated('2-0', 'a'));
		await turn();
		expect(sse.status).toBe('live');
	});

	test('a poll that fails does not end the probe that is under way', async () => {
		let polls = 0;
		const { requests } = start({ initialLastEventId: '1-0' }, {}, (url, { signal }) => {
			if (!isPoll(url)) return new Promise((_, reject) => signal!.addEventListener('abort', reject));
			// The ninth comes 4 s after the second attempt at a stream, and as long before its end.
			if (++polls === 9) return new Response('', { status: 502 });
			const answer = new Stream();
			answer.write('id: 1-0\n\n');
			answer.end();
			return answer.response;
		});
		const streams = () => requests.filter(({ url }) => !isPoll(url)).map(({ at }) => at - 1_700_000_000_000);
		while (polls < 9) await turn(100);
		await turn(1000);
		expect([streams(), polls]).toEqual([[0, 68_000], 9]);
	});

	test('polls ask what the stream asks, and for no live part', async () => {
		const urls: string[] = [];
		const answer: Answer = (url) => {
			urls.push(url);
			return new Response('', { status: 502 });
		};
		for (const url of ['https://example.test/s', 'https://example.test/s?room=1'])
			new SSEClient(url, { mode: 'poll' }, testPlatform(answer)).connect();
		await turn();
		expect(urls).toEqual(['https://example.test/s?live=false', 'https://example.test/s?room=1&live=false']);
	});

	test('no way at all is not polled', async () => {
		const { sse, requests } = start({}, {}, (_, { signal }) => new Promise((__, reject) => signal!.addEventListener('abort', reject)));
		await turn(120_000);
		expect(sse.status).toBe('connecting');
		const polls = requests.filter(({ url }) => isPoll(url)).length;
		expect(requests.length - polls).toBeGreaterThanOrEqual(polls);
	});

	test('the switch forces either', async () => {
		const { sse, requests } = start({ mode: 'poll' });
		await turn(20_000);
		expect(requests.every(({ url }) => isPoll(url))).toBe(true);
		expect(sse.mode).toBe('poll');
		sse.mode = 'stream';
		expect(sse.mode).toBe('stream');
		await turn(100_000);
		const since = requests.findLastIndex(({ url }) => isPoll(url));
		expect(requests.slice(since + 1).length).toBeGreaterThan(3);
	});
});

describe('life', () => {
	test('nothing happens before connect', async () => {
		const answer = vi.fn(() => new Response());
		const sse = new SSEClient('https://example.test/s', { initialLastEventId: '1-0' }, testPlatform(answer));
		sse.mode = 'poll';
		sse.reconnect();
		await turn(60_000);
		expect([answer.mock.calls.length, vi.getTimerCount(), sse.status]).toEqual([0, 0, 'connecting']);
	});

	test('released, nothing starts it but connect()', async () => {
		const { sse, requests, release } = start();
		await turn();
		release();
		await turn();
		sse.reconnect();
		sse.seed('4-0');
		sse.mode = 'poll';
		await turn(60_000);
		expect([requests.length, vi.getTimerCount()]).toEqual([1, 0]);
		sse.connect();
		await turn();
		expect(requests[1]).toMatchObject({ url: expect.stringContaining('live=false'), cursor: '4-0' });
	});

	test('closed during a pause, nothing is left', async () => {
		const { sse, listeners, requests } = start({}, {}, () => new Response('', { status: 503 }));
		await turn();
		sse.close();
		await turn();
		expect([sse.status, listeners.size, vi.getTimerCount()]).toEqual(['closed', 0, 0]);
		await turn(60_000);
		expect(requests).toHaveLength(1);
	});

	test('everything ends with the last release', async () => {
		const { sse, streams, release, listeners } = start();
		const second = sse.connect();
		await turn();
		streams[0]!.write('id: 1-0\n\n');
		release();
		release();
		await turn();
		expect(streams[0]!.isAborted).toBe(false);
		second();
		await turn(1);
		expect(streams[0]!.isAborted).toBe(true);
		expect(listeners.size).toBe(0);
		expect(vi.getTimerCount()).toBe(0);
	});

	test('released and asked for again in one turn, the stream stays', async () => {
		const { sse, requests, release } = start();
		await turn();
		release();
		sse.connect();
		await turn(10);
		expect(requests).toHaveLength(1);
	});

	test('left and come back to, it goes on from its cursor', async () => {
		const { streams, requests, tell } = start();
		await turn();
		streams[0]!.write('id: 7-0\n\n');
		await turn();
		tell('freeze');
		await turn(100_000);
		expect([requests.length, streams[0]!.isAborted]).toEqual([1, true]);
		tell('resume');
		await turn();
		expect(requests.map(({ cursor }) => cursor)).toEqual([null, '7-0']);
	});

	test('seed is in time only before the stream has begun', async () => {
		const { sse, streams, requests, told } = start();
		expect(sse.seed('4-0')).toBe(true);
		await turn();
		expect(requests.at(-1)!.cursor).toBe('4-0');
		streams.at(-1)!.write('id: 4-0\n\n');
		await turn();
		expect(told).toEqual([]);
		expect(sse.seed('9-0')).toBe(false);
	});

	test('with headers and without a scope, tabs share nothing', async () => {
		const request = vi.fn(() => new Promise(() => {}));
		const locks = { request } as unknown as LockManager;
		const changes: Partial<Platform> = { navigator: { locks }, BroadcastChannel };
		expect(start({ headers: {} }, changes).sse.role).toBe('alone');
		expect(request).not.toHaveBeenCalled();
		start({ headers: {}, scope: 'ann' }, changes);
		start({}, changes);
		expect((request.mock.calls as unknown[][]).map(([name]) => name)).toEqual([
			'stalecast:3:https://example.test/v1/sse/42:ann',
			'stalecast:3:https://example.test/v1/sse/42:',
		]);
	});
});
