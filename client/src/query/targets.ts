/**
 * Which queries a batch of targets means, as TanStack Query matches keys: a key stands for every query that begins with
 * it, and an object in it for every object that has its members.
 *
 * The targets stand in a tree by the parts of their keys, so that a query is looked up by its own key once, however many
 * targets there are. Only what has an object in it is compared, and only with queries that begin as it does.
 */

import type { Query, QueryKey } from './tanstack.js';

/** Queries whose keys begin so; of an empty one, every query. */
export interface Target {
	queryKey: QueryKey;
	/** They are fetched at most this often. */
	minIntervalMs: number;
	/** They are not fetched at once, but within so long, and few at once. */
	jitterMs?: number;
}

interface Node {
	/** A target ends here. */
	isEnd: boolean;
	next: Map<unknown, Node>;
	/** Targets that go on with what is compared. */
	compared: QueryKey[];
}

const createNode = (): Node => ({ isEnd: false, next: new Map(), compared: [] });

/** A Map takes what is identical, which is what matching asks of all primitives but NaN, which matches nothing. */
const isCompared = (part: unknown): boolean => Object(part) === part || Number.isNaN(part);

export function indexTargets(targets: Iterable<Pick<Target, 'queryKey'>>): (query: Query) => boolean {
	const root = createNode();
	insert: for (const { queryKey } of targets) {
		let node = root;
		for (const part of queryKey) {
			if (isCompared(part)) {
				node.compared.push(queryKey);
				continue insert;
			}
			const next = node.next.get(part) ?? createNode();
			node.next.set(part, next);
			node = next;
		}
		node.isEnd = true;
	}
	return ({ queryKey }) => {
		let node: Node | undefined = root;
		for (let depth = 0; node; depth++) {
			if (node.isEnd || node.compared.some((key) => matchesKey(queryKey, key))) return true;
			// Nothing keeps an application from a query without a key.
			node = depth < queryKey?.length ? node.next.get(queryKey[depth]) : undefined;
		}
		return false;
	};
}

/** As `partialMatchKey`, which cannot be imported: each framework has it in another package. A test compares them. */
export function matchesKey(key: any, target: any): boolean {
	if (key === target) return true;
	if (!key || !target || typeof key !== 'object' || typeof target !== 'object') return false;
	if (Array.isArray(key) && Array.isArray(target) && target.length > key.length) return false;
	return Object.keys(target).every((part) => matchesKey(key[part], target[part]));
}

/** What tells a target from others, as JSON alone does not: of `undefined` and `null`, `8` and `'8'`, bigints. */
export const nameOf = ({ queryKey, jitterMs }: Omit<Target, 'minIntervalMs'>): string =>
	JSON.stringify([queryKey, jitterMs], (_, part: unknown) =>
		typeof part === 'object' ? part : `${typeof part} ${String(part)}`,
	);
