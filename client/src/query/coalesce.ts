/**
 * When what goes stale is fetched: what came within one frame at once, and each key only so often.
 *
 * Being called stale costs nothing and is never put off beyond the frame; being fetched costs a request.
 */

import { nameOf, type Target } from './targets.js';

export interface CoalesceHost {
	/** Of all that was gathered in a frame, perhaps nothing; `done` when all of it is marked. */
	markStale(targets: Target[], done: () => void): void;
	/** All that is due at this moment, perhaps nothing. */
	refetch(targets: Target[]): void;
	isHidden(): boolean;
}

interface Key {
	/** When it may be fetched next, by a clock that nobody sets. */
	turn: number;
	/** What is to be fetched: at its turn, when the page is shown, or when somebody is bound again. */
	waiting?: Target | undefined;
}

type Timer = ReturnType<typeof setTimeout>;

const FRAME_MS = 16;

export interface Coalescer {
	/** Nothing is fetched. */
	isPaused(): boolean;
	/** Stale from the end of this frame on, and fetched as soon as may be. */
	add(target: Target): void;
	/** Have the frame end, even if with nothing. */
	gather(): void;
	endFrame(): void;
	/** What waits for nothing but this is fetched: the page is shown, or somebody is bound again. */
	resume(): void;
	/** Fetch nothing until `resume`. */
	pause(): void;
}

export function createCoalescer(host: CoalesceHost): Coalescer {
	/** Gathered in this frame, or since the marking of the last began. */
	const gathered = new Map<string, Target>();
	let frame: Timer | undefined;
	let isMarking = false;
	/** Those that wait, or were fetched a short while ago. */
	const keys = new Map<string, Key>();
	let timer: Timer | undefined;
	let isReleased = false;

	const isPaused = () => isReleased || host.isHidden();

	const gather = () => {
		frame ??= setTimeout(endFrame, FRAME_MS);
	};

	const endFrame = () => {
		clearTimeout(frame);
		frame = undefined;
		if (isMarking) return gather(); // one after the other: the cursor follows both
		isMarking = true;
		const batch = [...gathered];
		gathered.clear();
		const done = () => {
			isMarking = false;
			for (const [name, waiting] of batch) keys.set(name, { turn: keys.get(name)?.turn ?? 0, waiting });
			fetchDue();
		};
		host.markStale(batch.map(([, target]) => target), done);
	};

	const fetchDue = () => {
		clearTimeout(timer);
		if (isPaused()) return;
		const now = performance.now();
		const due: Target[] = [];
		let next = Infinity;
		for (const [name, key] of keys) {
			if (key.turn > now) {
				if (key.waiting) next = Math.min(next, key.turn);
			} else if (key.waiting) {
				due.push(key.waiting);
				// Turns that are near each other come together: each costs a pass over the cache.
				key.turn = Math.ceil((now + key.waiting.minIntervalMs) / FRAME_MS) * FRAME_MS;
				key.waiting = undefined;
			} else {
				keys.delete(name);
			}
		}
		if (next < Infinity) timer = setTimeout(fetchDue, next - now);
		host.refetch(due);
	};

	return {
		isPaused,
		gather,
		endFrame,
		add(target) {
			gathered.set(nameOf(target), target);
			gather();
		},
		resume() {
			isReleased = false;
			fetchDue();
		},
		pause() {
			isReleased = true;
			if (frame !== undefined) endFrame();
		},
	};
}
