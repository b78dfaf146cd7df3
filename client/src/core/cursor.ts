/**
 * Positions in a stream: everything that orders two ids lives here. Pure.
 *
 * An id is Redis's: milliseconds, then a sequence, each an integer of up to 64 bits.
 */

/** BigInt: a sequence alone may exceed what a double holds. */
function position(id: string): bigint | undefined {
	const [, ms, seq = 0] = /^(\d+)(?:-(\d+))?$/.exec(id) ?? [];
	return ms === undefined ? undefined : (BigInt(ms) << 64n) + BigInt(seq);
}

/**
 * Whether position `a` is certainly not behind `b`. Not so where either is no pair of integers: nothing can be
 * said of their order then, and a caller must take what it has not certainly seen as new.
 */
export const isUpTo = (a: string, b: string): boolean => a === b || position(a)! <= position(b)!;

/** Whether a header can carry it: there is one, without a line feed, within Latin-1, no longer than servers take. */
export const isCarried = (id: string): boolean => /^[ -~\x80-\xff]{1,1000}$/.test(id);
