/** A line to the server: one attempt after another, with pauses between them, until it is stopped. */

import type { Block } from './parser.js';
import { createTimer } from './platform.js';
import { attempt, DEFAULT_SILENCE_MS, type Outcome, type Request } from './transport.js';

export interface Connection {
	start(): void;
	stop(): void;
	/**
	 * Something happened that makes a new attempt promising, or an old stream doubtful: a network came back,
	 * the page was shown, the machine slept. The pause that is under way ends, except one that the server asked for by
	 * Retry-After; an attempt that has been quiet for longer than it should be is cut rather than trusted, and any
	 * where `isLost`. `sleptMs`: how long the clock stood still.
	 */
	wake(sleptMs?: number, isLost?: boolean): void;
}

/** A server that asks for more is either wrong or away for good. */
const PAUSE_LIMIT_MS = 3_600_000;

export interface Line extends Request {
	/** Asked at each attempt. */
	cursor(): string;
	/**
	 * Told after each. It returns how long to wait before the next, in milliseconds, if the server does not ask for
	 * more; and it may stop the line.
	 */
	ended(outcome: Outcome): number;
}

export function createConnection({ cursor, ended, ...request }: Line): Connection {
	const { platform, options } = request;
	let turn: object | undefined;
	/** Ends the attempt or the pause that is under way. */
	let skip = () => {};
	/** From when on a `wake` does. */
	let wakeAt = 0;
	let isPausing = false;
	const now = () => platform.performance.now();
	/** More than half: heartbeats that are rare come just so often. */
	const expect = () => {
		wakeAt = now() + (options.silenceMs ?? DEFAULT_SILENCE_MS) * 0.55;
	};

	const run = async (mine: object) => {
		const pause = createTimer(platform);
		const piece = (blocks: Block[]) => {
			// What comes too late may have waited for the machine to wake: it proves nothing of the line.
			if (now() < wakeAt) expect();
			request.piece(blocks);
		};
		while (turn === mine) {
			const controller = new AbortController();
			skip = () => controller.abort();
			isPausing = false;
			expect();
			const outcome = await attempt({ ...request, lastEventId: cursor(), controller, piece });
			if (turn !== mine) return;
			const { kind, floorMs = 0 } = outcome;
			wakeAt = now() + floorMs;
			isPausing = true;
			await new Promise<void>((resolve) => {
				skip = resolve;
				const pauseMs = Math.max(ended(outcome), floorMs);
				// Cut by `wake`: somebody waits. A turn of the loop all the same, in which a page that was frozen
				// may hear that the stream is another tab's now.
				pause(resolve, kind === 'cut' ? 0 : Math.min(pauseMs, PAUSE_LIMIT_MS));
			});
			pause();
		}
	};

	return {
		start() {
			if (!turn) void run((turn = {}));
		},
		stop() {
			turn = undefined;
			skip();
		},
		wake(sleptMs = 0, isLost = false) {
			wakeAt -= sleptMs;
			if ((isLost && !isPausing) || now() >= wakeAt) skip();
		},
	};
}
