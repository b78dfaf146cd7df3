/** What the tabs of one browser say to each other: one leader, any number of followers. */

import type { Block } from '../core/parser.js';
import type { Mode, SourceStatus } from '../polling.js';

/** What a leader is doing, in each of its messages: whoever hears any of them knows it alive. */
export interface LeaderState {
	/** Names one tab's turn as leader; `count` numbers what it told during it. */
	term: number;
	count: number;
	/** By its `performance.now()`. */
	now: number;
	/** It knows where it stands; before, there is nothing to ask. */
	hasBegun: boolean;
	status: SourceStatus;
	mode: Mode;
	isHidden: boolean;
}

/** A follower's question: what is there behind my cursor? */
export interface Question {
	from: number;
	cursor: string;
	/**
	 * Without a cursor: nothing was fetched before this, by the clock of the leader whose term it is, in milliseconds. What
	 * tabs share is how fast their clocks go: the time of the day may be set between two looks at it. Absent where no
	 * word of the leader was just heard: its answer is one.
	 */
	term?: number | undefined;
	since?: number | undefined;
}

/** A leader's word: its state alone, news to all, or the answer to a question. */
export interface Word extends LeaderState {
	/** Of an answer: to whom, and to the question with this cursor, to no later one. */
	to?: number;
	cursor?: string;
	/**
	 * News: the `count`th of this term. In an answer: with them the follower has caught up with `count`; without,
	 * the leader cannot know, and the server is to be asked.
	 */
	blocks?: Block[] | undefined;
	/**
	 * Of an answer to a question without a cursor: the stream begins at the one of `blocks`, and what was before is
	 * unknown. Otherwise all that the follower has fetched is newer than the first of them.
	 */
	began?: boolean;
}

/** The last: a tab was told to use this mode, for all. */
export type Message = Question | Word | { mode: Mode };

/** Of the messages; tabs that run an older or newer version of this page keep to themselves. */
const VERSION = 3;

/** One for each URL and principal: tabs of different users never hear each other. */
export const groupName = (url: string, scope: string): string => `stalecast:${VERSION}:${url}:${scope}`;
