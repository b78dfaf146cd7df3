/** What browsers and Node have, and React Native only with a polyfill. */

export const Target =
	globalThis.EventTarget ??
	(class {
		constructor() {
			throw new TypeError("no EventTarget here: import 'event-target-polyfill' first");
		}
	} as never);

export const createEvent = (type: string, more?: object): Event => Object.assign(new Event(type), more);

export const createMessage = (type: string, data: unknown, lastEventId: string): MessageEvent => {
	const parts = { data, lastEventId };
	return (globalThis.MessageEvent ? new MessageEvent(type, parts) : createEvent(type, parts)) as MessageEvent;
};
