/** What a client can be, and what it says when something goes wrong. */

/**
 * - `connecting`: no stream yet, or between two of them;
 * - `live`: this tab has the stream;
 * - `follower`: another tab has the stream and passes everything on;
 * - `polling`: something on the way holds streams back, so missed events are asked for every few seconds;
 * - `offline`: not connected, and the browser says that there is no network;
 * - `unauthorized`: refused with 401, also with fresh headers; `reconnect()` tries again;
 * - `closed`: by `close()`, or refused for good; `reconnect()` tries again.
 */
export type Status = 'connecting' | 'live' | 'follower' | 'polling' | 'offline' | 'unauthorized' | 'closed';

/** Of an `error` event: what happened, the HTTP status if there was one, and whether the client gave up. */
export interface Failure {
	message: string;
	status?: number | undefined;
	fatal: boolean;
}

export class SSEErrorEvent extends Event implements Failure {
	readonly message: string;
	readonly status: number | undefined;
	readonly fatal: boolean;

	constructor(failure: Failure) {
		super('error');
		this.message = failure.message;
		this.status = failure.status;
		this.fatal = failure.fatal;
	}
}
