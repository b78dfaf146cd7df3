/** What the page asks of the application's API, and how often. */

import type { Item } from '../api.js';

export type { Item };

/** The API publishes to it, the page listens to it. */
export const TOPIC_ID = 'example-board';

/** The change was made, but the API could not tell Stalecast. */
export class Untold extends Error {
	constructor(
		message: string,
		readonly item: Item,
	) {
		super(message);
	}
}

const listeners = new Set<() => void>();
let fetches = 0;

/** How often this window has read from the API; as `useSyncExternalStore` wants it. */
export const fetchCount = {
	subscribe(listener: () => void): () => void {
		listeners.add(listener);
		return () => listeners.delete(listener);
	},
	getSnapshot: (): number => fetches,
};

async function ask<T>(path: string, init?: RequestInit): Promise<T> {
	const response = await fetch(`/api/items${path}`, init);
	const body = await response.json().catch(() => ({ error: `the API answered ${response.status}` }));
	if (response.ok) return body as T;
	throw body.item ? new Untold(body.error, body.item) : new Error(body.error);
}

function read<T>(path: string): Promise<T> {
	fetches++;
	for (const listener of listeners) listener();
	return ask(path);
}

const send = (method: string, path: string, body: object): Promise<Item> =>
	ask(path, { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });

export const fetchIds = (): Promise<string[]> => read('');
export const fetchItem = (id: string): Promise<Item> => read(`/${id}`);
export const createItem = (text: string): Promise<Item> => send('POST', '', { text });
export const changeItem = (id: string, change: { text: string } | { vote: 1 | -1 }): Promise<Item> =>
	send('PATCH', `/${id}`, change);
