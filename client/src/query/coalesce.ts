/**
 * When what goes stale is fetched: what came within one frame at once, and each key only so often.
 *
 * Being called stale costs nothing and is never put off beyond the frame; being fetched costs a request.
 */

import { nameOf, type Target } from './targets.js';

export interface CoalesceHost {
	/** Of all that was gathered in a frame, perhaps nothing; `done` when all of it is marked. */
	markStale(targets: Target[], done: () => void): void;
	/** All that is due at this moment. */
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

export class Coalescer {
	/** Gathered in this frame, or since the marking of the last began. */
	#gathered = new Map<string, Target>();
	#frame: Timer | undefined;
	#isMarking = false;
	/** Those that wait, or were fetched a short while ago. */
	#keys = new Map<string, Key>();
	#timer: Timer | undefined;
	#isReleased = false;

	constructor(private readonly host: CoalesceHost) {}

	/** Nothing is fetched. */
	get isPaused(): boolean {
		return this.#isReleased || this.host.isHidden();
	}

	/** Stale from the end of this frame on, and fetched as soon as may be. */
	add(target: Target): void {
		this.#gathered.set(nameOf(target), target);
		this.gather();
	}

	/** Have the frame end, even if with nothing. */
	gather(): void {
		this.#frame ??= setTimeout(() => this.endFrame(), FRAME_MS);
	}

	endFrame(): void {
		clearTimeout(this.#frame);
		this.#frame = undefined;
		if (this.#isMarking) return this.gather(); // one after the other: the cursor follows both
		this.#isMarking = true;
		const gathered = [...this.#gathered];
		this.#gathered.clear();
		const done = () => {
			this.#isMarking = false;
			for (const [name, waiting] of gathered) {
				this.#keys.set(name, { turn: this.#keys.get(name)?.turn ?? 0, waiting });
			}
			this.#fetchDue();
		};
		this.host.markStale(gathered.map(([, target]) => target), done);
	}

	/** What waits for nothing but this is fetched: the page is shown, or somebody is bound again. */
	resume(): void {
		this.#isReleased = false;
		this.#fetchDue();
	}

	/** Fetch nothing until `resume`. */
	pause(): void {
		this.#isReleased = true;
		if (this.#frame !== undefined) this.endFrame();
	}

	#fetchDue(): void {
		clearTimeout(this.#timer);
		if (this.isPaused) return;
		const now = performance.now();
		const due: Target[] = [];
		let next = Infinity;
		for (const [name, key] of this.#keys) {
			if (key.turn > now) {
				if (key.waiting) next = Math.min(next, key.turn);
			} else if (key.waiting) {
				due.push(key.waiting);
				// Turns that are near each other come together: each costs a pass over the cache.
				key.turn = Math.ceil((now + key.waiting.minIntervalMs) / FRAME_MS) * FRAME_MS;
				key.waiting = undefined;
			} else {
				this.#keys.delete(name);
			}
		}
		if (next < Infinity) this.#timer = setTimeout(() => this.#fetchDue(), next - now);
		if (due.length) this.host.refetch(due);
	}
}
