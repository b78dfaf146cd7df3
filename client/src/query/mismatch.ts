/** Keys that name nothing: most often an id that is a number on one side and a string on the other. */

import { warn } from '../core/warn.js';
import type { QueryClient, QueryKey } from './tanstack.js';
import { matchesKey } from './targets.js';

/** What is known of an event: whether it was said that its keys match nothing yet, or that they are as they should be. */
const known = new Map<string, 'said' | 'right'>();

/** Says so once for each event; and once more where the key would match if a number in it were a string, or the reverse. */
export const checkKeys = (event: string, keys: readonly QueryKey[], queryClient: QueryClient): void =>
	// All of it stands in here, so that all of it is dropped from a production build.
	warn(() => {
		const [key] = keys;
		if (!key || known.get(event) === 'right') return undefined;
		const queries = queryClient.getQueryCache().getAll();
		if (!queries.length) return undefined;
		// Keys are an application's own, with whatever it can hash: a BigInt, or none at all.
		const write = (value: unknown, replace: (part: unknown) => unknown) =>
			JSON.stringify(value, (_, part: unknown) => replace(part)) ?? 'null';
		const show = (value: unknown) => write(value, (part) => (typeof part === 'bigint' ? `${part}n` : part));
		const asStrings = (value: unknown): unknown =>
			JSON.parse(write(value, (part) => (/number|bigint/.test(typeof part) ? String(part) : part)));
		const wanted = keys.map((each) => [each, asStrings(each)] as const);
		let swapped: string | undefined;
		for (const { queryKey } of queries) {
			const strings = asStrings(queryKey);
			for (const [each, eachAsStrings] of wanted) {
				if (matchesKey(queryKey, each)) {
					known.set(event, 'right'); // so far: it is not looked at for ever
					return undefined;
				}
				if (!swapped && matchesKey(strings, eachAsStrings)) {
					swapped = `${event}: the key ${show(each)} matches no query, but there is ${show(queryKey)}; a number and a string differ: write String(id) in both`;
				}
			}
		}
		if (swapped) {
			known.set(event, 'right');
			return swapped;
		}
		if (known.has(event)) return undefined;
		known.set(event, 'said');
		return `${event}: no query begins with ${show(key)}. That is fine if none of it was fetched yet; else compare it with the query's key`;
	});
