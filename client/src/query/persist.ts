/** A cursor that outlives the page: stored with the cache it describes, in one write, and never without it. */

import type { DehydratedState } from '@tanstack/react-query';
import type { Binding } from './bind.js';

/** What TanStack's persisters store; see `@tanstack/query-persist-client-core`. */
export interface PersistedCache {
	timestamp: number;
	buster: string;
	clientState: DehydratedState;
}

type Promisable<T> = T | PromiseLike<T>;

export interface CachePersister {
	persistClient(client: PersistedCache): Promisable<void>;
	restoreClient(): Promisable<PersistedCache | undefined>;
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
export function withCursor(persister: CachePersister, binding: Binding): CachePersister {
	return {
		persistClient(client) {
			const stalecast: StoredCursor = { stream: binding.stream, lastEventId: binding.lastEventId };
			const clientState = stale(client.clientState, (query) => binding.isDoubtful(query.queryHash));
			return persister.persistClient({ ...client, clientState, stalecast } as PersistedCache);
		},
		async restoreClient() {
			const stored = (await persister.restoreClient()) as (PersistedCache & { stalecast?: StoredCursor }) | undefined;
			if (!stored) return undefined;
			const { stalecast, ...client } = stored;
			if (stalecast && stalecast.stream !== binding.stream) {
				await persister.removeClient();
				return undefined;
			}
			if (stalecast?.lastEventId && binding.seed(stalecast.lastEventId)) return client;
			return { ...client, clientState: stale(client.clientState, () => true) };
		},
		removeClient: () => persister.removeClient(),
	};
}

type Dehydrated = DehydratedState['queries'][number];

function stale(state: DehydratedState, isStale: (query: Dehydrated) => boolean): DehydratedState {
	const queries = state.queries.map((query) =>
		isStale(query) ? { ...query, state: { ...query.state, isInvalidated: true } } : query,
	);
	return { ...state, queries };
}
