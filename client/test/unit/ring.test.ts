import { describe, expect, test } from 'vitest';
import { entriesAfter, entriesSince, pushBounded, type Ring } from '../../src/tabs/ring.js';

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
