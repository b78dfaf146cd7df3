/** What browsers and Node have, and React Native has not. */

type Listener = (event: Event) => void;

/** As much of an EventTarget as is needed: functions listen, without options. */
class PlainTarget {
	#listeners: Record<string, Set<Listener>> = {};

	addEventListener(type: string, listener: Listener): void {
		(this.#listeners[type] ??= new Set()).add(listener);
	}

	removeEventListener(type: string, listener: Listener): void {
		this.#listeners[type]?.delete(listener);
	}

	dispatchEvent(event: Event): void {
		for (const listener of this.#listeners[event.type] ?? []) {
			try {
				listener(event);
			} catch (error) {
				console.error(error); // the others are told all the same
			}
		}
	}
}

export const Target = (globalThis.EventTarget ?? PlainTarget) as typeof EventTarget;

export const createEvent = (type: string, more?: object): Event =>
	Object.assign(globalThis.Event ? new Event(type) : { type }, more) as Event;

export const createMessage = (type: string, data: unknown, lastEventId: string): MessageEvent => {
	const parts = { data, lastEventId };
	return (globalThis.MessageEvent ? new MessageEvent(type, parts) : createEvent(type, parts)) as MessageEvent;
};
