/** What a client dispatches. */

export const createEvent = (type: string, more?: object): Event => Object.assign(new Event(type), more);

export const createMessage = (type: string, data: unknown, lastEventId: string): MessageEvent => {
	const parts = { data, lastEventId };
	// React Native's polyfill has no other than Event.
	return (globalThis.MessageEvent ? new MessageEvent(type, parts) : createEvent(type, parts)) as MessageEvent;
};
