/** A cursor that outlives the page: stored with the cache it describes, in one write, and never without it. */

import type { Binding } from './bind.js';

/** As much as is used of what TanStack's persisters store; see `@tanstack/query-persist-client-core`. */
export interface PersistedCache {
	clientState: { queries: { queryHash: string; state: object }[] };
}

type Promisable<T> = T | PromiseLike<T>;

export interface CachePersister<C extends PersistedCache = any> {
	persistClient(client: C): Promisable<void>;
	restoreClient(): Promisable<C | undefined>;
	removeClient(): Promisable<void>;
}

interface StoredCursor {
	stream: string;
	lastEventId: string;
}

/**
 * A persister that stores the binding's cursor with the cache, and resumes from it: after a reload of the page
 * only what changed meanwhile is fetched. What another stream or another user has stored is not restored. A
 * cache whose age nobody knows (stored without a cursor, or restored after the stream had begun) is restored
 * as stale.
 */
export function withCursor<C extends PersistedCache>(persister: CachePersister<C>, binding: Binding): CachePersister<C> {
	return {
		persistClient(client) {
			const stalecast: StoredCursor = { stream: binding.stream, lastEventId: binding.lastEventId };
			const clientState = stale(client.clientState, (query) => binding.isDoubtful(query.queryHash));
			return persister.persistClient({ ...client, clientState, stalecast } as C);
		},
		async restoreClient() {
			const stored = (await persister.restoreClient()) as (C & { stalecast?: StoredCursor }) | undefined;
			if (!stored) return undefined;
			const { stalecast, ...client } = stored;
			if (stalecast && stalecast.stream !== binding.stream) {
				await persister.removeClient();
				return undefined;
			}
			if (stalecast?.lastEventId && binding.seed(stalecast.lastEventId)) return client as unknown as C;
			return { ...client, clientState: stale(client.clientState, () => true) } as unknown as C;
		},
		removeClient: () => persister.removeClient(),
	};
}

type Dehydrated = PersistedCache['clientState'];

function stale<S extends Dehydrated>(state: S, isStale: (query: Dehydrated['queries'][number]) => boolean): S {
	const queries = state.queries.map((query) =>
		isStale(query) ? { ...query, state: { ...query.state, isInvalidated: true } } : query,
	);
	return { ...state, queries };
}
