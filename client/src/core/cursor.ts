/**
 * Positions in a stream: everything that orders two ids lives here. Pure.
 *
 * An id is Redis's: milliseconds, then a sequence, each an integer of up to 64 bits.
 */

const ID = /^(\d+)(?:-(\d+))?$/;

/**
 * Which of two ids comes first: below 0, 0 or above 0, as for `Array.sort`.
 *
 * `undefined` where either is no pair of integers: nothing can be said of their order then, and a caller must
 * take what it has not certainly seen as new.
 */
export function compareIds(a: string, b: string): number | undefined {
	if (a === b) return 0;
	const left = ID.exec(a);
	const right = ID.exec(b);
	if (!left || !right) return undefined;
	// BigInt: a sequence may exceed what a double holds.
	for (const part of [1, 2]) {
		const difference = BigInt(left[part] ?? 0) - BigInt(right[part] ?? 0);
		if (difference) return difference < 0n ? -1 : 1;
	}
	return 0;
}
