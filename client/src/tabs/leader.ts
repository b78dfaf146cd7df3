/**
 * One stream for all tabs of a browser: who has it, and how the others keep up.
 *
 * A Web Lock makes one tab the leader; when it goes, however it goes, the browser hands the lock on. A leader
 * that holds the lock but does not answer (frozen, hung) has it stolen. Only the leader has a stream, and tells
 * the others of each block that is new to it. Every tab keeps its own cursor, so whoever becomes the leader
 * goes on from its own, and nobody depends on what another one has told.
 *
 * A follower is *in step* when it has heard everything that its leader has told in this term, by the count. If
 * not, it asks; the leader answers from its ring. What the ring cannot answer, the server does: the tab opens a
 * stream of its own for as long as it takes to catch up.
 */

import type { Connection, Mode } from '../core/connection.js';
import type { Feed } from '../core/feed.js';
import type { Platform } from '../core/platform.js';
import type { Block } from '../core/transport.js';
import { type LeaderState, type Message, TabChannel } from './channel.js';

export interface TabsOptions {
	/** A follower that heard nothing for so long asks; one that heard nothing for thrice that steals. */
	beatMs: number;
	/** A tab takes over from a hidden leader once it has been visible for so long. */
	takeoverMs: number;
}

export type Role = 'alone' | 'leader' | 'follower';

/** A hidden tab is in less of a hurry to steal than one that somebody looks at. */
const PATIENCE = { visible: 3, hidden: 9 };

export class Tabs {
	role: Role = 'follower';
	/** Of the leader that this follower is in step with. */
	leader: LeaderState | undefined;
	readonly #id: string;
	#channel: TabChannel | undefined;
	#term = '';
	#count = 0;
	/** Ends the wait for the lock. */
	#waiting: AbortController | undefined;
	/** Lets the lock go. */
	#release: (() => void) | undefined;
	#timer: unknown;
	#takeover: unknown;
	#heardAt = 0;
	#tickedAt = 0;
	/** The request that the lock is held by. */
	#turn: object | undefined;
	/** The leader's lineage when the stream of one's own was opened: what that stream proves is no older. */
	#noted: string | undefined;
	#isProven = false;

	constructor(
		private readonly platform: Platform,
		private readonly name: string,
		private readonly options: TabsOptions,
		private readonly feed: Feed,
		private readonly connection: Connection,
		private readonly changed: () => void,
	) {
		this.#id = String(platform.random());
	}

	join(): void {
		const { platform } = this;
		if (!platform.locks || !platform.openChannel) return this.#stayAlone();
		try {
			this.#channel = new TabChannel(platform, this.name, (message) => this.#hear(message));
		} catch {
			return this.#stayAlone(); // an opaque origin
		}
		this.role = 'follower';
		this.#heardAt = this.#tickedAt = platform.now();
		this.#wait();
		this.#ask();
		this.#tick();
	}

	leave(): void {
		this.#channel?.close();
		this.#channel = undefined;
		this.#waiting?.abort();
		this.#release?.();
		this.#turn = this.#release = undefined;
		this.platform.clearTimeout(this.#timer);
		this.platform.clearTimeout(this.#takeover);
		this.leader = undefined;
		this.role = 'follower';
		this.connection.stop();
	}

	/** The page was shown or hidden. */
	seen(): void {
		if (this.role === 'leader') this.tellState();
		else this.#considerTakeover();
	}

	/** This tab's own stream brought something; `fresh` is what was new to it. */
	brought(fresh: Block[]): void {
		if (this.role === 'follower') {
			this.#isProven = true;
			this.#ask(); // perhaps it has caught up
		} else if (fresh.length) {
			this.#count++;
			this.#post({ type: 'news', state: this.#state(), blocks: fresh });
		} else {
			this.tellState();
		}
	}

	/** Whoever leads, now or later, uses this mode. */
	set mode(mode: Mode) {
		this.connection.mode = mode;
		this.#post({ type: 'mode', mode });
		this.tellState();
	}

	tellState(): void {
		if (this.role === 'leader') this.#post({ type: 'state', state: this.#state() });
	}

	// -- the lock

	#wait(): void {
		this.#waiting = new AbortController();
		this.#request({ signal: this.#waiting.signal });
	}

	#request(options: LockOptions): void {
		const channel = this.#channel;
		const turn = {};
		this.platform
			.locks!.request(this.name, options, () => {
				if (this.#channel !== channel) return; // it left meanwhile
				this.#turn = turn;
				this.#waiting?.abort();
				return new Promise<void>((release) => {
					this.#release = release;
					this.#lead();
				});
			})
			.catch((error: Error) => {
				if (this.#channel !== channel || !channel) return;
				if (this.#turn === turn) this.#follow(); // stolen, and not by this tab itself
				else if (error.name !== 'AbortError') this.#stayAlone(); // not allowed here
			});
	}

	#steal(): void {
		if (this.role === 'follower') this.#request({ steal: true });
	}

	#lead(): void {
		this.role = 'leader';
		this.leader = undefined;
		this.#term = String(this.platform.random());
		this.#count = 0;
		this.connection.start(); // or goes on, if it was catching up
		this.tellState();
		this.changed();
	}

	#follow(): void {
		this.connection.stop();
		this.role = 'follower';
		this.#turn = this.#release = undefined;
		this.#heardAt = this.platform.now();
		this.#wait();
		this.#ask();
		this.changed();
	}

	#stayAlone(): void {
		this.leave();
		this.role = 'alone';
		this.connection.start();
		this.changed();
	}

	// -- messages

	#state(): LeaderState {
		return {
			term: this.#term,
			count: this.#count,
			lineage: this.feed.lineage,
			status: this.connection.status,
			mode: this.connection.mode,
			isHidden: this.platform.isHidden(),
		};
	}

	#post(message: Message): void {
		this.#channel?.post(message);
	}

	#ask(): void {
		this.#post({
			type: 'ask',
			from: this.#id,
			cursor: this.feed.cursor,
			lineages: [this.feed.lineage, this.#isProven ? this.#noted : undefined],
			since: this.platform.startedAt,
		});
	}

	#hear(message: Message): void {
		if (message.type === 'ask') {
			if (this.role === 'leader') this.#answer(message);
			return;
		}
		if (message.type === 'mode') {
			this.connection.mode = message.mode;
			return this.tellState();
		}
		// Two leaders at once: one was stolen from and has not heard of it yet. It will, from the browser.
		if (this.role !== 'follower') return;
		const { state } = message;
		const before = this.leader;
		this.#heardAt = this.platform.now();
		if (this.connection.mode !== state.mode) this.connection.mode = state.mode;
		if ('to' in message && message.to === this.#id && message.cursor === this.feed.cursor) {
			if (message.type === 'give') this.#join(message);
			else this.#catchUp(state.lineage);
		} else if (state.lineage === undefined) {
			this.leader = undefined; // it knows nothing yet, so there is nothing to ask
		} else if (before?.term === state.term && before.count === state.count) {
			this.leader = state;
		} else if (before?.term === state.term && before.count + 1 === state.count && message.type === 'news') {
			this.#take(state, message.blocks);
		} else if (before || !('to' in message)) {
			// Not at every answer to somebody else: two that have to catch up would ask each other on for ever.
			this.leader = undefined;
			this.#ask();
		}
		this.#considerTakeover();
		if (before?.status !== this.leader?.status) this.changed();
	}

	#join({ state, base, blocks }: Message & { type: 'give' }): void {
		this.connection.stop();
		this.#noted = undefined;
		if (base !== undefined) this.feed.join(base, state.lineage!);
		this.#take(state, blocks);
	}

	#take(state: LeaderState, blocks: Block[]): void {
		this.leader = state;
		this.feed.receive(blocks);
		this.feed.lineage = state.lineage;
	}

	/** What the ring does not have: a stream of one's own, until it has caught up with the ring. */
	#catchUp(lineage: string | undefined): void {
		this.leader = undefined;
		if (this.connection.isRunning && this.#noted === lineage) return;
		// What a stream proved that was opened in another lineage says nothing in this one.
		this.#noted = lineage;
		this.#isProven = false;
		this.connection.restart();
	}

	#answer({ from, cursor, lineages, since }: Message & { type: 'ask' }): void {
		const { feed } = this;
		const state = this.#state();
		if (feed.lineage === undefined) return this.tellState();
		if (!cursor) {
			const late = feed.ring.since(since);
			const blocks = late ? late.entries : [{ id: feed.cursor }];
			return this.#post({ type: 'give', to: from, cursor, state, base: late?.base, blocks });
		}
		const blocks = feed.ring.after(cursor, lineages.includes(feed.lineage));
		if (!blocks) return this.#post({ type: 'far', to: from, cursor, state });
		this.#post({ type: 'give', to: from, cursor, state, blocks: [...blocks, { id: feed.cursor }] });
	}

	// -- time

	#tick(): void {
		const { platform, options } = this;
		const now = platform.now();
		// It was this tab that slept: nobody could be heard.
		if (now - this.#tickedAt > 2 * options.beatMs) this.#heardAt = now;
		this.#tickedAt = now;
		if (this.role === 'follower') {
			const quietMs = now - this.#heardAt;
			const patience = platform.isHidden() ? PATIENCE.hidden : PATIENCE.visible;
			if (quietMs > options.beatMs * (patience + platform.random())) {
				this.#heardAt = now;
				this.#steal();
			} else if (!this.leader || quietMs >= options.beatMs) {
				this.#ask();
			}
		}
		this.#timer = platform.setTimeout(() => this.#tick(), options.beatMs);
	}

	#considerTakeover(): void {
		const { platform } = this;
		const wanted = () => this.role === 'follower' && !!this.leader?.isHidden && !platform.isHidden();
		if (!wanted()) {
			platform.clearTimeout(this.#takeover);
			this.#takeover = undefined;
		} else {
			this.#takeover ??= platform.setTimeout(() => {
				this.#takeover = undefined;
				if (wanted()) this.#steal();
			}, this.options.takeoverMs);
		}
	}
}
