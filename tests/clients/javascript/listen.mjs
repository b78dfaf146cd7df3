/**
 * One library on one stream, with the handler that README has: `node listen.mjs LIBRARY URL`.
 *
 * A line of JSON for each message that the library hands over, and one for what the handler made of it. Every library is
 * used as its own documentation says; where a setting is needed, README's table names it.
 */

import { EventSource } from 'eventsource';
import { createEventSource } from 'eventsource-client';
import launchDarkly from 'launchdarkly-eventsource';
import ReconnectingEventSource from 'reconnecting-eventsource';

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

function onMessage({ data }) {
	say({ message: data });
	const { event, data: what } = JSON.parse(data);
	if (event === 'reload_required') say({ reload: what.reason });
	else if (event === 'argument_updated') say({ heard: what.id });
}

const libraries = {
	eventsource: (url) => {
		new EventSource(url).onmessage = onMessage;
	},
	'eventsource-client': (url) => {
		createEventSource({ url, onMessage });
	},
	'fetch-event-source': async (url) => {
		// It was written for browsers.
		globalThis.window = globalThis;
		globalThis.document = Object.assign(new EventTarget(), { hidden: false });
		const { fetchEventSource } = await import('@microsoft/fetch-event-source');
		await fetchEventSource(url, {
			onmessage: onMessage,
			onclose() {
				throw new Error('a clean end: come again');
			},
		});
	},
	'launchdarkly-eventsource': (url) => {
		const source = new launchDarkly.EventSource(url);
		source.onmessage = onMessage;
		source.onerror = () => {}; // without a listener it throws
	},
	'reconnecting-eventsource': (url) => {
		const source = new ReconnectingEventSource(url, { eventSourceClass: EventSource });
		source.onmessage = onMessage;
		// After an error page it makes a new EventSource, from the last id of what somebody listens to.
		source.addEventListener('position', () => {});
	},
};

const [library, url] = process.argv.slice(2);
await libraries[library](url);
