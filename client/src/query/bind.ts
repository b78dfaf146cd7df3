/** What an event means for TanStack Query's cache: which queries go stale, and when the cursor may follow. */

import type { EventMap, SSEClient } from '../core/client.js';
import { RELOAD, type RegisteredEvents } from '../types.js';
import { type CoalesceHost, Coalescer } from './coalesce.js';
import { Race } from './race.js';
import { report } from './report.js';
import { fetchQuery, isWanted, Spread } from './spread.js';
import { createSweep, type Sweep } from './sweep.js';
import type { QueryClient, QueryKey } from './tanstack.js';
import { indexTargets, type Target } from './targets.js';

export interface BindOptions<E extends EventMap = RegisteredEvents> {
	/** For each event, the keys of what it makes stale; a key stands for every query that begins with it. */
	keys: { [K in keyof E]?: (data: E[K]) => readonly QueryKey[] };
	/** All that this stream speaks of: stale when events may be lost. Default: every query of the client. */
	bound?: readonly QueryKey[];
	/** One key is fetched at most this often, in ms. Default: 1000. */
	minIntervalMs?: number;
	/**
	 * After `reload_required`, which reaches every browser at once, each query is fetched at a moment drawn from this
	 * long, in ms. Default: 2000.
	 */
	reloadJitterMs?: number;
	/**
	 * Where everything bound went stale, so many of its fetches are under way at once; one that takes longer than 5 s no
	 * longer counts. Default: 6, as many as a browser has connections to a host over HTTP/1.1.
	 */
	reloadConcurrency?: number;
}

/** Call it to unbind. */
export interface Binding {
	(): void;
	/** The position up to which every event's invalidation has been issued; '' before there is one. */
	readonly lastEventId: string;
	/** What names the stream in a store: its URL and scope. */
	readonly stream: string;
	/** Whether a query may hold, or get next, what is older than `lastEventId`. */
	isDoubtful(queryHash: string): boolean;
	/** As `SSEClient.seed`. */
	seed(lastEventId: string): boolean;
}

const DEFAULT_MIN_INTERVAL_MS = 1000;
const DEFAULT_RELOAD_JITTER_MS = 2000;
const DEFAULT_RELOAD_CONCURRENCY = 6;

/**
 * From now on, every event of `sse` invalidates what it names in `queryClient`: active queries are fetched at
 * once (in a hidden page, when it is shown), others when they are used next. Returns what ends it.
 *
 * Best called once, beside where both are made. If it is called when events have been dispatched already,
 * everything bound is called stale, since nobody knows what was missed; the same `keys` object, bound anew
 * without an event between, misses nothing.
 */
export function bindQueryClient<E extends EventMap = RegisteredEvents>(
	sse: SSEClient<E>,
	queryClient: QueryClient,
	options: BindOptions<E>,
): Binding {
	const {
		keys,
		minIntervalMs = DEFAULT_MIN_INTERVAL_MS,
		reloadJitterMs = DEFAULT_RELOAD_JITTER_MS,
		reloadConcurrency = DEFAULT_RELOAD_CONCURRENCY,
	} = options;
	const bound: Target[] = options.bound?.map((queryKey) => ({ queryKey, minIntervalMs })) ?? [{ minIntervalMs }];
	const issuing = issuingOf(sse as unknown as SSEClient<EventMap>, queryClient);
	const { coalescer } = issuing;
	issuing.spread.limit = reloadConcurrency;

	const markAll = (jitterMs: number) => {
		for (const target of bound) coalescer.add({ ...target, jitterMs });
	};
	const allStale = () => markAll(0);
	const onLost = () => markAll(reloadJitterMs); // perhaps in every browser at once
	const onMessage = ({ data: { event, data } }: { data: { event: string; data: unknown } }) => {
		// Also where it names nothing: the cursor follows.
		coalescer.gather();
		if (event === RELOAD) markAll(reloadJitterMs);
		try {
			for (const queryKey of keys[event as keyof E]?.(data as E[keyof E]) ?? []) coalescer.add({ queryKey, minIntervalMs });
		} catch (error) {
			allStale(); // which of it, nobody can say
			report(error);
		}
	};

	if (sse.hasBegun && issuing.unbound.get(keys) !== sse.lastEventId) allStale();
	sse.addEventListener('message', onMessage);
	sse.addEventListener('began', allStale);
	sse.addEventListener('lost', onLost);
	issuing.retain();

	let isBound = true;
	const unbind = () => {
		if (!isBound) return;
		isBound = false;
		sse.removeEventListener('message', onMessage);
		sse.removeEventListener('began', allStale);
		sse.removeEventListener('lost', onLost);
		coalescer.endFrame();
		issuing.unbound.set(keys, sse.lastEventId);
		issuing.release();
	};
	return Object.defineProperties(unbind, {
		lastEventId: { get: () => issuing.lastEventId },
		stream: { value: `${sse.url} ${sse.scope}` },
		isDoubtful: { value: (queryHash: string) => issuing.isDoubtful(queryHash) },
		seed: { value: (lastEventId: string) => issuing.seed(lastEventId) },
	}) as Binding;
}

/**
 * What all bindings of one stream to one cache share, also over time: how far invalidations were issued, which
 * fetches are in doubt, and what is still to be fetched.
 */
class Issuing implements CoalesceHost {
	/** Only the end of a frame moves it: everything up to it is marked stale. */
	lastEventId: string;
	/** Where each set of keys was unbound. */
	readonly unbound = new WeakMap<object, string>();
	readonly coalescer: Coalescer;
	/** For what is fetched because everything is stale. */
	readonly spread: Spread;
	#race: Race;
	#sweep: Sweep;
	#bindings = 0;
	#document = globalThis.document as Document | undefined;

	constructor(
		private readonly sse: SSEClient<EventMap>,
		private readonly queryClient: QueryClient,
	) {
		this.lastEventId = sse.lastEventId;
		this.coalescer = new Coalescer(this);
		this.spread = new Spread(this.coalescer);
		this.#sweep = createSweep(queryClient);
		this.#race = new Race((query) => this.spread.add(query));
	}

	/** Without fetching. */
	markStale(targets: Target[], done: () => void): void {
		const lastEventId = this.sse.lastEventId;
		const follow = () => {
			this.lastEventId = lastEventId;
			done();
		};
		if (!targets.length) return follow();
		const isMeant = indexTargets(targets);
		this.#sweep((query) => {
			if (!isMeant(query)) return;
			this.#race.watch(query);
			query.invalidate();
		}, follow);
	}

	refetch(targets: Target[]): void {
		for (const isSpread of [false, true]) {
			const group = targets.filter(({ jitterMs }) => (jitterMs !== undefined) === isSpread);
			if (!group[0]) continue;
			const { jitterMs } = group[0];
			const isMeant = indexTargets(group);
			this.#sweep((query) => {
				if (!isMeant(query) || !isWanted(query)) return;
				if (isSpread || this.coalescer.isPaused) this.spread.add(query, jitterMs);
				else void fetchQuery(query);
			});
		}
	}

	isHidden(): boolean {
		return !!this.#document?.hidden;
	}

	isDoubtful(queryHash: string): boolean {
		const query = this.queryClient.getQueryCache().get(queryHash);
		return !!query && this.#race.isOpen(query);
	}

	seed(lastEventId: string): boolean {
		const isSeeded = this.sse.seed(lastEventId);
		if (isSeeded) this.lastEventId = lastEventId;
		return isSeeded;
	}

	retain(): void {
		if (this.#bindings++) return;
		this.#document?.addEventListener('visibilitychange', this.#onShown);
		this.#resume();
	}

	release(): void {
		if (--this.#bindings) return;
		this.#document?.removeEventListener('visibilitychange', this.#onShown);
		this.coalescer.pause();
	}

	#resume(): void {
		this.coalescer.resume();
		this.spread.run();
	}

	#onShown = () => {
		if (!this.isHidden()) this.#resume();
	};
}

const issuings = new WeakMap<QueryClient, WeakMap<object, Issuing>>();

function issuingOf(sse: SSEClient<EventMap>, queryClient: QueryClient): Issuing {
	const ofClient = issuings.get(queryClient) ?? new WeakMap<object, Issuing>();
	issuings.set(queryClient, ofClient);
	const issuing = ofClient.get(sse) ?? new Issuing(sse, queryClient);
	ofClient.set(sse, issuing);
	return issuing;
}
