/** React Native: an EventTarget by a polyfill, and no body that can be read as it comes. */

import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { event, testPlatform, updated } from './support.js';

beforeEach(() => vi.useFakeTimers());
afterEach(() => {
	vi.unstubAllGlobals();
	vi.resetModules();
	vi.useRealTimers();
});

test('a client with nothing but the polyfill, without MessageEvent, TextDecoder or a body that can be read as it comes: it polls', async () => {
	for (const name of ['EventTarget', 'Event', 'MessageEvent', 'TextDecoder']) vi.stubGlobal(name, undefined);
	vi.resetModules();
	// @ts-expect-error -- it has no types
	await import('event-target-polyfill');
	expect(EventTarget.toString()).not.toContain('[native code]');
	const { SSEClient } = await import('../../src/core/client.js');
	let last = event('1-0', { event: 'position', data: {} }).replace('id:', 'event: position\nid:');
	const sse = new SSEClient(
		'https://example.test/s',
		{},
		testPlatform((url) => {
			const text = async () => last;
			// Of a stream nothing is heard before it has ended.
			if (!url.includes('live=false')) return new Promise(() => {});
			return { status: 200, headers: new Headers({ 'Content-Type': 'text/event-stream' }), text } as unknown as Response;
		}),
	);
	const told: unknown[] = [];
	sse.on('argument_updated', ({ id }, lastEventId) => told.push([id, lastEventId]));
	sse.addEventListener('began', () => told.push('began'));
	sse.addEventListener('message', ({ data, lastEventId }) => told.push([data.event, lastEventId]));
	const statuses: string[] = [];
	const unsubscribe = sse.subscribe(() => statuses.push(sse.status));
	sse.connect();
	await vi.advanceTimersByTimeAsync(8000);
	last = updated('2-0', 'a');
	await vi.advanceTimersByTimeAsync(9000);
	expect(told).toEqual(['began', ['argument_updated', '2-0'], ['a', '2-0']]);
	unsubscribe();
	sse.close();
	expect([statuses, sse.status]).toEqual([['polling'], 'closed']);
});

test('without the polyfill it says what is missing', async () => {
	vi.stubGlobal('EventTarget', undefined);
	vi.resetModules();
	const say = vi.spyOn(console, 'warn').mockImplementation(() => {});
	await expect(import('../../src/core/client.js')).rejects.toThrow();
	expect(say.mock.calls.flat().join(' ')).toContain("import 'event-target-polyfill' first");
});
