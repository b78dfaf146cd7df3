/** Every word that a follower can hear, however it stands. */

import { describe, expect, test } from 'vitest';
import type { Word } from '../../src/tabs/channel.js';
import { ASKING, type Deed, hear, type Standing } from '../../src/tabs/standing.js';

const ME = { id: 7, cursor: '1-5' };
const STATE = { term: 1, count: 5, now: 0, hasBegun: true, status: 'live', mode: 'auto', isHidden: false } as const;
const BLOCKS = { blocks: [{ id: '1-6', data: 'x' }] };
const MINE = { to: 7, cursor: '1-5' };
const OTHERS = { to: 8, cursor: '1-5' };

const STREAMING: Standing = { is: 'streaming' };
const IN_STEP: Standing = { is: 'inStep', leader: STATE };

type Is = Standing['is'];
type Row = [word: string, more: Partial<Word>, asking: [Is, Deed?], streaming: [Is, Deed?], inStep: [Is, Deed?]];

const rows: Row[] = [
	['its state', {}, ['asking', 'ask'], ['streaming', 'ask'], ['inStep']],
	['its state, something missed', { count: 6 }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['its state, much missed', { count: 9 }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['its state of before', { count: 4 }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['its state in another term', { term: 2 }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['its state before it has begun', { count: 0, hasBegun: false }, ['asking'], ['streaming'], ['asking', undefined]],
	['news', { count: 6, ...BLOCKS }, ['asking', 'ask'], ['streaming', 'ask'], ['inStep', 'take']],
	['news of nothing new', { count: 6, blocks: [] }, ['asking', 'ask'], ['streaming', 'ask'], ['inStep', 'take']],
	['news again', { count: 5, ...BLOCKS }, ['asking', 'ask'], ['streaming', 'ask'], ['inStep']],
	['news, some missed', { count: 7, ...BLOCKS }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['news in another term', { term: 2, count: 6, ...BLOCKS }, ['asking', 'ask'], ['streaming', 'ask'], ['asking', 'ask']],
	['its answer', { ...MINE, ...BLOCKS }, ['inStep', 'take'], ['inStep', 'take'], ['inStep', 'take']],
	['its answer in another term', { ...MINE, ...BLOCKS, term: 2 }, ['inStep', 'take'], ['inStep', 'take'], ['inStep', 'take']],
	['its answer that there is nothing', { ...MINE, blocks: [] }, ['inStep', 'take'], ['inStep', 'take'], ['inStep', 'take']],
	['its answer that it cannot know', { ...MINE }, ['streaming'], ['streaming'], ['streaming']],
	['an answer to before', { ...MINE, cursor: '1-4', ...BLOCKS }, ['asking'], ['streaming'], ['inStep']],
	['an answer to before, more told since', { ...MINE, cursor: '1-4', ...BLOCKS, count: 6 }, ['asking'], ['streaming'], ['asking', 'ask']],
	['an answer to another', { ...OTHERS, ...BLOCKS }, ['asking'], ['streaming'], ['inStep']],
	['an answer to another, more told since', { ...OTHERS, ...BLOCKS, count: 6 }, ['asking'], ['streaming'], ['asking', 'ask']],
	['that it cannot answer another', { ...OTHERS }, ['asking'], ['streaming'], ['inStep']],
];

describe.each(rows)('%s', (_, more, ...expected) => {
	const word: Word = { ...STATE, ...more };
	test.each([ASKING, STREAMING, IN_STEP].map((standing, at) => [standing.is, standing, expected[at]!] as const))('%s', (_, standing, [is, deed]) => {
		const [next, what] = hear(standing, word, ME);
		expect([next.is, what]).toEqual([is, deed]);
		// In step is always with the word that was heard last.
		expect(next.leader).toBe(is === 'inStep' ? word : undefined);
	});
});
