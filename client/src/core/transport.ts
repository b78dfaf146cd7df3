/**
 * One attempt: a request, and the event stream that answers it, until either ends.
 *
 * Source: WHATWG HTML, section 9.2 (server-sent events). It differs from a browser's EventSource in what it
 * can send (headers) and in that it says why it ended.
 */

import { createParser } from 'eventsource-parser';
import type { Platform } from './platform.js';

/** What a blank line ended: a position (`id`), an envelope as JSON text (`data`), or both. */
export interface Block {
	id?: string;
	data?: string;
}

/**
 * How an attempt ended.
 * - `ended`: a stream that stood was ended, or cut;
 * - `silent`: a stream stood, and then nothing came, not even heartbeats;
 * - `mute`: nothing ever came through;
 * - `failed`: there was no stream, this time;
 * - `refused`: there will be none.
 */
export interface Outcome {
	type: 'ended' | 'silent' | 'mute' | 'failed' | 'refused';
	message: string;
	status?: number;
	/** Of Retry-After. */
	floorMs?: number;
}

export type HeadersSource =
	| HeadersInit
	| ((asked: { refresh: boolean; signal: AbortSignal }) => HeadersInit | Promise<HeadersInit>);

export interface TransportOptions {
	headers?: HeadersSource | undefined;
	credentials?: RequestCredentials | undefined;
	/** Nothing came through in this long: mute. */
	muteAfterMs: number;
	/** A stream on which nothing came for this long, heartbeats included, is cut. */
	silenceMs: number;
}

export interface TransportListener {
	/** Each piece that arrived, with the blocks that it completed: none in a heartbeat. */
	piece(blocks: Block[]): void;
	retry(ms: number): void;
}

/** Of one block, and of the line it arrives in: what is longer is no event stream of ours. */
const BLOCK_LIMIT_CHARS = 1 << 20;

/** Never rejects. `signal` ends it, as `ended`. */
export async function attempt(
	platform: Platform,
	url: string,
	lastEventId: string,
	options: TransportOptions,
	listener: TransportListener,
	signal: AbortSignal,
): Promise<Outcome> {
	const controller = new AbortController();
	const abort = () => controller.abort();
	const ended = new Promise<never>((_, reject) => {
		controller.signal.onabort = reject;
	});
	ended.catch(() => {});
	signal.addEventListener('abort', abort);
	let overdue: Outcome | undefined;
	let timer: unknown;
	const allow = (ms: number, type: Outcome['type'], message: string) => {
		platform.clearTimeout(timer);
		timer = platform.setTimeout(() => {
			overdue = { type, message };
			abort();
		}, ms);
	};

	const ask = async (refresh: boolean): Promise<Response> => {
		const { headers: source, credentials = 'same-origin' } = options;
		allow(options.silenceMs, 'failed', 'headers() took too long');
		// Raced: a source that ignores its signal must not hold the client for ever.
		const given = typeof source === 'function' ? source({ refresh, signal: controller.signal }) : source;
		const headers = new Headers(await Promise.race([given, ended]));
		headers.set('Accept', 'text/event-stream');
		if (lastEventId) headers.set('Last-Event-ID', lastEventId);
		allow(options.muteAfterMs, 'mute', 'nothing came through');
		const asking = platform.fetch(url, { headers, credentials, cache: 'no-store', signal: controller.signal });
		return Promise.race([asking, ended]);
	};

	let stood = false;
	try {
		let response = await ask(false);
		if (response.status === 401) {
			response.body?.cancel().catch(() => {});
			response = await ask(true);
		}
		const refusal = judge(response, platform.now());
		if (refusal) return refusal;

		let blocks: Block[] = [];
		let id: string | undefined;
		const parser = createParser({
			maxBufferSize: BLOCK_LIMIT_CHARS,
			onId: (value) => {
				id = value;
				blocks.push({ id });
			},
			onEvent: ({ id: own, data }) => {
				// The block with this id was pushed just before.
				if (own !== undefined) blocks.pop();
				blocks.push(own === undefined ? { data } : { id: own, data });
			},
			onRetry: listener.retry,
			onError: (error) => {
				if (error.type === 'max-buffer-size-exceeded') throw error;
			},
		});
		const reader = response.body!.getReader();
		const decoder = new TextDecoder();
		for (;;) {
			const { done, value } = await Promise.race([reader.read(), ended]);
			if (done) return { type: stood ? 'ended' : 'failed', message: 'the server ended the stream' };
			stood = true;
			allow(options.silenceMs, 'silent', 'the stream fell silent');
			parser.feed(decoder.decode(value, { stream: true }));
			listener.piece(blocks);
			blocks = [];
		}
	} catch (error) {
		return overdue ?? { type: stood ? 'ended' : 'failed', message: String(error) };
	} finally {
		platform.clearTimeout(timer);
		signal.removeEventListener('abort', abort);
		controller.abort(); // what was not read to its end must not stay open
	}
}

/** Nothing where a stream follows. */
function judge(response: Response, nowMs: number): Outcome | undefined {
	const { status, headers } = response;
	const type = headers.get('Content-Type') ?? 'nothing';
	if (status === 200 && type.startsWith('text/event-stream')) return undefined;
	return {
		// 204 is how a server tells an EventSource to stay away.
		type: status === 204 || (status > 399 && status < 500 && status !== 429) ? 'refused' : 'failed',
		message: `the server answered ${status}` + (status === 200 ? ` with ${type}, not text/event-stream` : ''),
		status,
		floorMs: retryAfterMs(headers.get('Retry-After'), nowMs),
	};
}

/** RFC 9110, section 10.2.3: seconds or a date. 0 for anything else. */
export function retryAfterMs(value: string | null, nowMs: number): number {
	if (!value) return 0;
	const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - nowMs;
	return ms > 0 ? ms : 0;
}
