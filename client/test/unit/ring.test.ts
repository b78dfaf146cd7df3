import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isUpTo } from '../../src/core/cursor.js';
import { entriesAfter, entriesSince, pushBounded, type Ring } from '../../src/tabs/ring.js';

describe('ids', () => {
	test.each([
		['1-0', '1-0', true, true],
		['1', '1-0', true, true],
		['9-0', '10-0', true, false],
		['1-9', '1-10', true, false],
		['1-99', '2-0', true, false],
		['1-18446744073709551614', '1-18446744073709551615', true, false],
		['18446744073709551614-18446744073709551615', '18446744073709551615-0', true, false],
		// Nothing can be said of their order, except of an id and itself.
		['1-0', '', false, false],
		['1-0', 'a:1-0,b:2-0', false, false],
		['a:1-0,b:2-0', 'a:1-0,b:2-0', true, true],
		['-1', '1', false, false],
	])('%s and %s', (a, b, forward, back) => {
		expect([isUpTo(a, b), isUpTo(b, a)]).toEqual([forward, back]);
	});

	test('order as pairs of integers', () => {
		const part = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
		fc.assert(
			fc.property(part, part, part, part, (ms, seq, otherMs, otherSeq) => {
				const expected = ms === otherMs ? seq <= otherSeq : ms < otherMs;
				expect(isUpTo(`${ms}-${seq}`, `${otherMs}-${otherSeq}`)).toBe(expected);
				expect(isUpTo(`${ms}-${seq}`, `${ms}-${otherSeq}`)).toBe(seq <= otherSeq);
			}),
		);
	});
});

describe('the ring', () => {
	function filled(count: number): Ring {
		const ring: Ring = [{ id: '1-0', at: 100 }];
		for (let seq = 1; seq <= count; seq++) pushBounded(ring, { id: `1-${seq}`, data: `${seq}`, at: 100 + seq });
		return ring;
	}
	const ids = (entries: { id: string }[] | undefined) => entries?.map(({ id }) => id);

	test('gives what is behind a cursor that it knows', () => {
		const ring = filled(3);
		expect(ids(entriesAfter(ring, '1-0'))).toEqual(['1-1', '1-2', '1-3']);
		expect(ids(entriesAfter(ring, '1-2'))).toEqual(['1-3']);
		expect(ids(entriesAfter(ring, '1-3'))).toEqual([]);
	});

	test('does not tell a place by order', () => {
		const ring = filled(3);
		for (const cursor of ['7-0', '0-9', '', 'odd']) expect(entriesAfter(ring, cursor)).toBeUndefined();
		expect(entriesAfter(ring.toSpliced(2, 1), '1-2')).toBeUndefined();
		expect(entriesAfter([], '1-0')).toBeUndefined();
	});

	test('forgets the oldest, and knows that it did', () => {
		const ring = filled(600);
		expect(entriesAfter(ring, '1-10')).toBeUndefined();
		expect(ids(entriesAfter(ring, ring[0]!.id))).toHaveLength(511);
		expect(entriesSince(ring, 150)).toBeUndefined();
		expect(ids(entriesSince(ring, ring[0]!.at + 1))).toEqual(ids(ring));
	});

	test('gives what came since a moment, if nothing before it is missing', () => {
		const ring = filled(3);
		expect(entriesSince(ring, 100)).toBeUndefined(); // in the same millisecond
		expect(ids(entriesSince(ring, 101))).toEqual(['1-0', '1-1', '1-2', '1-3']);
		expect(ids(entriesSince(ring, 103))).toEqual(['1-2', '1-3']);
		expect(ids(entriesSince(ring, 200))).toEqual(['1-3']);
		expect(entriesSince([], 200)).toBeUndefined();
	});
});
