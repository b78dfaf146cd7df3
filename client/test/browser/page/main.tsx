/** A page that shows items and never fetches one again by itself: whatever is right in it, the client did. */

import { QueryClient, QueryClientProvider, useQuery } from '@tanstack/react-query';
import { persistQueryClient } from '@tanstack/react-query-persist-client';
import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
import { SSEClient, type SSEClientOptions } from 'stalecast-client';
import { bindQueryClient, withCursor } from 'stalecast-client/query';
import { SSEProvider, useSSE, useSSEStatus } from 'stalecast-client/react';

/** In the query of the page's URL, as JSON. */
export interface PageConfig {
	name: string;
	url: string;
	items: string[];
	options?: Omit<SSEClientOptions, 'headers' | 'fetch'>;
	/** Headers come from `window.token(refresh)`. */
	hasToken?: boolean;
	/** Planted bug: the client forgets where it was. */
	forgets?: boolean;
	persists?: boolean;
}

declare global {
	interface Window {
		sse: SSEClient;
		token(refresh: boolean): string | Promise<string>;
		seen: { events: number; reloads: number; statuses: string[]; errors: string[] };
		login(scope: string): void;
	}
}

const config = JSON.parse(new URLSearchParams(location.search).get('config')!) as PageConfig;
const seen = { events: 0, reloads: 0, statuses: [] as string[], errors: [] as string[] };
window.seen = seen;

const forgetful: typeof fetch = (url, init) => {
	const headers = new Headers(init?.headers);
	headers.delete('Last-Event-ID');
	return fetch(url, { ...init, headers });
};

const queryClient = new QueryClient({
	defaultOptions: {
		queries: {
			staleTime: Infinity,
			gcTime: Infinity,
			retry: false,
			refetchOnMount: false,
			refetchOnWindowFocus: false,
			refetchOnReconnect: false,
		},
	},
});

function makeClient(scope: string | undefined): SSEClient {
	const sse = new SSEClient(config.url, {
		...config.options,
		...(scope === undefined ? {} : { scope }),
		...(config.forgets ? { fetch: forgetful } : {}),
		...(config.hasToken
			? { headers: async ({ refresh }) => ({ Authorization: `Bearer ${await window.token(refresh)}` }) }
			: {}),
	});
	sse.on('reload_required', () => seen.reloads++);
	sse.addEventListener('statuschange', () => seen.statuses.push(sse.status));
	sse.addEventListener('error', ({ message, status }) => seen.errors.push(`${status ?? ''} ${message}`));
	window.sse = sse;
	return sse;
}

const sse = makeClient(config.options?.scope);
const binding = bindQueryClient(sse, queryClient, { keys: { argument_updated: ({ id }) => [['item', String(id)]] } });

if (config.persists) {
	const persister = {
		persistClient: (client: unknown) => localStorage.setItem('cache', JSON.stringify(client)),
		restoreClient: () => JSON.parse(localStorage.getItem('cache') ?? 'null') ?? undefined,
		removeClient: () => localStorage.removeItem('cache'),
	};
	const [, restored] = persistQueryClient({ queryClient, persister: withCursor(persister, binding) });
	await restored;
}

async function fetchItem(id: string): Promise<number> {
	const response = await fetch(`/api/items/${id}?page=${config.name}`);
	if (!response.ok) throw new Error(`${response.status}`);
	return ((await response.json()) as { version: number }).version;
}

function Item({ id }: { id: string }) {
	const { data } = useQuery({ queryKey: ['item', id], queryFn: () => fetchItem(id) });
	return (
		<li data-id={id} data-version={data}>
			{id}: {data ?? '...'}
		</li>
	);
}

function Status() {
	useSSE('argument_updated', () => {
		seen.events++;
	});
	return <p id="status">{useSSEStatus()}</p>;
}

const root = createRoot(document.getElementById('root')!);
const show = (client: SSEClient) =>
	root.render(
		<StrictMode>
			<QueryClientProvider client={queryClient}>
				<SSEProvider client={client}>
					<Status />
					<ul>
						{config.items.map((id) => (
							<Item key={id} id={id} />
						))}
					</ul>
				</SSEProvider>
			</QueryClientProvider>
		</StrictMode>,
	);
window.login = (scope) => {
	window.sse.close();
	show(makeClient(scope));
};
show(sse);
