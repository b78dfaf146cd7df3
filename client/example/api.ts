/**
 * The application's own API: a database in memory, and an event for each change.
 *
 * The event only says which argument is stale. What it says now, pages ask here.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Connect, Plugin } from 'vite';
import { TOPIC_ID } from './src/items.js';

export interface Item {
	id: string;
	text: string;
	votes: number;
	/** Grows with every change. */
	version: number;
}

export interface ApiOptions {
	stalecastUrl: string;
	/** The server's STALECAST_PUBLISH_TOKEN. */
	publishToken: string;
}

const TEXT_LIMIT_CHARS = 280;
const ITEM_LIMIT = 50;
const BODY_LIMIT_BYTES = 8192;
/** Somebody waits for the answer. */
const PUBLISH_TIMEOUT_MS = 2000;
/** Between attempts to tell what could not be told. */
const RETRY_MS = 1000;

const TEXTS: [text: string, votes: number][] = [
	['Sunday is the only day on which many families have time together.', 12],
	['Before exams, students need a warm and quiet place.', 8],
	['The staff deserve a day that everybody has off.', 9],
	['Open for three months and count the visitors, then decide.', 15],
	['Most of what people borrow they could borrow on a Saturday.', 3],
];

class ApiError extends Error {
	constructor(
		readonly status: number,
		message: string,
		readonly more: object = {},
	) {
		super(message);
	}
}

/** In `vite` and in `vite preview`. */
export function api(options: ApiOptions): Plugin {
	const board = new Board(options);
	const handle: Connect.NextHandleFunction = (request, response) => void answer(board, request, response);
	return {
		name: 'example-api',
		configureServer: ({ middlewares }) => void middlewares.use('/api', handle),
		configurePreviewServer: ({ middlewares }) => void middlewares.use('/api', handle),
	};
}

class Board {
	#items = new Map<string, Item>();
	/** Changed, but Stalecast could not be told yet. At most one for each item and reason. */
	#untold = new Map<string, { id: string; reason: string }>();
	#retry: ReturnType<typeof setTimeout> | undefined;

	constructor(private readonly options: ApiOptions) {
		for (const [text, votes] of TEXTS) this.#add(text, votes);
	}

	ids(): string[] {
		return [...this.#items.keys()];
	}

	item(id: string): Item {
		const item = this.#items.get(id);
		if (!item) throw new ApiError(404, `there is no argument ${JSON.stringify(id.slice(0, 40))}`);
		return item;
	}

	async create(body: Record<string, unknown>): Promise<Item> {
		refuseUnknown(body, ['text']);
		if (this.#items.size >= ITEM_LIMIT) throw new ApiError(409, `the board is full: it holds ${ITEM_LIMIT} arguments`);
		const item = this.#add(validText(body.text), 0);
		await this.#tell(item, 'created');
		return item;
	}

	async change(id: string, body: Record<string, unknown>): Promise<Item> {
		const old = this.item(id);
		refuseUnknown(body, ['text', 'vote']);
		const { text, vote } = body;
		if ((text === undefined) === (vote === undefined)) throw new ApiError(422, 'send either `text` or `vote`');
		if (vote !== undefined && vote !== 1 && vote !== -1) throw new ApiError(422, '`vote` must be 1 or -1');
		const item: Item = {
			...old,
			text: text === undefined ? old.text : validText(text),
			votes: old.votes + (vote ?? 0),
			version: old.version + 1,
		};
		this.#items.set(id, item);
		await this.#tell(item, vote === undefined ? 'edited' : 'voted');
		return item;
	}

	#add(text: string, votes: number): Item {
		const item = { id: String(this.#items.size + 1), text, votes, version: 1 };
		this.#items.set(item.id, item);
		return item;
	}

	/** After the change: who hears of it must find it here. */
	async #tell(item: Item, reason: string): Promise<void> {
		try {
			await this.#publish(item.id, reason);
		} catch (error) {
			this.#untold.set(`${item.id} ${reason}`, { id: item.id, reason });
			this.#retryLater();
			const why = error instanceof Error ? error.message : String(error);
			throw new ApiError(
				502,
				`The change was kept, but Stalecast could not be told: ${why}. Other windows hear of it once it can.`,
				{ item },
			);
		}
	}

	/** Throws an Error whose message says why not. */
	async #publish(id: string, reason: string): Promise<void> {
		const { stalecastUrl, publishToken } = this.options;
		if (!publishToken) throw new Error('this API was started without STALECAST_PUBLISH_TOKEN');
		let response: Response;
		try {
			response = await fetch(new URL(`/v1/topics/${TOPIC_ID}/events`, stalecastUrl), {
				method: 'POST',
				headers: { Authorization: `Bearer ${publishToken}`, 'Content-Type': 'application/json' },
				body: JSON.stringify({ event: 'argument_updated', data: { id, reason } }),
				signal: AbortSignal.timeout(PUBLISH_TIMEOUT_MS),
			});
		} catch {
			throw new Error(`nothing answers at ${stalecastUrl}`);
		}
		if (!response.ok) throw new Error(`it answered ${response.status}`);
	}

	// An application with a database keeps these there (an outbox), or publishes in the same Redis transaction.
	#retryLater(): void {
		if (this.#retry) return;
		this.#retry = setTimeout(async () => {
			try {
				for (const [key, { id, reason }] of this.#untold) {
					await this.#publish(id, reason);
					this.#untold.delete(key);
				}
			} catch {
				// still away
			}
			this.#retry = undefined;
			if (this.#untold.size) this.#retryLater();
		}, RETRY_MS);
	}
}

async function answer(board: Board, request: IncomingMessage, response: ServerResponse): Promise<void> {
	const send = (status: number, body: unknown) => {
		response.writeHead(status, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' });
		response.end(JSON.stringify(body));
	};
	try {
		const { pathname } = new URL(request.url ?? '/', 'http://localhost');
		const [, collection, id, ...rest] = pathname.split('/');
		if (collection !== 'items' || rest.length || id === '') {
			throw new ApiError(404, 'there is only /api/items and /api/items/{id}');
		}
		const { method } = request;
		if (id === undefined) {
			if (method === 'GET') return send(200, board.ids());
			if (method === 'POST') return send(201, await board.create(await readJson(request)));
			response.setHeader('Allow', 'GET, POST');
		} else {
			if (method === 'GET') return send(200, board.item(id));
			if (method === 'PATCH') return send(200, await board.change(id, await readJson(request)));
			response.setHeader('Allow', 'GET, PATCH');
		}
		throw new ApiError(405, `${method} is not possible here`);
	} catch (error) {
		if (error instanceof ApiError) return send(error.status, { error: error.message, ...error.more });
		console.error(error);
		send(500, { error: 'the API failed; its terminal says why' });
	}
}

async function readJson(request: IncomingMessage): Promise<Record<string, unknown>> {
	// Other sites' pages cannot send this type without being asked whether they may.
	if (!/^application\/json\b/i.test(request.headers['content-type'] ?? '')) {
		throw new ApiError(415, 'send Content-Type: application/json');
	}
	const chunks: Buffer[] = [];
	let size = 0;
	for await (const chunk of request as AsyncIterable<Buffer>) {
		size += chunk.length;
		if (size > BODY_LIMIT_BYTES) throw new ApiError(413, `the body is larger than ${BODY_LIMIT_BYTES} bytes`);
		chunks.push(chunk);
	}
	let body: unknown;
	try {
		body = JSON.parse(Buffer.concat(chunks).toString());
	} catch {
		throw new ApiError(400, 'the body is not JSON');
	}
	if (typeof body !== 'object' || body === null || Array.isArray(body)) throw new ApiError(422, 'send a JSON object');
	return body as Record<string, unknown>;
}

function refuseUnknown(body: Record<string, unknown>, known: string[]): void {
	const unknown = Object.keys(body).find((key) => !known.includes(key));
	if (unknown !== undefined) throw new ApiError(422, `unknown field ${JSON.stringify(unknown.slice(0, 40))}`);
}

function validText(value: unknown): string {
	const text = typeof value === 'string' ? value.trim() : '';
	if (!text || text.length > TEXT_LIMIT_CHARS) {
		throw new ApiError(422, `\`text\` must be 1 to ${TEXT_LIMIT_CHARS} characters`);
	}
	return text;
}
