/**
 * The line to the server: one attempt after another, and polling beside them while streams do not come through.
 */

import { Polling } from '../polling.js';
import { Backoff } from './backoff.js';
import type { Platform } from './platform.js';
import { attempt, type Block, type Outcome, type TransportOptions } from './transport.js';

/** `auto` changes to polling and back by itself; the others force one. */
export type Mode = 'auto' | 'stream' | 'poll';

/** What one line can be, in one tab; see `Status`. */
export type LineStatus = 'connecting' | 'live' | 'polling' | 'offline';

export interface ConnectionOptions extends TransportOptions {
	backoffBaseMs: number;
	backoffCapMs: number;
	/** A stream that stood this long ends the memory of earlier failures. */
	healthyMs: number;
	/** A stream that brought nothing for so long after its first piece may be held back: polling begins. */
	doubtMs: number;
	pollMs: number;
	/** While polling, the stream is tried again after this, then after twice as long, up to eight times. */
	probeMs: number;
}

export interface ConnectionHost {
	cursor(): string;
	receive(blocks: Block[]): void;
	changed(): void;
	/** A failure that will be tried again. */
	failed(outcome: Outcome): void;
	/** The server refuses; the connection has stopped. */
	refused(outcome: Outcome): void;
}

/** A server that asks for more is either wrong or away for good. */
const FLOOR_LIMIT_MS = 3_600_000;
/** What comes this long after the first piece was not held back with it. */
const PROOF_MS = 1000;
const PROBE_LIMIT_DOUBLINGS = 3;

export class Connection {
	/** The newest attempt has a stream, and what comes through counts. */
	isLive = false;
	#mode: Mode = 'auto';
	#running: AbortController | undefined;
	/** Ends the attempt or the pause that is under way. */
	#next: AbortController | undefined;
	#resume: (() => void) | undefined;
	#resumeAt = 0;
	#heardAt = 0;
	#retryMs = 0;
	/** Streams that were held back on the way, since one came through. */
	#muted = 0;
	#backoff: Backoff;
	#polling: Polling;
	#pollWorks = false;

	constructor(
		private readonly platform: Platform,
		private readonly url: string,
		private readonly options: ConnectionOptions,
		private readonly host: ConnectionHost,
	) {
		this.#backoff = new Backoff(options.backoffBaseMs, options.backoffCapMs, platform.random);
		this.#polling = new Polling(platform, url, options, {
			cursor: host.cursor,
			piece: (blocks) => host.receive(blocks),
			retry: () => {},
			answered: (outcome) => {
				this.#pollWorks = outcome.type === 'ended';
				if (outcome.type === 'refused') return this.#refuse(outcome);
				if (!this.#pollWorks) host.failed(outcome);
				if (!this.#pollWorks && !outcome.floorMs && this.#mode === 'auto') {
					// It is not the stream, then: there is no way to the server at all.
					this.#polling.stop();
					this.#resume?.();
				}
				host.changed();
			},
		});
	}

	get isRunning(): boolean {
		return !!this.#running;
	}

	get status(): LineStatus {
		if (this.isLive) return 'live';
		if (this.#polling.isRunning && this.#pollWorks) return 'polling';
		return this.platform.isOnline() ? 'connecting' : 'offline';
	}

	get mode(): Mode {
		return this.#mode;
	}

	set mode(mode: Mode) {
		if (mode === this.#mode) return;
		this.#mode = mode;
		this.#muted = 0;
		if (this.#running) this.restart();
	}

	start(): void {
		if (this.#running) return;
		this.#running = new AbortController();
		void this.#run(this.#running.signal);
	}

	stop(): void {
		this.#running?.abort();
		this.#running = undefined;
		this.#next?.abort();
		this.#resume?.();
		this.#polling.stop();
		this.isLive = this.#pollWorks = false;
	}

	/** Cut what stands, and try at once, from the cursor as it is now. */
	restart(): void {
		this.stop();
		this.start();
	}

	/**
	 * Something happened that makes a new attempt promising, or an old stream doubtful: a network came back,
	 * the page was shown. The pause that is under way ends, except one that the server asked for by Retry-After;
	 * a stream that has been quiet for longer than it should be is cut rather than trusted.
	 */
	wake(): void {
		const now = this.platform.now();
		if (this.#resume) {
			if (now >= this.#resumeAt) this.#resume();
		} else if (this.isLive && now - this.#heardAt > this.options.silenceMs / 2) {
			this.#next?.abort();
		}
	}

	async #run(signal: AbortSignal): Promise<void> {
		const { platform, options, host } = this;
		while (!signal.aborted) {
			if (this.#mode === 'poll') {
				this.#polling.start();
				return;
			}
			this.#next = new AbortController();
			const startedAt = platform.now();
			let firstAt = 0;
			let doubt: unknown;
			const listener = {
				retry: (ms: number) => {
					this.#retryMs = Math.min(ms, FLOOR_LIMIT_MS);
				},
				piece: (blocks: Block[]) => {
					const now = (this.#heardAt = platform.now());
					if (!firstAt) {
						// First pieces prove little: many proxies let just those through, with the headers.
						firstAt = now;
						doubt = platform.setTimeout(() => this.#doubt(), options.doubtMs);
					} else if (now - firstAt >= PROOF_MS) {
						platform.clearTimeout(doubt);
						this.#prove();
					}
					const isLive = !this.#polling.isRunning;
					const changed = isLive !== this.isLive;
					this.isLive = isLive;
					host.receive(blocks);
					if (changed) host.changed();
				},
			};
			const outcome = await attempt(platform, this.url, host.cursor(), options, listener, this.#next.signal);
			platform.clearTimeout(doubt);
			if (signal.aborted) return;
			this.isLive = false;
			if (outcome.type === 'refused') return this.#refuse(outcome);
			if (outcome.type === 'ended' && platform.now() - startedAt >= options.healthyMs) this.#backoff.reset();
			if (!this.#next.signal.aborted) host.failed(outcome);
			if (outcome.type === 'mute') this.#doubt();
			host.changed();
			await this.#pause(outcome);
		}
	}

	/** The stream comes through as it is sent. */
	#prove(): void {
		this.#muted = 0;
		this.#polling.stop();
		this.#pollWorks = false;
	}

	/** The stream may be held back somewhere. */
	#doubt(): void {
		if (this.#mode !== 'auto') return;
		this.#muted++;
		this.isLive = false;
		this.#polling.start();
		this.host.changed();
	}

	#refuse(outcome: Outcome): void {
		this.stop();
		this.host.refused(outcome);
	}

	#pause(outcome: Outcome): Promise<void> {
		const { platform, options } = this;
		const floorMs = Math.min(outcome.floorMs ?? 0, FLOOR_LIMIT_MS);
		const probeMs = this.#polling.isRunning
			? options.probeMs * 2 ** Math.min(Math.max(this.#muted - 1, 0), PROBE_LIMIT_DOUBLINGS)
			: 0;
		const pauseMs = this.#backoff.next(Math.max(floorMs, this.#retryMs, probeMs));
		this.#resumeAt = platform.now() + floorMs;
		// Cut by `wake`: somebody waits.
		if (this.#next!.signal.aborted) return Promise.resolve();
		return new Promise((resolve) => {
			const end = () => {
				platform.clearTimeout(timer);
				this.#resume = undefined;
				resolve();
			};
			const timer = platform.setTimeout(end, pauseMs);
			this.#resume = end;
		});
	}
}
