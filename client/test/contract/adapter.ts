/**
 * Our client behind the small HTTP interface by which launchdarkly's sse-contract-tests drive any client.
 *
 * Source: github.com/launchdarkly/sse-contract-tests, docs/service_spec.md.
 */

import { createServer, type IncomingMessage, type Server } from 'node:http';
import { read, type Reader } from './reader.js';

/** What of the optional we have; and what not, the list of explained tests says. */
const CAPABILITIES = ['bom', 'headers', 'last-event-id', 'read-timeout', 'restart', 'server-directed-shutdown-request'];

/** Of a stream that is asked for. */
interface Params {
	streamUrl: string;
	callbackUrl: string;
	initialDelayMs?: number | null;
	readTimeoutMs?: number | null;
	lastEventId?: string;
	headers?: Record<string, string>;
}

async function json(request: IncomingMessage): Promise<unknown> {
	let text = '';
	for await (const piece of request.setEncoding('utf8')) text += piece;
	return JSON.parse(text);
}

function open({ streamUrl, callbackUrl, initialDelayMs, readTimeoutMs, lastEventId, headers }: Params): Reader {
	let count = 0;
	/** One call after another, so that whoever reads them sees what happened first first. */
	let told: Promise<unknown> = Promise.resolve();
	const tell = (message: object) => {
		const url = `${callbackUrl}/${++count}`;
		told = told.then(() => fetch(url, { method: 'POST', body: JSON.stringify(message) })).catch(() => {});
	};
	return read(streamUrl, {
		headers,
		lastEventId,
		backoffBaseMs: initialDelayMs ?? undefined,
		silenceMs: readTimeoutMs ?? undefined,
		hear: ({ type, data, lastEventId: id }) => tell({ kind: 'event', event: { type, data, id } }),
		fail: ({ message }) => tell({ kind: 'error', error: message }),
	});
}

export function createAdapter(): Server {
	const readers = new Map<string, Reader>();
	let count = 0;
	const server = createServer(async (request, response) => {
		const { method, url = '/' } = request;
		const reader = readers.get(url);
		const answer = (status: number, headers: Record<string, string> = {}, body = '') =>
			response.writeHead(status, headers).end(body);
		try {
			if (url === '/' && method === 'GET') {
				answer(200, { 'Content-Type': 'application/json' }, JSON.stringify({ capabilities: CAPABILITIES }));
			} else if (url === '/' && method === 'POST') {
				const location = `/streams/${++count}`;
				readers.set(location, open((await json(request)) as Params));
				answer(201, { Location: location });
			} else if (!reader) {
				answer(404);
			} else if (method === 'DELETE') {
				reader.stop();
				readers.delete(url);
				answer(204);
			} else if (((await json(request)) as { command: string }).command === 'restart') {
				reader.restart();
				answer(202);
			} else {
				answer(400);
			}
		} catch (error) {
			answer(400, {}, String(error));
		}
	});
	server.on('close', () => {
		for (const reader of readers.values()) reader.stop();
	});
	return server;
}
