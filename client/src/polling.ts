/**
 * The fall-back: ask every few seconds for what was missed.
 *
 * The question is the stream's own request with `live=false`, which the server ends where the live part would
 * begin: a proxy that holds a stream back lets an answer that ends through. So polling loses nothing and
 * fetches nothing needlessly; it is only later.
 */

import type { Platform } from './core/platform.js';
import { attempt, type Outcome, type TransportListener, type TransportOptions } from './core/transport.js';

export interface PollingHost extends TransportListener {
	cursor(): string;
	/** After each question. */
	answered(outcome: Outcome): void;
}

export class Polling {
	#running: AbortController | undefined;
	#resume: (() => void) | undefined;

	constructor(
		private readonly platform: Platform,
		private readonly url: string,
		private readonly options: TransportOptions & { pollMs: number },
		private readonly host: PollingHost,
	) {}

	get isRunning(): boolean {
		return !!this.#running;
	}

	start(): void {
		if (this.#running) return;
		this.#running = new AbortController();
		void this.#run(this.#running.signal);
	}

	stop(): void {
		this.#running?.abort();
		this.#running = undefined;
		this.#resume?.();
	}

	async #run(signal: AbortSignal): Promise<void> {
		const { platform, options, host } = this;
		const url = this.url + (this.url.includes('?') ? '&' : '?') + 'live=false';
		while (!signal.aborted) {
			// An answer that ends needs no patience for heartbeats.
			const outcome = await attempt(platform, url, host.cursor(), options, host, signal);
			if (signal.aborted) return;
			host.answered(outcome);
			// Up to a quarter more: tabs and browsers that began together shall not stay together.
			const pauseMs = Math.max(options.pollMs * (1 + platform.random() / 4), outcome.floorMs ?? 0);
			await new Promise<void>((resolve) => {
				const timer = platform.setTimeout(resolve, pauseMs);
				this.#resume = () => {
					platform.clearTimeout(timer);
					resolve();
				};
			});
		}
	}
}
