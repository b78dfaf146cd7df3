/** What the tabs of one browser say to each other: one leader, any number of followers. */

import type { LineStatus, Mode } from '../core/connection.js';
import type { Block } from '../core/transport.js';
import type { Platform } from '../core/platform.js';

/** What a leader is doing, in each of its messages: whoever hears any of them knows it alive. */
export interface LeaderState {
	/** Names one tab's turn as leader; `count` numbers what it told during it. */
	term: string;
	count: number;
	lineage: string | undefined;
	status: LineStatus;
	mode: Mode;
	isHidden: boolean;
}

export type Message =
	/** A follower's question: what is there behind my cursor? Also its proof that it still listens. */
	| {
			type: 'ask';
			from: string;
			cursor: string;
			/** Either may be the one that the cursor is known to belong to. */
			lineages: (string | undefined)[];
			/** Without a cursor: nothing was fetched before this, in milliseconds since 1970. */
			since: number;
	  }
	/**
	 * The answer to a question with this cursor, and to no later one: with `blocks` the follower has caught up
	 * with `count`.
	 */
	| { type: 'give'; to: string; cursor: string; state: LeaderState; base?: string | undefined; blocks: Block[] }
	/** The answer where the leader cannot know: ask the server. */
	| { type: 'far'; to: string; cursor: string; state: LeaderState }
	/** New blocks, to all; the `count`th time in this term. */
	| { type: 'news'; state: LeaderState; blocks: Block[] }
	| { type: 'state'; state: LeaderState }
	/** A tab was told to use this mode, for all. */
	| { type: 'mode'; mode: Mode };

/** Of the messages; tabs that run an older or newer version of this page keep to themselves. */
const VERSION = 1;

/** One for each URL and principal: tabs of different users never hear each other. */
export const groupName = (url: string, scope: string): string => `stalecast:${VERSION}:${url}:${scope}`;

export class TabChannel {
	#channel;
	#isOpen = true;

	constructor(platform: Platform, name: string, receive: (message: Message) => void) {
		this.#channel = platform.openChannel!(name);
		this.#channel.addEventListener('message', ({ data }) => this.#isOpen && receive(data as Message));
	}

	post(message: Message): void {
		this.#channel.postMessage(message);
	}

	close(): void {
		this.#isOpen = false; // what is on its way is not heard any more
		this.#channel.close();
	}
}
