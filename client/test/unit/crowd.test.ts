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

const others = [['https://other.test/a.js', 'h2'], ['https://many.test.other.test/', 'h3'], ['https://many.test/old.js', undefined]];

/** `kind`: of what the browser has loaded from this host. */
function open(count: number, protocol?: string, host = 'https://many.test', kind = 'resource') {
	const platform = testPlatform(() => new Promise(() => {}));
	const loaded = [...others, ['https://many.test/app.js', protocol]].map(([name, nextHopProtocol]) => ({ name, nextHopProtocol }));
	const getEntriesByType = protocol === undefined ? undefined : (type: string) => (type === kind ? loaded : []);
	vi.stubGlobal('performance', { getEntriesByType, now: () => 0 });
	const clients = Array.from({ length: count }, (_, topic) => new SSEClient(`${host}/${topic}`, {}, platform));
	for (const sse of clients) sse.connect();
	return () => clients.forEach((sse) => sse.close());
}

test.each([undefined, '', 'http/1.1'])('the fourth stream of a host is said, once, over %s', (protocol) => {
	const close = open(3, protocol);
	expect(say).not.toHaveBeenCalled();
	const closeMore = open(2, protocol);
	expect(say.mock.calls).toEqual([[expect.stringContaining('4 streams from https://many.test'), '']]);
	closeMore();
	close();
	expect(say).toHaveBeenCalledTimes(1);
});

test.each(['h2', 'h3'])('%s carries many', (protocol) => {
	for (const kind of ['navigation', 'resource']) open(6, protocol, undefined, kind)();
	expect(say).not.toHaveBeenCalled();
});

test('a client counts once, however many ask it for its stream', () => {
	const close = open(3);
	const sse = new SSEClient('https://many.test/again', {}, testPlatform(() => new Promise(() => {})));
	for (let asks = 0; asks < 3; asks++) sse.connect();
	expect(say).toHaveBeenCalledTimes(1);
	close();
	sse.close();
});

test('where the host is unknown, it is one', () => {
	open(4, undefined, '/of?https://x.test')();
	expect(say.mock.calls).toEqual([[expect.stringContaining('4 streams from one host. Over HTTP/1.1'), '']]);
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
