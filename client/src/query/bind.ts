/** What an event means for TanStack Query's cache: which queries go stale, and when the cursor may follow. */

import type { Query, QueryClient, QueryKey } from '@tanstack/react-query';
import type { EventMap, SSEClient } from '../core/client.js';
import { RELOAD, type RegisteredEvents } from '../types.js';
import { Coalescer, type Target } from './coalesce.js';
import { Race } from './race.js';

export interface BindOptions<E extends EventMap = RegisteredEvents> {
	/** For each event, the keys of what it makes stale; a key stands for every query that begins with it. */
	keys: { [K in keyof E]?: (data: E[K]) => readonly QueryKey[] };
	/** All that this stream speaks of: stale when events may be lost. Default: every query of the client. */
	bound?: readonly QueryKey[];
	/** One key is fetched at most this often, in ms. Default: 1000. */
	minIntervalMs?: number;
	/**
	 * After `reload_required`, which reaches every browser at once, each fetches at a moment drawn from this
	 * long, in ms. Default: 2000.
	 */
	reloadJitterMs?: number;
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
	const { keys, minIntervalMs = DEFAULT_MIN_INTERVAL_MS, reloadJitterMs = DEFAULT_RELOAD_JITTER_MS } = options;
	const bound: Target[] = options.bound?.map((queryKey) => ({ queryKey })) ?? [{}];
	const issuing = issuingOf(sse as unknown as SSEClient<EventMap>, queryClient);
	const { coalescer } = issuing;

	const allStale = () => {
		for (const target of bound) coalescer.add(target, minIntervalMs);
	};
	const onMessage = ({ data: { event, data } }: { data: { event: string; data: unknown } }) => {
		// Also where it names nothing: the cursor follows.
		coalescer.gather();
		if (event === RELOAD) {
			issuing.markStale(bound);
			for (const target of bound) coalescer.schedule(target, minIntervalMs, Math.random() * reloadJitterMs);
		}
		try {
			for (const queryKey of keys[event as keyof E]?.(data as E[keyof E]) ?? []) coalescer.add({ queryKey }, minIntervalMs);
		} catch (error) {
			allStale(); // which of it, nobody can say
			reportError(error);
		}
	};

	if (sse.hasBegun && issuing.unbound.get(keys) !== sse.lastEventId) allStale();
	sse.addEventListener('message', onMessage);
	sse.addEventListener('began', allStale);
	sse.addEventListener('lost', allStale);
	issuing.retain();

	let isBound = true;
	const unbind = () => {
		if (!isBound) return;
		isBound = false;
		sse.removeEventListener('message', onMessage);
		sse.removeEventListener('began', allStale);
		sse.removeEventListener('lost', allStale);
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
class Issuing {
	/** Only the end of a frame moves it: everything up to it is marked stale. */
	lastEventId: string;
	/** Where each set of keys was unbound. */
	readonly unbound = new WeakMap<object, string>();
	readonly coalescer: Coalescer;
	#race: Race;
	#bindings = 0;
	#document = globalThis.document as Document | undefined;

	constructor(
		private readonly sse: SSEClient<EventMap>,
		private readonly queryClient: QueryClient,
	) {
		this.lastEventId = sse.lastEventId;
		this.coalescer = new Coalescer({
			markStale: (targets) => {
				this.markStale(targets);
				this.lastEventId = sse.lastEventId;
			},
			refetch: (target) => {
				// Not cancelled: fetches that take longer than events are apart would never end. Which of them
				// began too early, `#race` knows.
				void queryClient.refetchQueries({ ...target, type: 'active' }, { cancelRefetch: false });
			},
			isHidden: () => !!this.#document?.hidden,
		});
		this.#race = new Race(({ queryKey }) => this.coalescer.schedule({ queryKey, exact: true }, 0));
	}

	/** At once, and without fetching. */
	markStale(targets: readonly Target[]): void {
		const cache = this.queryClient.getQueryCache();
		for (const target of targets) {
			for (const query of cache.findAll(target)) this.#race.watch(query as Query);
			void this.queryClient.invalidateQueries({ ...target, refetchType: 'none' });
		}
	}

	isDoubtful(queryHash: string): boolean {
		const query = this.queryClient.getQueryCache().get(queryHash);
		return !!query && this.#race.isOpen(query as Query);
	}

	seed(lastEventId: string): boolean {
		const isSeeded = this.sse.seed(lastEventId);
		if (isSeeded) this.lastEventId = lastEventId;
		return isSeeded;
	}

	retain(): void {
		if (this.#bindings++) return;
		this.#document?.addEventListener('visibilitychange', this.#onShown);
		this.coalescer.resume();
	}

	release(): void {
		if (--this.#bindings) return;
		this.#document?.removeEventListener('visibilitychange', this.#onShown);
		this.coalescer.pause();
	}

	#onShown = () => {
		if (!this.#document?.hidden) this.coalescer.resume();
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
