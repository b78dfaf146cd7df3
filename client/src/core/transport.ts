/**
 * One attempt: a request, and the event stream that answers it, until either ends.
 *
 * Source: WHATWG HTML, section 9.2 (server-sent events). It differs from a browser's EventSource in what it
 * can send (headers) and in that it says why it ended.
 */

import { type Block, createParser } from './parser.js';
import { isCarried } from './cursor.js';
import { createTimer, type Platform } from './platform.js';

/**
 * How an attempt ended.
 * - `ended`: a stream that stood was ended, or its line was lost;
 * - `silent`: a stream stood, and then nothing came, not even heartbeats;
 * - `mute`: nothing ever came through;
 * - `failed`: there was no stream, this time;
 * - `refused`: the server said no: 204, or a 4xx that speaks of more than this moment;
 * - `cut`: by whoever made the attempt.
 */
export interface Outcome {
	kind: 'ended' | 'silent' | 'mute' | 'failed' | 'refused' | 'cut';
	message?: string;
	status?: number;
	/** Of Retry-After. */
	floorMs?: number;
	/** Whether the client gave up; set by whoever decides that. */
	fatal?: boolean;
}

export type HeadersSource =
	| HeadersInit
	| ((asked: { refresh: boolean; signal: AbortSignal }) => HeadersInit | Promise<HeadersInit>);

export interface TransportOptions {
	/**
	 * Sent with every request; a function is asked anew for each, and once more, with `refresh: true`, when the
	 * answer was 401, or 200 and no event stream, as a login page is. Default: none.
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

/**
 * 204 is how a server tells an EventSource to stay away. Of 4xx, Request Timeout, Too Early and Too Many Requests speak
 * of this moment only, as 5xx does.
 */
const REFUSAL = /^(204|4(?!08|25|29))/;

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
	/** Where no header can carry it, the stream begins at the newest event. */
	lastEventId: string;
	/** To cut it, abort this. */
	controller: AbortController;
}

/** Never rejects. */
export function attempt({ platform, url, lastEventId, options, controller, piece, retry }: Attempt): Promise<Outcome> {
	const { headers: source, credentials, muteAfterMs = 8000, silenceMs = DEFAULT_SILENCE_MS } = options;
	const { signal } = controller;
	const deadline = createTimer(platform);
	/** Not the signal's own reason: React Native's has none. */
	let reason: Outcome = { kind: 'cut' };
	const allow = (ms: number, kind: Outcome['kind'], message: string) =>
		deadline(() => {
			reason = { kind, message };
			controller.abort();
		}, ms);
	const checkCut = () => {
		if (signal.aborted) throw reason;
	};
	let stood = false;

	const read = async (): Promise<Outcome> => {
		let response!: Response;
		let isStream!: boolean;
		for (const refresh of [false, true]) {
			allow(silenceMs, 'failed', 'headers() took too long');
			const headers = new Headers(await (typeof source === 'function' ? source({ refresh, signal }) : source));
			checkCut();
			headers.set('Accept', 'text/event-stream');
			if (isCarried(lastEventId)) headers.set('Last-Event-ID', lastEventId);
			allow(muteAfterMs, 'mute', 'nothing came');
			// Not a kept reference: instrumentation and mocks replace the global one later.
			response = await (options.fetch ?? platform.fetch)(url, {
				headers,
				credentials: credentials!,
				cache: 'no-store',
				signal,
			});
			const { status } = response;
			isStream = status === 200 && /^text\/event-stream\s*(;|$)/i.test(response.headers.get('Content-Type')!);
			const isLogin = status === 401 || (status === 200 && typeof source === 'function');
			if (isStream || !isLogin) break;
			await response.body?.cancel();
		}
		const { status, headers, body } = response;
		if (!isStream) {
			return {
				kind: REFUSAL.test(`${status}`) ? 'refused' : 'failed',
				message: `no event stream: ${status} ${headers.get('Content-Type')}`,
				status,
				// A date is by the server's clock: what that shows, the answer says, where it may be read.
				floorMs: retryAfterMs(headers.get('Retry-After'), Date.parse(headers.get('Date')!) || platform.Date.now()),
			};
		}
		const parse = createParser(retry);
		const take = (text: string) => {
			checkCut();
			stood = true;
			allow(silenceMs, 'silent', 'silence');
			piece(parse(text));
		};
		// React Native gives an answer when it has ended: a stream is mute there, and polling works.
		if (!body) take(await response.text());
		const reader = body?.getReader();
		const decoder = reader && new TextDecoder();
		for (;;) {
			const piece = await reader?.read();
			if (!piece || piece.done) throw new Error('the stream ended');
			take(decoder!.decode(piece.value, { stream: true }));
		}
	};

	// Raced: headers that never come, or a fetch that ignores its signal, must not hold the client for ever.
	const cut = new Promise<Outcome>((resolve) => {
		signal.onabort = () => resolve(reason);
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
