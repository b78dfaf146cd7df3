/** A platform whose clock, network and draws a test holds in its hand. Timers are vitest's fake ones. */

import type { Platform } from '../../src/core/platform.js';

export type Answer = (url: string, init: RequestInit) => Promise<Response> | Response;

export function testPlatform(answer: Answer, changes: Partial<Platform> = {}): Platform {
	return {
		fetch: async (url, init) => answer(url, init),
		setTimeout: (run, ms) => setTimeout(run, ms),
		clearTimeout: (timer) => clearTimeout(timer as number),
		Date,
		Math: { random: () => 0.5 },
		performance: { now: () => performance.now() },
		...changes,
	};
}

/** A stream that the test writes to. */
export class Stream {
	readonly response: Response;
	isAborted = false;
	#controller!: ReadableStreamDefaultController<Uint8Array>;

	constructor(signal?: AbortSignal | null, headers: Record<string, string> = {}) {
		const body = new ReadableStream<Uint8Array>({
			start: (controller) => {
				this.#controller = controller;
			},
		});
		signal?.addEventListener('abort', () => {
			if (this.isAborted) return;
			this.isAborted = true;
			try {
				this.#controller.error(new TypeError('aborted'));
			} catch {
				// ended before
			}
		});
		this.response = new Response(body, { headers: { 'Content-Type': 'text/event-stream; charset=utf-8', ...headers } });
	}

	write(text: string | Uint8Array): void {
		this.#controller.enqueue(typeof text === 'string' ? new TextEncoder().encode(text) : text);
	}

	end(): void {
		this.#controller.close();
	}
}

export const event = (id: string, data: object): string => `id: ${id}\ndata: ${JSON.stringify(data)}\n\n`;
export const updated = (id: string, item: string): string =>
	event(id, { event: 'argument_updated', data: { id: item, reason: 'edited' } });
export const reload = (id: string): string => event(id, { event: 'reload_required', data: { reason: 'trimmed' } });
