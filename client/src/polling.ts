/**
 * Where blocks come from: the stream, and polling where streams do not come through.
 *
 * Some proxies hold a stream back. Then the client asks every few seconds for what was missed, by the stream's
 * own request with `live=false`, which the server ends where the live part would begin: an answer that ends
 * comes through. So polling loses nothing and fetches nothing needlessly; it is only later. Beside it the
 * stream is tried again, ever more rarely, until it is seen to come through as it is sent.
 */

import { backoffMs, patienceMs } from './core/backoff.js';
import { createConnection } from './core/connection.js';
import type { Block } from './core/parser.js';
import { createTimer, type Platform } from './core/platform.js';
import { warn } from './core/warn.js';
import type { Outcome, TransportOptions } from './core/transport.js';

/** `auto` changes to polling and back by itself; the others force one. */
export type Mode = 'auto' | 'stream' | 'poll';

/** What one source can be, in one tab; see `Status`. */
export type SourceStatus = 'connecting' | 'live' | 'polling' | 'offline';

export interface SourceOptions extends TransportOptions {
	/** `poll` or `stream` force one. Default: `auto`, which polls only while streams do not come through. */
	mode?: Mode | undefined;
	/** First ceiling of the drawn reconnect delay, in ms; it doubles. Default: 1000. */
	backoffBaseMs?: number | undefined;
	/** Last ceiling, in ms. Default: 30000. */
	backoffCapMs?: number | undefined;
	/**
	 * Asked about each attempt that failed: true tries again, false gives up until `reconnect()`, undefined leaves it to
	 * the default, which gives up after 204, and after 401 with fresh headers too.
	 */
	shouldRetry?: ((outcome: Outcome) => boolean | undefined) | undefined;
	/** A stream that stood this long ends the memory of earlier failures, in ms. Default: 10000. */
	healthyMs?: number | undefined;
	/**
	 * How long after its first bytes a stream may bring nothing before it counts as held back, in ms; more than
	 * one of the server's heartbeats, less than `silenceMs`. Default: 20000.
	 */
	doubtMs?: number | undefined;
	/** Between polls, in ms; up to a quarter more. Default: 7000. */
	pollMs?: number | undefined;
	/** While polling, until the stream is tried again, in ms; then twice as long, up to eight times. Default: 60000. */
	probeMs?: number | undefined;
}

export interface Source {
	readonly status: SourceStatus;
	mode: Mode;
	start(): void;
	stop(): void;
	/** If it is running: cut what stands, and try at once, from the cursor as it is now. */
	restart(): void;
	/** Something happened that makes an attempt promising, or a stream doubtful: see a connection's. */
	wake(): void;
}

/** What comes this long after the first piece was not held back with it. */
const PROOF_MS = 1000;
const PROBE_LIMIT = 8;

/** Whoever refuses is asked ever more rarely, up to this, in ms: a router forgets a container while it is replaced. */
const REFUSED_CAP_MS = 300_000;

/** Between two looks at the clocks, in ms. */
const TICK_MS = 2000;
/** A look that comes so much later, in ms, comes from a machine that slept, or a page that was held up. */
const SLEEP_MS = 5000;

export interface SourceParts {
	platform: Platform;
	url: string;
	options: SourceOptions;
	/** Where to go on from; '' for the newest event. */
	cursor(): string;
	/** Told of what came, in each piece: nothing in a heartbeat. */
	receive(blocks: Block[]): void;
	/** Told of each change of its status. */
	changed(): void;
	/** Told of each attempt that failed: the source tries again, unless that is `fatal`: then whoever is told stops it. */
	failed(outcome: Outcome): void;
}

export function createSource({ platform, url, options, cursor, receive, changed, failed }: SourceParts): Source {
	const {
		backoffBaseMs = 1000,
		backoffCapMs = 30_000,
		healthyMs = 10_000,
		doubtMs = 20_000,
		// The server keeps a topic at hand for 10 s after its last client.
		pollMs = 7000,
		probeMs = 60_000,
	} = options;
	let { mode = 'auto' } = options;
	let isRunning = false;
	/** The newest attempt has a stream, and what comes through counts. */
	let isLive = false;
	/** Undefined while there is no polling. */
	let pollWorks: boolean | undefined;
	/** When the stream that stands brought something first. */
	let firstAt: number | undefined;
	let retryMs = 0;
	let failures = 0;
	/** Streams that were held back on the way, since one came through. */
	let muted = 0;
	const doubtful = createTimer(platform);
	/** When what fails now began to. */
	let failingSince = 0;
	const ticker = createTimer(platform);
	const isOnline = () => platform.navigator?.onLine !== false;
	let wasOnline = isOnline();

	/** The stream may be held back somewhere. */
	const doubt = () => {
		if (mode !== 'auto') return;
		muted++;
		isLive = false;
		poll();
		changed();
	};
	const poll = () => {
		pollWorks ??= false;
		polling.start();
	};
	const stopPolling = () => {
		polling.stop();
		pollWorks = undefined;
	};
	/** No stream stands any more. */
	const lose = () => {
		isLive = false;
		firstAt = undefined;
		doubtful();
	};
	const tell = (outcome: Outcome) => {
		if (outcome.kind === 'cut') return;
		failed({ ...outcome, fatal: !shouldRetry(outcome) });
	};
	const shouldRetry = (outcome: Outcome): boolean => {
		try {
			const answer = options.shouldRetry?.(outcome);
			if (answer !== undefined) return answer;
		} catch (error) {
			warn('shouldRetry threw', error);
		}
		return ![204, 401].includes(outcome.status!);
	};
	/** Full jitter where something fails; a refusal stands for a while, so that is half a pause at least. */
	const pauseAfter = ({ kind }: Outcome): number => {
		const now = platform.performance.now();
		if (!failures) failingSince = now;
		const draw = platform.Math.random();
		const patience = patienceMs(now - failingSince);
		const pauseMs = backoffMs(backoffBaseMs, backoffCapMs, failures++, draw);
		if (kind === 'refused') return (Math.min(REFUSED_CAP_MS, patience) * (1 + draw)) / 2;
		return Math.min(pauseMs, Math.max(backoffBaseMs, patience));
	};

	/** The network that stood is gone, or there is another: so are the lines of before, whatever they say. */
	const wake = (sleptMs = 0) => {
		const isLost = isOnline() !== wasOnline;
		wasOnline = isOnline();
		stream.wake(sleptMs, isLost);
		polling.wake(sleptMs, isLost);
		if (isLost) changed();
	};
	/** Of the two clocks the one may be set, the other stands still while a machine sleeps. */
	const tick = () => {
		const steady = platform.performance.now();
		const wall = platform.Date.now();
		ticker(() => {
			const steadyMs = platform.performance.now() - steady;
			const standstillMs = Math.max(0, platform.Date.now() - wall - steadyMs);
			tick();
			if (steadyMs + standstillMs > TICK_MS + SLEEP_MS || isOnline() !== wasOnline) wake(standstillMs);
		}, TICK_MS);
	};

	const parts = {
		platform,
		options,
		cursor,
		retry: (ms: number) => {
			retryMs = ms;
		},
	};
	const piece = (blocks: Block[]) => {
		const now = platform.performance.now();
		if (firstAt === undefined) {
			// First pieces prove little: many proxies let just those through, with the headers.
			firstAt = now;
			doubtful(doubt, doubtMs);
		} else if (now - firstAt >= PROOF_MS) {
			doubtful();
			muted = 0;
			stopPolling();
		}
		const wasLive = isLive;
		isLive = pollWorks === undefined;
		receive(blocks);
		if (isLive !== wasLive) changed();
	};
	const stream = createConnection({
		...parts,
		url,
		piece,
		ended(outcome) {
			// Not where nothing came.
			if (platform.performance.now() - firstAt! >= healthyMs) failures = 0;
			lose();
			tell(outcome);
			if (outcome.kind === 'mute' && isRunning) doubt();
			changed();
			const pauseMs = pauseAfter(outcome);
			const probeAfterMs = pollWorks === undefined ? 0 : backoffMs(probeMs, probeMs * PROBE_LIMIT, muted - 1, 1);
			return Math.max(pauseMs, probeAfterMs, retryMs);
		},
	});

	const question = url + (url.includes('?') ? '&' : '?') + 'live=false';
	const polling = createConnection({
		...parts,
		url: question,
		piece: receive,
		ended(outcome) {
			pollWorks = outcome.kind === 'ended';
			let pauseMs = 0;
			if (pollWorks) {
				failures = 0;
			} else {
				tell(outcome);
				if (outcome.kind === 'refused') pauseMs = pauseAfter(outcome);
				if (!outcome.floorMs && mode === 'auto') {
					// It is not the stream, then: there is no way to the server at all.
					stopPolling();
					stream.wake();
				}
			}
			changed();
			// Up to a quarter more: tabs and browsers that began together shall not stay together.
			return Math.max(pauseMs, pollMs * (1 + platform.Math.random() / 4));
		},
	});

	const start = () => {
		isRunning = true;
		tick();
		if (mode === 'poll') poll();
		else stream.start();
	};
	const stop = () => {
		isRunning = false;
		ticker();
		stream.stop();
		stopPolling();
		lose();
	};
	const restart = () => {
		if (!isRunning) return;
		stop();
		start();
	};

	return {
		get status() {
			if (!isOnline()) return 'offline';
			if (isLive) return 'live';
			return pollWorks ? 'polling' : 'connecting';
		},
		get mode() {
			return mode;
		},
		set mode(wanted) {
			if (wanted === mode) return;
			mode = wanted;
			restart();
		},
		start,
		stop,
		restart,
		wake: () => wake(),
	};
}
