import { QueryClient } from '@tanstack/react-query';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { checkKeys } from '../../src/query/mismatch.js';

let say: ReturnType<typeof vi.spyOn>;
beforeEach(() => {
	say = vi.spyOn(console, 'warn').mockImplementation(() => {});
});
afterEach(() => {
	vi.restoreAllMocks();
	vi.unstubAllEnvs();
});

const queryClient = new QueryClient();
queryClient.setQueryData(['item', '8', { page: 1 }], 1);
const said = () => say.mock.calls.map((call: unknown[]) => String(call[0]));

test('a key that would match were it a string is said, once for each event', () => {
	checkKeys('swapped', [['item', 9]], queryClient);
	for (let count = 0; count < 3; count++) checkKeys('swapped', [['item', 8]], queryClient);
	expect(said()).toHaveLength(2);
	expect(said()[1]).toMatch(/swapped: the key \["item",8\] matches no query, but there is \["item","8",\{"page":1\}\]/);
});

test('keys that match nothing are said once, and nothing where one matches', () => {
	for (let count = 0; count < 3; count++) checkKeys('strange', [['thing', 8]], queryClient);
	expect(said()).toEqual([expect.stringMatching(/strange: no query begins with \["thing",8\]/)]);
	checkKeys('right', [['thing'], ['item', '8']], queryClient);
	checkKeys('nothing', [], queryClient);
	checkKeys('early', [['item']], new QueryClient());
	expect(said()).toHaveLength(1);
});

test('keys that JSON has no word for are said as well, and do no harm', () => {
	const cache = { getAll: () => [{ queryKey: undefined }, { queryKey: ['row', '7'] }] };
	const odd = { getQueryCache: () => cache } as unknown as QueryClient;
	checkKeys('big', [['row', 8n]], odd);
	checkKeys('big', [['row', 7n]], odd);
	checkKeys('absent', [['row', undefined]], odd);
	expect(said()).toEqual([
		expect.stringMatching(/big: no query begins with \["row","8n"\]/),
		expect.stringMatching(/big: the key \["row","7n"\] matches no query, but there is \["row","7"\]/),
		expect.stringMatching(/absent: no query/),
	]);
});

test('in production the cache is not looked at', () => {
	vi.stubEnv('NODE_ENV', 'production');
	const look = vi.spyOn(queryClient, 'getQueryCache');
	checkKeys('production', [['thing']], queryClient);
	expect([look.mock.calls.length, said()]).toEqual([0, []]);
});
