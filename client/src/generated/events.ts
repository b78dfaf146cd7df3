// Generated from `stalecast schema` by `npm run generate`: change app/contracts.py, not this file.

/** The JSON in the data field of each Server-Sent Event. */
export type SseEnvelope = ArgumentUpdatedEnvelope | ReloadRequiredEnvelope | PositionEnvelope;

export interface ArgumentUpdatedEnvelope {
	event: 'argument_updated';
	data: Invalidation;
}

/** The data of an event: which thing is stale and why. Never the thing itself. */
export interface Invalidation {
	/** Which resource went stale. */
	id: string | number;
	/** Why, as a short word the client may branch on. */
	reason: string;
}

export interface ReloadRequiredEnvelope {
	event: 'reload_required';
	data: ReloadData;
}

/** The data of `reload_required`: no id, because everything of the topic may be stale. */
export interface ReloadData {
	/** `trimmed`, `overflow`, `invalid_id`, `unreadable`, or a producer's own word. */
	reason: string;
}

export interface PositionEnvelope {
	event: 'position';
	data: PositionData;
}

/** The data of `position`: nothing. What counts is the `id:` of its block, from where a client resumes. */
export type PositionData = { [x: string]: never };

/** The data of each event that an application hears of, by its name: a position is told to nobody. */
export type ServerEvents = { [E in SseEnvelope as Exclude<E['event'], 'position'>]: E['data'] };
