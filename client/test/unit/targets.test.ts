import { matchQuery, QueryClient } from '@tanstack/react-query';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { indexTargets, nameOf } from '../../src/query/targets.js';

const someFunction = () => {};
const part = fc.oneof(
	{ weight: 4, arbitrary: fc.constantFrom('a', 'b', '8', '', '0') },
	fc.constantFrom(8, 0, -0, Number.NaN, 1n, true, false, null, undefined, someFunction),
	fc.constantFrom<unknown>({}, { a: 1 }, { a: 1, b: 2 }, { a: { b: 1 } }, { a: { b: 1, c: 2 } }, { a: undefined }, { 0: 'a' }),
	fc.constantFrom<unknown>([], ['a'], ['a', 'b'], [{ a: 1 }], [undefined]),
);
const key = fc.array(part, { maxLength: 4 });

test('targets mean the queries that TanStack Query means by them', () => {
	const queryClient = new QueryClient({ defaultOptions: { queries: { queryKeyHashFn: nameOfKey } } });
	fc.assert(
		fc.property(fc.array(key, { maxLength: 5 }), fc.array(key, { minLength: 1, maxLength: 10 }), (targets, keys) => {
			queryClient.clear();
			for (const queryKey of keys) queryClient.setQueryData(queryKey, 1);
			const isMeant = indexTargets(targets.map((queryKey) => ({ queryKey })));
			for (const query of queryClient.getQueryCache().getAll()) {
				expect(isMeant(query)).toBe(targets.some((queryKey) => matchQuery({ queryKey }, query)));
			}
		}),
		{ numRuns: 500 },
	);
});

function nameOfKey(queryKey: readonly unknown[]): string {
	return nameOf({ queryKey });
}

test('an empty key means every query, and none means none', () => {
	const queryClient = new QueryClient();
	for (const queryKey of [['a'], ['a', 1]]) queryClient.setQueryData(queryKey, 1);
	const meant = (...targets: { queryKey: string[] }[]) =>
		queryClient.getQueryCache().getAll().filter(indexTargets(targets)).map(({ queryHash }) => queryHash);
	expect(meant({ queryKey: [] })).toEqual(['["a"]', '["a",1]']);
	expect(meant()).toEqual([]);
});

test('a query whose key is none does no harm', () => {
	const query = { queryHash: 'x', queryKey: undefined } as never;
	expect([indexTargets([{ queryKey: ['a'] }])(query), indexTargets([{ queryKey: [] }])(query)]).toEqual([false, true]);
});

test('targets that mean different queries have different names', () => {
	const keys = [[8], ['8'], [null], [undefined], ['undefined'], ['undefined undefined'], [1n], [1], [Number.NaN], [[8]], [{ a: 8 }], [{ a: '8' }]];
	expect(new Set(keys.map((queryKey) => nameOf({ queryKey }))).size).toBe(keys.length);
});
