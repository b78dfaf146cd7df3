/**
 * One attempt: a request, and the event stream that answers it, until either ends.
 *
 * Source: WHATWG HTML, section 9.2 (server-sent events). It differs from a browser's EventSource in what it
 * can send (headers) and in that it says why it ended.
 */

import { type Block, createParser } from './parser.js';
import { createTimer, type Platform } from './platform.js';

/**
 * How an attempt ended.
 * - `ended`: a stream that stood was ended, or its line was lost;
 * - `silent`: a stream stood, and then nothing came, not even heartbeats;
 * - `mute`: nothing ever came through;
 * - `failed`: there was no stream, this time;
 * - `refused`: there will be none;
 * - `cut`: by whoever made the attempt.
 */
export interface Outcome {
	kind: 'ended' | 'silent' | 'mute' | 'failed' | 'refused' | 'cut';
	message?: string;
	status?: number;
	/** Of Retry-After. */
	floorMs?: number;
}

export type HeadersSource =
	| HeadersInit
	| ((asked: { refresh: boolean; signal: AbortSignal }) => HeadersInit | Promise<HeadersInit>);

export interface TransportOptions {
	/**
	 * Sent with every request; a function is asked anew for each, and once more, with `refresh: true`, when the
	 * server answered 401. Default: none.
	 */
	headers?: HeadersSource | undefined;
	/** As for fetch. Default: `same-origin`. */
	credentials?: RequestCredentials | undefined;
	/** Default: the global one. */
	fetch?: typeof fetch | undefined;
	/** How long until a stream that brought nothing yet counts as held back, in ms. Default: 8000. */
	muteAfterMs?: number | undefined;
	/**
	 * How long a stream may be silent, in ms. Default: 30000; the server's heartbeats come every 4 s, and every 15 s
	 * where they are rare.
	 */
	silenceMs?: number | undefined;
}

export const DEFAULT_SILENCE_MS = 30_000;

/** What is asked, and who is told what comes. */
export interface Request {
	platform: Platform;
	url: string;
	options: TransportOptions;
	/** Told of each piece that arrived, with the blocks that it completed: none in a heartbeat. */
	piece(blocks: Block[]): void;
	/** Told of each `retry:`, in milliseconds. */
	retry(ms: number): void;
}

export interface Attempt extends Request {
	/** '' for none. */
	lastEventId: string;
	/** To cut it, abort this with an outcome as the reason. */
	controller: AbortController;
}

/** Never rejects. */
export function attempt({ platform, url, lastEventId, options, controller, piece, retry }: Attempt): Promise<Outcome> {
	const { headers: source, credentials, muteAfterMs = 8000, silenceMs = DEFAULT_SILENCE_MS } = options;
	const { signal } = controller;
	const deadline = createTimer(platform);
	const allow = (ms: number, kind: Outcome['kind'], message: string) =>
		deadline(() => controller.abort({ kind, message }), ms);
	let stood = false;

	const read = async (): Promise<Outcome> => {
		let response!: Response;
		for (const refresh of [false, true]) {
			allow(silenceMs, 'failed', 'headers() took too long');
			const headers = new Headers(await (typeof source === 'function' ? source({ refresh, signal }) : source));
			signal.throwIfAborted();
			headers.set('Accept', 'text/event-stream');
			if (lastEventId) headers.set('Last-Event-ID', lastEventId);
			allow(muteAfterMs, 'mute', 'nothing came through');
			// Not a kept reference: instrumentation and mocks replace the global one later.
			response = await (options.fetch ?? platform.fetch)(url, {
				headers,
				credentials: credentials!,
				cache: 'no-store',
				signal,
			});
			if (response.status !== 401) break;
			await response.body?.cancel();
		}
		const { status, headers, body } = response;
		const type = headers.get('Content-Type');
		if (status !== 200 || !/^text\/event-stream\s*(;|$)/i.test(type!)) {
			return {
				// 204 is how a server tells an EventSource to stay away.
				kind: status === 204 || (status > 399 && status < 500 && status !== 429) ? 'refused' : 'failed',
				message: `no event stream, but ${status} ${type}`,
				status,
				floorMs: retryAfterMs(headers.get('Retry-After'), platform.Date.now()),
			};
		}
		const parse = createParser(retry);
		const reader = body!.getReader();
		const decoder = new TextDecoder();
		for (;;) {
			const { done, value } = await reader.read();
			signal.throwIfAborted();
			if (done) throw new Error('the stream ended');
			stood = true;
			allow(silenceMs, 'silent', 'the stream fell silent');
			piece(parse(decoder.decode(value, { stream: true })));
		}
	};

	// Raced: headers that never come, or a fetch that ignores its signal, must not hold the client for ever.
	const cut = new Promise<Outcome>((resolve) => {
		signal.onabort = () => resolve(signal.reason);
	});
	return Promise.race([cut, read()])
		.catch((error): Outcome => ({ kind: stood ? 'ended' : 'failed', message: String(error) }))
		.finally(() => {
			deadline();
			controller.abort(); // what was not read to its end must not stay open
		});
}

/** RFC 9110, section 10.2.3: seconds or a date. 0 for anything else. */
export const retryAfterMs = (value: string | null, nowMs: number): number =>
	Math.max(0, Number(value) * 1000 || Date.parse(value!) - nowMs) || 0;
