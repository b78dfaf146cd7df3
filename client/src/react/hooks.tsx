import { useEffect, useRef, useSyncExternalStore } from 'react';
import type { EventMap } from '../core/client.js';
import type { Status } from '../core/status.js';
import type { RegisteredEvents } from '../types.js';
import { useSSEClient } from './provider.js';

/** Call `handler`, as it was last rendered, for every event of that name. */
export function useSSE<K extends keyof E & string, E extends EventMap = RegisteredEvents>(
	event: K,
	handler: (data: E[K], lastEventId: string) => void,
): void {
	const client = useSSEClient<E>();
	const latest = useRef(handler);
	useEffect(() => {
		latest.current = handler;
	});
	useEffect(() => client.on(event, (data, id) => latest.current(data, id)), [client, event]);
}

const onServer = (): Status => 'connecting';

export function useSSEStatus(): Status {
	const client = useSSEClient();
	return useSyncExternalStore(client.subscribe, client.getSnapshot, onServer);
}
