import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isCarried, isUpTo } from '../../src/core/cursor.js';

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
		['1x', '1-0', false, false],
		['1-0x', '1-1', false, false],
		['1-', '1-1', false, false],
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

test.each<[string, boolean]>([
	['', false],
	['1-0', true],
	[' ~', true],
	['a:1-0,b:2-0', true],
	['\x7f', false],
	['\x80\xff', true],
	['\u0100', false],
	['a\nb', false],
	['a\n', false],
	['日', false],
	['日1', false],
	['1日', false],
	['x'.repeat(1000), true],
	['x'.repeat(1001), false],
])('a header carries %j: %s', (id, expected) => expect(isCarried(id)).toBe(expected));
