/** The client in a React tree: which one, and for how long it has a stream. */

import { createContext, type ReactNode, useContext, useEffect } from 'react';
import type { EventMap, SSEClient } from '../core/client.js';
import type { RegisteredEvents } from '../types.js';

// oxlint-disable-next-line typescript/no-explicit-any: whichever events it has; the hooks say which they mean
type AnyClient = SSEClient<any>;

const SSEContext = createContext<AnyClient | undefined>(undefined);

/**
 * The stream stands while at least one provider of its client is mounted. Nothing happens on a server, and
 * nothing twice in StrictMode.
 */
export function SSEProvider({ client, children }: { client: AnyClient; children?: ReactNode }): ReactNode {
	useEffect(() => client.connect(), [client]);
	return <SSEContext.Provider value={client}>{children}</SSEContext.Provider>;
}

/** Throws outside of an `<SSEProvider>`. */
export function useSSEClient<E extends EventMap = RegisteredEvents>(): SSEClient<E> {
	const client = useContext(SSEContext);
	if (!client) throw new Error('useSSE and useSSEStatus need an <SSEProvider client={...}> around them');
	return client as SSEClient<E>;
}
