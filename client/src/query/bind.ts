/** What an event means for TanStack Query's cache: which queries go stale, and when the cursor may follow. */

import type { EventMap, SSEClient } from '../core/client.js';
import { RELOAD, type RegisteredEvents } from '../types.js';
import { type Coalescer, createCoalescer } from './coalesce.js';
import { checkKeys } from './mismatch.js';
import { createRace } from './race.js';
import { report } from './report.js';
import { createSpread, fetchQuery, isWanted, type Spread } from './spread.js';
import { createSweep } from './sweep.js';
import type { QueryClient, QueryKey } from './tanstack.js';
import { indexTargets, type Target } from './targets.js';

type Static = string | number | boolean | bigint | null | undefined | { readonly [name: string]: Static } | readonly Static[];

/** Keys whose parts may be functions of the event's data; or one function of all of them. */
export type KeysOf<D> = readonly (readonly (Static | ((data: D) => unknown))[])[] | ((data: D) => readonly QueryKey[]);

export interface BindOptions<E extends EventMap = RegisteredEvents> {
	/** For each event, the keys of what it makes stale; a key stands for every query that begins with it. */
	keys: { [K in keyof E]?: KeysOf<E[K]> };
	/**
	 * All that this stream speaks of: stale when events may be lost. Default: where every entry of `keys` is a list, what
	 * its keys begin with before their first function; else nobody can say, so every query of the client.
	 */
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

const isDrawn = (part: unknown): part is (data: unknown) => unknown => typeof part === 'function';

/** What the keys of all entries begin with, whatever the data; all there is, where one of them does not show it. */
function boundOf(entries: unknown[]): readonly QueryKey[] {
	return entries[0] && entries.every(Array.isArray)
		? entries.flat().map((key: QueryKey) => key.slice(0, [...key, isDrawn].findIndex(isDrawn)))
		: [[]];
}

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
	const bound: Target[] = (options.bound ?? boundOf(Object.values(keys))).map((queryKey) => ({ queryKey, minIntervalMs }));
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
			const fill = (part: unknown) => (isDrawn(part) ? part(data) : part);
			const entry = fill(keys[event as keyof E] ?? []) as readonly QueryKey[];
			const named = entry.map((key) => key.map(fill));
			checkKeys(event, named, queryClient);
			for (const queryKey of named) coalescer.add({ queryKey, minIntervalMs });
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
		isDoubtful: { value: issuing.isDoubtful },
		seed: { value: issuing.seed },
	}) as Binding;
}

/**
 * What all bindings of one stream to one cache share, also over time: how far invalidations were issued, which
 * fetches are in doubt, and what is still to be fetched.
 */
interface Issuing {
	/** Only the end of a frame moves it: everything up to it is marked stale. */
	lastEventId: string;
	/** Where each set of keys was unbound. */
	readonly unbound: WeakMap<object, string>;
	readonly coalescer: Coalescer;
	/** For what is fetched because everything is stale. */
	readonly spread: Spread;
	isDoubtful(queryHash: string): boolean;
	seed(lastEventId: string): boolean;
	retain(): void;
	release(): void;
}

function createIssuing(sse: SSEClient<EventMap>, queryClient: QueryClient): Issuing {
	const page = globalThis.document as Document | undefined;
	const sweep = createSweep(queryClient);
	let bindings = 0;

	/** Without fetching. */
	const markStale = (targets: Target[], done: () => void) => {
		const { lastEventId } = sse;
		const follow = () => {
			issuing.lastEventId = lastEventId;
			done();
		};
		if (!targets.length) return follow();
		const isMeant = indexTargets(targets);
		sweep((query) => {
			if (!isMeant(query)) return;
			race.watch(query);
			query.invalidate();
		}, follow);
	};

	const refetch = (targets: Target[]) => {
		for (const isSpread of [false, true]) {
			const group = targets.filter(({ jitterMs }) => (jitterMs !== undefined) === isSpread);
			if (!group[0]) continue;
			const { jitterMs } = group[0];
			const isMeant = indexTargets(group);
			sweep((query) => {
				if (!isMeant(query) || !isWanted(query)) return;
				if (isSpread || coalescer.isPaused()) spread.add(query, jitterMs);
				else void fetchQuery(query);
			});
		}
	};

	const coalescer = createCoalescer({ markStale, refetch, isHidden: () => !!page?.hidden });
	const spread = createSpread(coalescer.isPaused);
	const race = createRace(spread.add);

	/** In a page that is hidden it does nothing. */
	const resume = () => {
		coalescer.resume();
		spread.run();
	};

	const issuing: Issuing = {
		lastEventId: sse.lastEventId,
		unbound: new WeakMap(),
		coalescer,
		spread,
		isDoubtful(queryHash) {
			const query = queryClient.getQueryCache().get(queryHash);
			return !!query && race.isOpen(query);
		},
		seed(lastEventId) {
			const isSeeded = sse.seed(lastEventId);
			if (isSeeded) issuing.lastEventId = lastEventId;
			return isSeeded;
		},
		retain() {
			if (bindings++) return;
			page?.addEventListener('visibilitychange', resume);
			resume();
		},
		release() {
			if (--bindings) return;
			page?.removeEventListener('visibilitychange', resume);
			coalescer.pause();
		},
	};
	return issuing;
}

const issuings = new WeakMap<QueryClient, WeakMap<object, Issuing>>();

function issuingOf(sse: SSEClient<EventMap>, queryClient: QueryClient): Issuing {
	const ofClient = issuings.get(queryClient) ?? new WeakMap<object, Issuing>();
	issuings.set(queryClient, ofClient);
	const issuing = ofClient.get(sse) ?? createIssuing(sse, queryClient);
	ofClient.set(sse, issuing);
	return issuing;
}
