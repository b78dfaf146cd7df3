/** What a client can be, and what it says when something goes wrong. */

import type { Outcome } from './transport.js';

/**
 * - `connecting`: no stream yet, or between two of them;
 * - `live`: this tab has the stream;
 * - `follower`: another tab has the stream and passes everything on;
 * - `polling`: something on the way holds streams back, so missed events are asked for every few seconds;
 * - `offline`: the browser says that there is no network;
 * - `unauthorized`: refused with 401, also with fresh headers; `reconnect()` tries again;
 * - `closed`: by `close()`, or given up, see `shouldRetry`; `reconnect()` tries again.
 */
export type Status = 'connecting' | 'live' | 'follower' | 'polling' | 'offline' | 'unauthorized' | 'closed';

/** What happened, and whether the client gave up. */
export interface LastError extends Outcome {
	readonly fatal: boolean;
}

/** An `error` event: what happened, and whether the client gave up. */
export interface SSEErrorEvent extends Event, LastError {}
