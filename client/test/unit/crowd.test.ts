import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { SSEClient } from '../../src/core/client.js';
import { testPlatform } from './support.js';

let say: ReturnType<typeof vi.spyOn>;
beforeEach(() => {
	vi.useFakeTimers();
	say = vi.spyOn(console, 'warn').mockImplementation(() => {});
});
afterEach(() => {
	say.mockRestore();
	vi.useRealTimers();
	vi.unstubAllEnvs();
	vi.unstubAllGlobals();
});

const entry = (nextHopProtocol: string) => [{ name: 'https://many.test/app.js', nextHopProtocol }];

function open(count: number, protocol?: string, host = 'https://many.test') {
	const platform = testPlatform(() => new Promise(() => {}));
	vi.stubGlobal('performance', { getEntriesByType: protocol === undefined ? undefined : () => entry(protocol), now: () => 0 });
	const clients = Array.from({ length: count }, (_, topic) => new SSEClient(`${host}/${topic}`, {}, platform));
	for (const sse of clients) sse.connect();
	return () => clients.forEach((sse) => sse.close());
}

test.each([undefined, '', 'http/1.1'])('the fourth stream of a host is said, once, over %s', (protocol) => {
	const close = open(3, protocol);
	expect(say).not.toHaveBeenCalled();
	const closeMore = open(2, protocol);
	expect(say.mock.calls).toEqual([[expect.stringContaining('4 streams from https://many.test'), '']]);
	close();
	closeMore();
});

test.each(['h2', 'h3'])('%s carries many', (protocol) => {
	open(6, protocol)();
	expect(say).not.toHaveBeenCalled();
});

test('each host has its own, and what was closed does not count', () => {
	const close = open(3);
	const closeOther = open(3, undefined, 'https://other.test');
	close();
	open(3)();
	closeOther();
	expect(say).not.toHaveBeenCalled();
});

test('nothing is said in production', () => {
	vi.stubEnv('NODE_ENV', 'production');
	open(4)();
	expect(say).not.toHaveBeenCalled();
});

test('where there is no `process`, it is said', () => {
	vi.stubGlobal('process', undefined);
	const close = open(4);
	vi.unstubAllGlobals();
	close();
	expect(say).toHaveBeenCalledTimes(1);
});
