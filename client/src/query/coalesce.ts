/**
 * When what goes stale is fetched: what came within one frame at once, and each key only so often.
 *
 * Being called stale costs nothing and is never put off beyond the frame; being fetched costs a request.
 */

import type { QueryKey } from '@tanstack/react-query';

/** Queries whose keys begin so; with `exact`, the one query. Every query without a key. */
export interface Target {
	queryKey?: QueryKey;
	exact?: boolean;
}

export interface CoalesceHost {
	/** Of all that was gathered in a frame, perhaps nothing. */
	markStale(targets: Target[]): void;
	refetch(target: Target): void;
	isHidden(): boolean;
}

interface Waiting {
	target: Target;
	minIntervalMs: number;
}

type Timer = ReturnType<typeof setTimeout>;

const FRAME_MS = 16;
/** Keys whose last fetch is remembered; beyond it those are dropped that no longer matter. */
const REMEMBERED_LIMIT_KEYS = 1000;

const nameOf = (target: Target): string => JSON.stringify([target.queryKey, target.exact]);

export class Coalescer {
	/** Gathered in this frame. */
	#gathered = new Map<string, Waiting>();
	#frame: Timer | undefined;
	/** To be fetched: at their turn, when the page is shown, or when somebody is bound again. */
	#waiting = new Map<string, Waiting>();
	#timers = new Map<string, Timer>();
	/** When the next fetch of a key may be, by a clock that nobody sets. */
	#turns = new Map<string, number>();
	#isPaused = false;

	constructor(private readonly host: CoalesceHost) {}

	/** Stale from the end of this frame on, and fetched as soon as may be. */
	add(target: Target, minIntervalMs: number): void {
		this.#gathered.set(nameOf(target), { target, minIntervalMs });
		this.gather();
	}

	/** Have the frame end, even if with nothing. */
	gather(): void {
		this.#frame ??= setTimeout(() => this.endFrame(), FRAME_MS);
	}

	endFrame(): void {
		clearTimeout(this.#frame);
		this.#frame = undefined;
		const gathered = [...this.#gathered.values()];
		this.#gathered.clear();
		this.host.markStale(gathered.map(({ target }) => target));
		for (const { target, minIntervalMs } of gathered) this.schedule(target, minIntervalMs);
	}

	/** Fetch what is stale already: after `delayMs`, and when it is this key's turn. */
	schedule(target: Target, minIntervalMs: number, delayMs = 0): void {
		const name = nameOf(target);
		this.#waiting.set(name, { target, minIntervalMs });
		if (this.#isPaused || this.#timers.has(name)) return;
		const waitMs = Math.max(delayMs, (this.#turns.get(name) ?? 0) - performance.now());
		if (waitMs <= 0) this.#fetch(name);
		else this.#timers.set(name, setTimeout(() => this.#fetch(name), waitMs));
	}

	/** What waits for nothing but this is fetched: the page is shown, or somebody is bound again. */
	resume(): void {
		this.#isPaused = false;
		for (const name of this.#waiting.keys()) if (!this.#timers.has(name)) this.#fetch(name);
	}

	/** Fetch nothing until `resume`. */
	pause(): void {
		this.#isPaused = true;
		if (this.#frame !== undefined) this.endFrame();
		for (const timer of this.#timers.values()) clearTimeout(timer);
		this.#timers.clear();
	}

	#fetch(name: string): void {
		this.#timers.delete(name);
		const waiting = this.#waiting.get(name);
		if (!waiting || this.host.isHidden()) return;
		this.#waiting.delete(name);
		const now = performance.now();
		this.#turns.set(name, now + waiting.minIntervalMs);
		if (this.#turns.size > REMEMBERED_LIMIT_KEYS) {
			for (const [other, turn] of this.#turns) if (turn <= now) this.#turns.delete(other);
		}
		this.host.refetch(waiting.target);
	}
}
