/**
 * One stream for all tabs of a browser: who has it, and how the others keep up.
 *
 * A Web Lock makes one tab the leader; when it goes, however it goes, the browser hands the lock on. A leader
 * that holds the lock but does not answer (frozen, hung) has it stolen. Only the leader has a stream, and tells
 * the others of each block that is new to it. Every tab keeps its own cursor, so whoever becomes the leader
 * goes on from its own, and nobody depends on what another one has told.
 *
 * A follower is *in step* when it has heard everything that its leader has told in this term, by the count. If
 * not, it asks; the leader answers from its ring, if it has the very entry where the follower stands. What the ring
 * cannot answer, the server does: the tab opens a stream of its own, until the ring has where that has come to. That
 * the server has just answered proves nothing by itself: the leader may not have heard yet that the stream was wiped.
 */

import type { Feed } from '../core/feed.js';
import type { Block } from '../core/parser.js';
import { type Channel, createTimer, listenToPage, type Platform } from '../core/platform.js';
import type { Status } from '../core/status.js';
import type { Outcome } from '../core/transport.js';
import { createSource, type Mode, type Source, type SourceOptions } from '../polling.js';
import type { Message, Question, Word } from './channel.js';
import { entriesAfter, entriesSince } from './ring.js';
import { ASKING, hear, type Standing } from './standing.js';

export interface TabsOptions extends SourceOptions {
	/** Between the tabs' signs of life, in ms. Default: 2000. */
	beatMs?: number | undefined;
}

export type Role = 'alone' | 'leader' | 'follower';

export interface Tabs {
	/** Undefined while this tab takes no part. */
	readonly role: Role | undefined;
	readonly status: Status;
	/** This tab's own. */
	readonly source: Source;
	/** Whoever leads, now or later, uses this mode. */
	use(mode: Mode): void;
	/** From now on there shall be a stream, or none, whenever the page runs. */
	want(isWanted: boolean): void;
}

/** After so many beats without a sign of the leader it is stolen from: a hidden tab is in less of a hurry. */
const PATIENCE_BEATS = 2;
const HIDDEN_PATIENCE_BEATS = 8;

/** Browsers read the clock to a tenth of a second where pages shall not tell apart what they run on. */
const CLOCK_TOLERANCE_MS = 1000;

export interface TabsParts {
	platform: Platform;
	/** The group's; without one, this tab keeps to itself. */
	name: string | undefined;
	url: string;
	options: TabsOptions;
	feed: Feed;
	/** Told that the status changed, perhaps. */
	told(): void;
	/** As a source's. */
	failed(outcome: Outcome): void;
}

export function createTabs({ platform, name, url, options, feed, told, failed }: TabsParts): Tabs {
	const { beatMs = 2000 } = options;
	const id = platform.Math.random();
	let role: Role | undefined;
	/** While this tab follows. */
	let standing: Standing = ASKING;
	let channel: Channel | undefined;
	let term: number;
	let count: number;
	/** Ends the wait for the lock. */
	let waiting: AbortController;
	/** Lets the lock go. */
	let release = () => {};
	/** Beats since the leader was heard. Counted rather than timed: while a page sleeps, nobody can be heard. */
	let quietBeats: number;
	/** Ends the listening to the page: there is one while a stream is wanted. */
	let unlisten: (() => void) | undefined;
	const beat = createTimer(platform);
	const now = () => platform.performance.now();
	const isHidden = () => !!platform.document?.hidden;

	const changed = () => {
		tell();
		told();
	};

	const receive = (blocks: Block[]) => {
		const fresh = feed.receive(blocks);
		if (!blocks.length) return;
		if (role === 'follower') {
			ask(); // perhaps it has caught up
		} else {
			count++;
			tell({ blocks: fresh });
		}
	};
	const source = createSource({ platform, url, options, cursor: () => feed.cursor, receive, changed, failed });

	const stop = () => {
		source.stop();
		standing = ASKING;
	};

	const leave = () => {
		channel?.close();
		channel = role = undefined;
		waiting?.abort();
		release();
		beat();
		stop();
		changed();
	};

	const heed = (isRunning: boolean | undefined) => {
		if (isRunning !== undefined) run(isRunning);
		changed();
		// Nobody waits for a page that was hidden.
		if (isRunning ?? !isHidden()) source.wake();
	};

	const run = (isRunning: boolean) => {
		if (isRunning === !!role) return;
		if (!isRunning) return leave();
		try {
			// Whatever is missing throws: the one, the other, or the right to use them.
			if (!name) throw name;
			channel = new platform.BroadcastChannel!(name);
			channel.onmessage = ({ data }) => listen(data as Message);
			follow();
			tick();
		} catch {
			stayAlone();
		}
	};

	// -- the lock

	const request = (options: LockOptions) => {
		const joined = channel;
		let mine: typeof release | undefined;
		platform
			.navigator!.locks!.request(name!, options, () => {
				if (channel !== joined) return undefined; // it left meanwhile
				waiting.abort();
				return new Promise<void>((resolve) => {
					release = mine = resolve;
					role = 'leader';
					standing = ASKING;
					term = platform.Math.random();
					count = 0;
					source.start(); // or goes on, if it was catching up
					changed();
				});
			})
			.catch(() => {
				if (channel !== joined) return;
				if (release === mine) follow(); // stolen, and not by this tab itself
				else if (!waiting.signal.aborted) stayAlone(); // not allowed here
			});
	};

	const follow = () => {
		stop();
		role = 'follower';
		quietBeats = 0;
		waiting = new AbortController();
		request({ signal: waiting.signal });
		ask();
		changed();
	};

	const stayAlone = () => {
		leave();
		role = 'alone';
		source.start();
		changed();
	};

	// -- messages

	const post = (message: Message) => channel?.postMessage(message);

	/** To whoever follows this tab: how it is, and what else there is to say. */
	const tell = (more?: Partial<Word>) => {
		if (role !== 'leader') return;
		const { status, mode } = source;
		post({ term, count, now: now(), hasBegun: feed.hasBegun, status, mode, isHidden: isHidden(), ...more });
	};

	const ask = (word?: Word) =>
		post({
			from: id,
			cursor: feed.cursor,
			term: word?.term,
			// Both clocks go on while a word is on its way: what it took only makes this earlier.
			since: word && word.now - now() - CLOCK_TOLERANCE_MS,
		});

	const answer = ({ from: to, cursor, term: heard, since }: Question) => {
		if (!feed.hasBegun || (!cursor && heard !== term)) return tell();
		const blocks = cursor ? entriesAfter(feed.ring, cursor) : entriesSince(feed.ring, since!);
		const began = !cursor && !blocks;
		tell({ to, cursor, blocks: began ? [{ id: feed.cursor }] : blocks, began });
	};

	const listen = (message: Message) => {
		if ('from' in message) return answer(message);
		source.mode = message.mode;
		if (!('term' in message)) return tell();
		// Two leaders at once: one was stolen from and has not heard of it yet. It will, from the browser.
		if (role !== 'follower') return;
		quietBeats = 0;
		const [next, deed] = hear(standing, message, { id, cursor: feed.cursor });
		if (deed === 'take') {
			source.stop();
			const blocks = message.blocks!;
			if (!feed.cursor && !message.began) feed.begin(blocks[0]!.id!);
			feed.receive(blocks);
		}
		standing = next;
		if (next.is === 'streaming') source.start(); // or goes on
		if (deed === 'ask') ask(message);
		changed();
	};

	// -- time

	const tick = () => {
		if (role === 'follower') {
			const hidden = isHidden();
			const { leader } = standing;
			if (quietBeats > (hidden ? HIDDEN_PATIENCE_BEATS : PATIENCE_BEATS) || (leader?.isHidden && !hidden)) {
				quietBeats = 0;
				request({ steal: true });
			} else if (!leader || quietBeats) {
				ask();
			}
			quietBeats++;
		}
		beat(tick, beatMs);
	};

	return {
		get role() {
			return role;
		},
		get status() {
			// Where there is no network, the leader has not said so yet.
			const { leader } = standing;
			const { status } = leader && source.status !== 'offline' ? leader : source;
			return leader && status === 'live' ? 'follower' : status;
		},
		source,
		use(mode) {
			source.mode = mode;
			post({ mode });
			tell();
		},
		want(isWanted) {
			if (isWanted === !!unlisten) return;
			unlisten?.();
			unlisten = isWanted ? listenToPage(platform, heed) : undefined;
			run(isWanted);
		},
	};
}
