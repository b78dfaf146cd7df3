/**
 * How a follower stands to its leader, and what each word of the leader makes of that. Pure.
 *
 * A leader numbers what it tells in one term (`count`). In step is who has heard all of it: by an answer to its own
 * question, which catches up with the count that the answer carries, and by each piece of news since.
 */

import type { LeaderState, Word } from './channel.js';

/**
 * - `inStep`: it has everything that this leader, in this state, has told;
 * - `streaming`: the leader could not say what is behind the cursor, so it has a stream of its own until one can;
 * - `asking`: neither; it knows of no leader, or has missed something.
 */
export type Standing = { is: 'asking' | 'streaming'; leader?: undefined } | { is: 'inStep'; leader: LeaderState };

export const ASKING: Standing = { is: 'asking' };

/** What is to be done: take the word's blocks, or ask the leader. */
export type Deed = 'take' | 'ask' | undefined;

/** `me`: this tab's name, and where it stands in the stream. */
export function hear(standing: Standing, word: Word, me: { id: number; cursor: string }): [Standing, Deed?] {
	const { to, blocks } = word;
	const inStep: Standing = { is: 'inStep', leader: word };
	// The question may have been another's, or an earlier one: what is behind another cursor says nothing here.
	if (to === me.id && word.cursor === me.cursor) return blocks ? [inStep, 'take'] : [{ is: 'streaming' }];
	const { leader } = standing;
	const missed = leader?.term === word.term && word.count - leader.count;
	if (missed === 0) return [inStep];
	if (missed === 1 && blocks && !to) return [inStep, 'take'];
	// Not at every answer to somebody else: two that have to catch up would ask each other on for ever.
	const asks = word.hasBegun && (leader || !to);
	return [leader ? ASKING : standing, asks ? 'ask' : undefined];
}
