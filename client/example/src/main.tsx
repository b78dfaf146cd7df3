/// <reference types="vite/client" />

import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
import { SSEClient } from 'stalecast-client';
import { bindQueryClient } from 'stalecast-client/query';
import { SSEProvider } from 'stalecast-client/react';
import { App } from './app.js';
import { TOPIC_ID } from './items.js';
import './app.css';

const CURSOR_TIMEOUT_MS = 2000;

// Nothing but Stalecast makes this page fetch anything again.
const queryClient = new QueryClient({
	defaultOptions: {
		queries: {
			staleTime: Infinity,
			refetchOnMount: false,
			refetchOnWindowFocus: false,
			refetchOnReconnect: false,
		},
	},
});

/**
 * The position now. Asked before the first item is, so nothing falls between the two. Without it the page works
 * as well, but fetches everything once more when the stream begins.
 */
async function readCursor(): Promise<{ initialLastEventId?: string }> {
	try {
		const signal = AbortSignal.timeout(CURSOR_TIMEOUT_MS);
		const response = await fetch(`/v1/topics/${TOPIC_ID}/cursor`, { cache: 'no-store', signal });
		return response.ok ? { initialLastEventId: (await response.json()).cursor } : {};
	} catch {
		return {};
	}
}

const sse = new SSEClient(`/v1/sse/${TOPIC_ID}`, {
	...(await readCursor()),
	pollMs: 2000, // by default 7 s: long, to look on
});

bindQueryClient(sse, queryClient, {
	keys: {
		argument_updated: ({ id, reason }) => (reason === 'created' ? [['ids']] : [['item', String(id)]]),
	},
	bound: [['ids'], ['item']],
	minIntervalMs: 200, // by default 1 s: votes that come fast shall be seen to
});

createRoot(document.getElementById('root')!).render(
	<StrictMode>
		<QueryClientProvider client={queryClient}>
			<SSEProvider client={sse}>
				<App />
			</SSEProvider>
		</QueryClientProvider>
	</StrictMode>,
);
