/**
 * How many streams this page asks of one host. Over HTTP/1.1 a browser opens six connections to a host, for all its
 * tabs: six streams, and every other request waits for ever.
 */

import { warn } from './warn.js';

/** Two of six are left for all else. */
const CROWD = 4;

/** Whoever wants a stream, and its URL. */
const wanted = new Map<object, string>();

/** From now on `client` wants a stream, or none. */
export const note = (client: object, url: string, isWanted: boolean): void =>
	// All of it stands in here, so that all of it is dropped from a production build.
	warn(() => {
		const isNew = isWanted && !wanted.has(client);
		if (isWanted) wanted.set(client, url);
		else wanted.delete(client);
		if (!isNew) return undefined;
		const hostOf = (other: string) => /^\w+:\/\/[^/?#]+/.exec(other)?.[0] ?? '';
		const host = hostOf(url);
		if ([...wanted.values()].filter((other) => hostOf(other) === host).length !== CROWD) return undefined;
		// As far as the browser says how answers came: newer versions carry many streams over one connection.
		const isShared = ['navigation', 'resource'].some((type) =>
			performance
				.getEntriesByType?.(type)
				.some((entry) => entry.name.startsWith(`${host}/`) && /h[23]/.test((entry as PerformanceResourceTiming).nextHopProtocol)),
		);
		if (isShared) return undefined;
		return `${CROWD} streams from ${host || 'one host'}. Over HTTP/1.1 the sixth makes every request wait for ever: serve them by HTTP/2, or use fewer topics`;
	});
