import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compareIds } from '../../src/core/cursor.js';
import { Ring } from '../../src/tabs/ring.js';

describe('ids', () => {
	test.each([
		['1-0', '1-0', 0],
		['1', '1-0', 0],
		['9-0', '10-0', -1],
		['1-9', '1-10', -1],
		['2-0', '1-99', 1],
		['1-18446744073709551615', '1-18446744073709551614', 1],
		['1-0', '', undefined],
		['1-0', 'a:1-0,b:2-0', undefined],
		['-1', '1', undefined],
	])('%s and %s', (a, b, expected) => {
		expect(compareIds(a, b)).toBe(expected);
		if (expected !== undefined) expect(compareIds(b, a)).toBe(expected === 0 ? 0 : -expected);
	});

	test('order as pairs of integers', () => {
		const part = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
		fc.assert(
			fc.property(part, part, part, part, (ms, seq, otherMs, otherSeq) => {
				const expected = ms === otherMs ? seq - otherSeq : ms - otherMs;
				expect(compareIds(`${ms}-${seq}`, `${otherMs}-${otherSeq}`)).toBe(expected === 0n ? 0 : expected < 0n ? -1 : 1);
			}),
		);
	});
});

describe('the ring', () => {
	function filled(count: number): Ring {
		const ring = new Ring();
		ring.reset('1-0', 100);
		for (let seq = 1; seq <= count; seq++) ring.push({ id: `1-${seq}`, data: `${seq}`, at: 100 + seq });
		return ring;
	}
	const ids = (entries: { id: string }[] | undefined) => entries?.map(({ id }) => id);

	test('gives what is behind a cursor that it knows', () => {
		const ring = filled(3);
		expect(ids(ring.after('1-0', false))).toEqual(['1-1', '1-2', '1-3']);
		expect(ids(ring.after('1-2', false))).toEqual(['1-3']);
		expect(ids(ring.after('1-3', false))).toEqual([]);
	});

	test('tells a place by order only in the lineage', () => {
		const ring = filled(3);
		expect(ring.after('7-0', false)).toBeUndefined();
		expect(ids(ring.after('7-0', true))).toEqual([]); // ahead of the leader
		expect(ring.after('0-9', true)).toBeUndefined();
		expect(ring.after('odd', true)).toBeUndefined();
	});

	test('forgets the oldest, and knows that it did', () => {
		const ring = filled(600);
		expect(ring.after('1-10', true)).toBeUndefined();
		expect(ids(ring.after(ring.base, false))).toHaveLength(512);
		expect(ring.since(150)).toBeUndefined();
		expect(ring.since(ring.baseAt + 1)).toMatchObject({ base: ring.base });
	});

	test('gives what came since a moment, if nothing before it is missing', () => {
		const ring = filled(3);
		expect(ring.since(100)).toBeUndefined(); // in the same millisecond
		expect(ring.since(101)).toMatchObject({ base: '1-0', entries: [{ id: '1-1' }, { id: '1-2' }, { id: '1-3' }] });
		expect(ring.since(103)).toMatchObject({ base: '1-2', entries: [{ id: '1-3' }] });
		expect(ring.since(200)).toEqual({ base: '1-3', entries: [] });
	});
});
