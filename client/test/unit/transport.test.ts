import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Block } from '../../src/core/parser.js';
import { attempt, type Outcome, retryAfterMs, type TransportOptions } from '../../src/core/transport.js';
import { type Answer, Stream, testPlatform, updated } from './support.js';

const OPTIONS: TransportOptions = { muteAfterMs: 8000, silenceMs: 45_000 };

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

function run(answer: Answer, options: Partial<TransportOptions> = {}, lastEventId = '') {
	const blocks: Block[] = [];
	const retries: number[] = [];
	let pieces = 0;
	const stop = new AbortController();
	const piece = (completed: Block[]) => {
		pieces++;
		blocks.push(...completed);
	};
	const retry = (ms: number) => retries.push(ms);
	const settings = { ...OPTIONS, ...options };
	const outcome = attempt({ platform: testPlatform(answer), url: '/s', lastEventId, options: settings, controller: stop, piece, retry });
	return { blocks, retries, outcome, stop, pieces: () => pieces };
}

const SOURCE =
	'\uFEFFretry: 1500\n\nid: 5-1\n\n:\n\nid: 5-2\r\ndata: {"a":"é€😀"}\r\n\r\nid: 5-3\rdata: one\rdata: two\r\runknown: x\ndata: last\n\n';
const EXPECTED: Block[] = [
	{ id: '5-1' },
	{ id: '5-2', data: '{"a":"é€😀"}' },
	{ id: '5-3', data: 'one\ntwo' },
	{ data: 'last' },
];

describe('parsing', () => {
	const bytes = new TextEncoder().encode(SOURCE);

	async function read(pieces: Uint8Array[]) {
		const stream = new Stream();
		const { blocks, retries, outcome } = run(() => stream.response);
		for (const piece of pieces) stream.write(piece);
		stream.end();
		expect((await outcome).kind).toBe('ended');
		return { blocks, retries };
	}

	test('every split into two pieces gives the same blocks', async () => {
		for (let at = 0; at <= bytes.length; at++) {
			const pieces = [bytes.slice(0, at), bytes.slice(at)].filter((piece) => piece.length);
			expect(await read(pieces)).toEqual({ blocks: EXPECTED, retries: [1500] });
		}
	});

	test('byte by byte', async () => {
		expect(await read([...bytes].map((byte) => Uint8Array.of(byte)))).toEqual({ blocks: EXPECTED, retries: [1500] });
	});

	test('a block that was cut is not dispatched', async () => {
		const { blocks } = await read([new TextEncoder().encode('id: 1-1\n\nid: 1-2\ndata: x\n')]);
		expect(blocks).toEqual([{ id: '1-1' }]);
	});

	test('a line without end is no event stream', async () => {
		const stream = new Stream();
		const { outcome } = run(() => stream.response);
		stream.write('data: ' + 'x'.repeat(1 << 20));
		expect(await outcome).toMatchObject({ kind: 'ended', message: expect.stringContaining('without end') });
	});
});

describe('what is not a stream', () => {
	const cases: [string, () => Response, Partial<Outcome>][] = [
		['204', () => new Response(null, { status: 204 }), { kind: 'refused', status: 204 }],
		['403', () => new Response('', { status: 403 }), { kind: 'refused', status: 403 }],
		['404', () => new Response('', { status: 404 }), { kind: 'refused', status: 404 }],
		['408', () => new Response('', { status: 408 }), { kind: 'failed', status: 408 }],
		['425', () => new Response('', { status: 425 }), { kind: 'failed', status: 425 }],
		['422', () => new Response('', { status: 422 }), { kind: 'refused', status: 422 }],
		['429', () => new Response('', { status: 429, headers: { 'Retry-After': '7' } }), { kind: 'failed', floorMs: 7000 }],
		['500', () => new Response('', { status: 500 }), { kind: 'failed', status: 500 }],
		['502', () => new Response('<html>', { status: 502 }), { kind: 'failed', status: 502, floorMs: 0 }],
		['504', () => new Response('', { status: 504 }), { kind: 'failed', status: 504 }],
		['HTML with 200', () => new Response('<html>', { headers: { 'Content-Type': 'text/html' } }), { kind: 'failed', status: 200, message: 'no event stream: 200 text/html' }],
		...['text/event-streams', 'text/event-stream+x; a', 'x-text/event-stream'].map((type): (typeof cases)[number] => [
			`${type} with 200`,
			() => new Response('id: 1-1\n\n', { headers: { 'Content-Type': type } }),
			{ kind: 'failed', status: 200 },
		]),
		['an event stream with 503', () => new Response('id: 1-1\n\n', { status: 503, headers: { 'Content-Type': 'text/event-stream' } }), { kind: 'failed', status: 503 }],
	];
	test.each(cases)('%s', async (_, answer, expected) => {
		expect(await run(answer).outcome).toMatchObject(expected);
	});

	test.each(['text/event-stream', 'text/event-stream;charset=utf-8', 'Text/Event-Stream ; charset=utf-8'])('%s is one', async (type) => {
		const { outcome, blocks } = run(() => new Response('id: 1-1\n\n', { headers: { 'Content-Type': type } }));
		expect(await outcome).toMatchObject({ kind: 'ended', message: 'Error: the stream ended' });
		expect(blocks).toEqual([{ id: '1-1' }]);
	});

	test('no network', async () => {
		const { outcome } = run(() => Promise.reject(new TypeError('Failed to fetch')));
		expect(await outcome).toMatchObject({ kind: 'failed', message: 'TypeError: Failed to fetch' });
	});

	test('an answer that ends before anything came', async () => {
		const stream = new Stream();
		stream.end();
		expect(await run(() => stream.response).outcome).toMatchObject({ kind: 'failed' });
	});

	test.each([200, 404, 500])('the line of an answer that nobody reads is let go: %i', async (status) => {
		let stream!: Stream;
		const { outcome } = run((_, { signal }) => {
			stream = new Stream(signal);
			return new Response(stream.response.body, { status, headers: { 'Content-Type': 'text/html' } });
		});
		await outcome;
		expect(stream.isAborted).toBe(true);
		expect(vi.getTimerCount()).toBe(0);
	});

	test('Retry-After is seconds or a date', () => {
		const now = Date.parse('2026-01-01T00:00:00Z');
		expect(retryAfterMs('3', now)).toBe(3000);
		expect(retryAfterMs('Thu, 01 Jan 2026 00:00:09 GMT', now)).toBe(9000);
		for (const odd of [null, '', 'soon', '-1', 'Thu, 01 Jan 2025 00:00:00 GMT']) expect(retryAfterMs(odd, now)).toBe(0);
	});
});

test('a date in Retry-After is compared with the date of the answer, not with this clock', async () => {
	for (const hours of [-2, 0, 2]) {
		vi.setSystemTime(Date.parse('2026-01-01T00:00:00Z') + hours * 3_600_000);
		const headers = { 'Retry-After': 'Thu, 01 Jan 2026 00:00:09 GMT', Date: 'Thu, 01 Jan 2026 00:00:02 GMT' };
		expect(await run(() => new Response('', { status: 503, headers })).outcome).toMatchObject({ floorMs: 7000 });
	}
	vi.setSystemTime(Date.parse('2026-01-01T00:00:00Z'));
	for (const Date of [undefined, 'soon']) {
		const headers = { 'Retry-After': 'Thu, 01 Jan 2026 00:00:09 GMT', ...(Date && { Date }) };
		expect(await run(() => new Response('', { status: 503, headers })).outcome).toMatchObject({ floorMs: 9000 });
	}
});

describe('a cursor', () => {
	const sent = async (cursor: string) => {
		let header: string | null | undefined;
		const stream = new Stream();
		const { outcome, blocks } = run(
			(_, init) => {
				header = new Headers(init.headers).get('Last-Event-ID');
				return stream.response;
			},
			{},
			cursor,
		);
		for (const piece of ['retry: 5\n\n', ': beat\n\n', 'data: w\n\nid: 7-0\ndata: x\n\n', 'id: 8-0\ndata: y\n\n']) stream.write(piece);
		stream.end();
		await outcome;
		// What has no position says none.
		expect(blocks.shift()).toEqual({ data: 'w' });
		return { header, blocks };
	};

	test.each(['5-1', 'a b', 'é', '~'.repeat(1000)])('that a header can carry is sent: %s', async (cursor) => {
		expect(await sent(cursor)).toEqual({ header: cursor, blocks: [{ id: '7-0', data: 'x' }, { id: '8-0', data: 'y' }] });
	});

	test.each(['日本', '😀', 'a\nb', 'a\rb', 'a\0b', '\u007f', '\ud800', 'x'.repeat(1001)])(
		'that no header can carry is not: %j',
		async (cursor) => {
			expect(await sent(cursor)).toEqual({ header: null, blocks: [{ id: '7-0', data: 'x' }, { id: '8-0', data: 'y' }] });
		},
	);
});

test('an answer whose body cannot be read as it comes is read whole', async () => {
	const text = updated('2-0', 'a');
	const answer = () => ({ status: 200, headers: new Headers({ 'Content-Type': 'text/event-stream' }), text: async () => text });
	let count = 0;
	const refusedAtFirst = () => (count++ ? answer() : { status: 401, headers: new Headers() });
	for (const from of [answer, refusedAtFirst]) {
		const { outcome, blocks } = run(from as unknown as Answer);
		expect(await outcome).toEqual({ kind: 'ended', message: 'Error: the stream ended' });
		expect(blocks).toMatchObject([{ id: '2-0' }]);
	}
});

test('the request is for an event stream, and for one that no cache has', async () => {
	let sent!: RequestInit;
	await run((_, init) => ((sent = init), new Response('', { status: 500 })), { headers: { Accept: 'text/html', X: 'y' } }).outcome;
	const headers = new Headers(sent.headers);
	expect([headers.get('Accept'), headers.get('X'), sent.cache]).toEqual(['text/event-stream', 'y', 'no-store']);
});

test('a signal without reasons, as React Native has it, says all the same why an attempt ended', async () => {
	const reason = vi.spyOn(AbortSignal.prototype, 'reason', 'get').mockReturnValue(undefined);
	const { outcome } = run(() => new Promise(() => {}));
	await vi.advanceTimersByTimeAsync(8000);
	expect((await outcome).kind).toBe('mute');
	reason.mockRestore();
});

describe('headers', () => {
	test.each(['text/html', 'application/xhtml+xml; charset=utf-8'])('are asked for anew, once, after a login page: %s', async (type) => {
		const asked: boolean[] = [];
		const stream = new Stream();
		const page = () => new Response('<form>', { headers: { 'Content-Type': type } });
		const headers = ({ refresh }: { refresh: boolean }) => {
			asked.push(refresh);
			return {};
		};
		expect(await run(page, { headers }).outcome).toMatchObject({ kind: 'failed', status: 200 });
		expect(asked).toEqual([false, true]);
		let count = 0;
		const { outcome, blocks } = run(() => (count++ ? stream.response : page()), { headers });
		stream.write('id: 1-1\n\n');
		stream.end();
		expect((await outcome).kind).toBe('ended');
		expect(blocks).toEqual([{ id: '1-1' }]);
	});

	test('are not asked for anew where they are not to blame', async () => {
		const answers: [number, string][] = [[200, 'text/event-stream'], [404, 'text/html'], [503, 'text/html']];
		for (const [status, type] of answers) {
			const headers = vi.fn(() => ({}));
			const answer = vi.fn(() => new Response('id: 1-1\n\n', { status, headers: { 'Content-Type': type } }));
			await run(answer, { headers }).outcome;
			expect([headers.mock.calls.length, answer.mock.calls.length]).toEqual([1, 1]);
		}
		const page = vi.fn(() => new Response('<form>', { headers: { 'Content-Type': 'text/html' } }));
		await run(page, { headers: { X: 'y' } }).outcome;
		expect(page).toHaveBeenCalledTimes(1);
	});

	test('are asked for anew, once more after a 401, and the second 401 is final', async () => {
		const asked: boolean[] = [];
		const sent: (string | null)[] = [];
		const answer: Answer = (_, init) => {
			sent.push(new Headers(init.headers).get('Authorization'));
			return new Response('', { status: 401 });
		};
		const headers = ({ refresh }: { refresh: boolean }) => {
			asked.push(refresh);
			return { Authorization: refresh ? 'new' : 'old' };
		};
		expect(await run(answer, { headers }).outcome).toMatchObject({ kind: 'refused', status: 401 });
		expect(asked).toEqual([false, true]);
		expect(sent).toEqual(['old', 'new']);
	});

	test('a refresh that helps', async () => {
		const stream = new Stream();
		const cancel = vi.fn();
		let count = 0;
		const refused = () => new Response(new ReadableStream({ cancel }), { status: 401 });
		const { blocks, outcome } = run(() => (count++ ? stream.response : refused()));
		stream.write('id: 1-1\n\n');
		stream.end();
		expect((await outcome).kind).toBe('ended');
		expect(blocks).toEqual([{ id: '1-1' }]);
		expect(cancel).toHaveBeenCalledTimes(1);
	});

	test('Last-Event-ID is sent where there is one', async () => {
		const sent: (string | null)[] = [];
		const answer: Answer = (_, init) => {
			sent.push(new Headers(init.headers).get('Last-Event-ID'));
			return new Response('', { status: 500 });
		};
		await run(answer).outcome;
		await run(answer, {}, '4-2').outcome;
		expect(sent).toEqual([null, '4-2']);
	});

	test('that throw, or never come', async () => {
		const never = run(() => new Response(), { headers: () => new Promise(() => {}) });
		const throws = run(() => new Response(), { headers: () => Promise.reject(new Error('no session')) });
		await vi.advanceTimersByTimeAsync(45_000);
		expect(await never.outcome).toMatchObject({ kind: 'failed', message: 'headers() took too long' });
		expect(await throws.outcome).toMatchObject({ kind: 'failed', message: 'Error: no session' });
	});
});

describe('silence', () => {
	test('no answer at all is mute', async () => {
		const { outcome } = run(() => new Promise(() => {}));
		await vi.advanceTimersByTimeAsync(8000);
		expect(await outcome).toEqual({ kind: 'mute', message: 'nothing came' });
	});

	test('headers alone are mute', async () => {
		const { outcome } = run((_, { signal }) => new Stream(signal).response);
		await vi.advanceTimersByTimeAsync(8000);
		expect((await outcome).kind).toBe('mute');
	});

	test('a line that falls silent is cut; heartbeats keep it', async () => {
		let stream!: Stream;
		const { outcome, pieces } = run((_, { signal }) => (stream = new Stream(signal)).response);
		await vi.advanceTimersByTimeAsync(0);
		for (let beat = 0; beat < 5; beat++) {
			stream.write(':\n\n');
			await vi.advanceTimersByTimeAsync(40_000);
		}
		expect(pieces()).toBe(5);
		await vi.advanceTimersByTimeAsync(5000);
		expect(await outcome).toEqual({ kind: 'silent', message: 'silence' });
		expect(stream.isAborted).toBe(true);
	});

	test('cut while it waits for headers, it asks for nothing any more', async () => {
		let give!: (headers: HeadersInit) => void;
		const answer = vi.fn(() => new Response());
		const { outcome, stop } = run(answer, { headers: () => new Promise((resolve) => (give = resolve)) });
		await vi.advanceTimersByTimeAsync(0);
		stop.abort({ kind: 'cut' });
		expect((await outcome).kind).toBe('cut');
		give({});
		await vi.advanceTimersByTimeAsync(0);
		expect(answer).not.toHaveBeenCalled();
		expect(vi.getTimerCount()).toBe(0);
	});

	test('cut, it tells of nothing any more, even where the line is not', async () => {
		const stream = new Stream(); // of a fetch that ignores its signal
		const { outcome, stop, blocks } = run(() => stream.response);
		await vi.advanceTimersByTimeAsync(0);
		stop.abort({ kind: 'cut' });
		expect((await outcome).kind).toBe('cut');
		stream.write('id: 1-1\n\n');
		await vi.advanceTimersByTimeAsync(0);
		expect(blocks).toEqual([]);
		expect(vi.getTimerCount()).toBe(0);
	});

	test('stopped from outside, it ends and lets the line go', async () => {
		let stream!: Stream;
		const { outcome, stop } = run((_, { signal }) => (stream = new Stream(signal)).response);
		await vi.advanceTimersByTimeAsync(0);
		stream.write(':\n\n');
		await vi.advanceTimersByTimeAsync(0);
		stop.abort({ kind: 'cut' });
		expect((await outcome).kind).toBe('cut');
		expect(stream.isAborted).toBe(true);
		expect(vi.getTimerCount()).toBe(0);
	});
});
