/** The client as an application sees it: what is told to whom, and when there is a stream at all. */

import { groupName } from '../tabs/channel.js';
import { type Role, Tabs, type TabsOptions } from '../tabs/leader.js';
import type { RegisteredEvents } from '../types.js';
import { Connection, type ConnectionOptions, type Mode } from './connection.js';
import { type Envelope, Feed } from './feed.js';
import { browserPlatform, type Platform } from './platform.js';
import { SSEErrorEvent, type Status } from './status.js';
import type { Block, HeadersSource, Outcome } from './transport.js';

export interface SSEClientOptions {
	/**
	 * Sent with every request; a function is asked anew for each, and once more, with `refresh: true`, when the
	 * server answered 401. Default: none.
	 */
	headers?: HeadersSource;
	/**
	 * Who the user is, e.g. a user id: tabs share a stream only within one scope. With `headers` and without a
	 * scope nothing is shared, since nobody can tell whose stream it is. Default: none.
	 */
	scope?: string;
	/** Whether the tabs of a browser share one stream. Default: true. */
	shareTabs?: boolean;
	/**
	 * Where to begin: the position that the cache was read at (`GET /v1/topics/{topicId}/cursor`, asked before
	 * the data). Default: at the newest event, and whatever was fetched before is called stale.
	 */
	initialLastEventId?: string;
	/** As for fetch. Default: `same-origin`. */
	credentials?: RequestCredentials;
	/** Default: the global one. */
	fetch?: typeof fetch;
	/** `poll` or `stream` force one. Default: `auto`, which polls only while streams do not come through. */
	mode?: Mode;
	/** How long until a stream that brought nothing yet counts as held back, in ms. Default: 8000. */
	muteAfterMs?: number;
	/** How long a stream may be silent, in ms; three of the server's heartbeats. Default: 45000. */
	silenceMs?: number;
	/** First ceiling of the drawn reconnect delay, in ms; it doubles. Default: 1000. */
	backoffBaseMs?: number;
	/** Last ceiling, in ms. Default: 30000. */
	backoffCapMs?: number;
	/** A stream that stood this long ends the memory of earlier failures, in ms. Default: 10000. */
	healthyMs?: number;
	/**
	 * How long after its first bytes a stream may bring nothing before it counts as held back, in ms; more than
	 * one of the server's heartbeats. Default: 20000.
	 */
	doubtMs?: number;
	/** Between polls, in ms; up to a quarter more. Default: 7000. */
	pollMs?: number;
	/** While polling, until the stream is tried again, in ms. Default: 60000. */
	probeMs?: number;
	/** Between the tabs' signs of life, in ms. Default: 2000. */
	beatMs?: number;
	/** A visible tab takes the stream over from a hidden one after this, in ms. Default: 1000. */
	takeoverMs?: number;
}

const DEFAULTS: ConnectionOptions & TabsOptions = {
	muteAfterMs: 8000,
	silenceMs: 45_000,
	backoffBaseMs: 1000,
	backoffCapMs: 30_000,
	healthyMs: 10_000,
	doubtMs: 20_000,
	// The server keeps a topic at hand for 10 s after its last client.
	pollMs: 7000,
	probeMs: 60_000,
	beatMs: 2000,
	takeoverMs: 1000,
};

/** The data of each event, by its name; an interface will do. */
export type EventMap = object;

/** As `on` passes it. */
type Handler<D> = (data: D, lastEventId: string) => void;

/** Our own events live beside the server's, whose names may be anything. */
const named = (event: string) => `stalecast:${event}`;

interface ClientEvents {
	/** Every event, as an envelope. */
	message: MessageEvent<Envelope>;
	error: SSEErrorEvent;
	/** `status` is another. */
	statuschange: Event;
	/**
	 * The stream begins here, at the newest event: what happened before this moment is unknown, so whatever was
	 * fetched before it may be stale. Once for a client without `initialLastEventId`.
	 */
	began: Event;
}

// It only types what EventTarget has, so there is nothing to initialize.
// oxlint-disable-next-line typescript/no-unsafe-declaration-merging, no-unused-vars
export interface SSEClient<E extends EventMap = RegisteredEvents> {
	addEventListener<K extends keyof ClientEvents>(
		type: K,
		listener: (event: ClientEvents[K]) => void,
		options?: boolean | AddEventListenerOptions,
	): void;
	removeEventListener<K extends keyof ClientEvents>(
		type: K,
		listener: (event: ClientEvents[K]) => void,
		options?: boolean | EventListenerOptions,
	): void;
}

/**
 * A resumable subscription to one stream of invalidations.
 *
 * It does nothing until `connect()`, so that it may be made where nothing may be done: on a server, at the top
 * of a module, during a render.
 */
// oxlint-disable-next-line typescript/no-unsafe-declaration-merging -- see the interface above
export class SSEClient<E extends EventMap = RegisteredEvents> extends EventTarget {
	static readonly CONNECTING = 0;
	static readonly OPEN = 1;
	static readonly CLOSED = 2;

	/** Absolute in a browser. */
	readonly url: string;
	/** Whose stream it is; see the option. */
	readonly scope: string;
	#platform: Platform;
	#feed: Feed;
	#connection: Connection;
	#tabs: Tabs;
	#status: Status = 'connecting';
	#holders = 0;
	#isRunning = false;
	#stopped: 'unauthorized' | 'closed' | undefined;
	#unlisten: (() => void) | undefined;

	/** `platform` is for tests: what stands in for the browser. */
	constructor(url: string | URL, options: SSEClientOptions = {}, platform = browserPlatform(options.fetch)) {
		super();
		const base = globalThis.document?.baseURI;
		this.url = String(base ? new URL(url, base) : url);
		this.scope = options.scope ?? '';
		this.#platform = platform;
		const settings = { ...DEFAULTS, ...definedOnly(options) };
		this.#feed = new Feed(options.initialLastEventId ?? '', platform, {
			began: () => this.dispatchEvent(new Event('began')),
			event: (envelope) => this.#dispatch(envelope),
		});
		this.#connection = new Connection(platform, this.url, settings, {
			cursor: () => this.#feed.cursor,
			receive: (blocks) => this.#receive(blocks),
			changed: () => this.#changed(),
			failed: (outcome) => this.#fail(outcome, false),
			refused: (outcome) => this.#refuse(outcome),
		});
		this.#connection.mode = options.mode ?? 'auto';
		const isShared = (options.shareTabs ?? true) && (!options.headers || options.scope !== undefined);
		this.#tabs = new Tabs(
			isShared ? platform : { ...platform, locks: undefined },
			groupName(this.url, this.scope),
			settings,
			this.#feed,
			this.#connection,
			() => this.#changed(),
		);
	}

	get status(): Status {
		return this.#status;
	}

	/** As an EventSource's. */
	get readyState(): 0 | 1 | 2 {
		if (this.#stopped) return SSEClient.CLOSED;
		const isOpen = ['live', 'follower', 'polling'].includes(this.#status);
		return isOpen ? SSEClient.OPEN : SSEClient.CONNECTING;
	}

	/** The position up to which every event was dispatched; '' before there is one. */
	get lastEventId(): string {
		return this.#feed.cursor;
	}

	/** Whether the server has answered: from then on events may be dispatched. */
	get hasBegun(): boolean {
		return this.#feed.lineage !== undefined;
	}

	/** Of this tab among those of the browser. */
	get role(): Role {
		return this.#tabs.role;
	}

	get mode(): Mode {
		return this.#connection.mode;
	}

	/** The switch: `poll` or `stream` force one, at once and in all tabs; `auto` decides by what comes through. */
	set mode(mode: Mode) {
		this.#tabs.mode = mode;
	}

	/** For `useSyncExternalStore`: told of every change of `status`. */
	readonly subscribe = (listener: () => void): (() => void) => {
		this.addEventListener('statuschange', listener);
		return () => this.removeEventListener('statuschange', listener);
	};

	readonly getSnapshot = (): Status => this.#status;

	/**
	 * Ask for the stream. It stands until everybody who asked has called what was returned; so several parts of
	 * a page may ask, and React may mount twice.
	 */
	connect(): () => void {
		this.#holders++;
		this.#update();
		let isHeld = true;
		return () => {
			if (!isHeld) return;
			isHeld = false;
			this.#holders--;
			// StrictMode, and whoever replaces one part of a page by another, asks again at once.
			this.#platform.setTimeout(() => this.#update(), 0);
		};
	}

	/** End it, whoever asked for it: at a log-out. */
	close(): void {
		this.#stop('closed');
	}

	/** Try anew at once, also after `close()` or when the server refused. Does not ask for the stream. */
	reconnect(): void {
		this.#stopped = undefined;
		if (this.#connection.isRunning) this.#connection.restart();
		this.#update();
		this.#changed();
	}

	/** Called for every event of that name. Returns what ends it. */
	on<K extends keyof E & string>(event: K, handler: Handler<E[K]>): () => void {
		const listener = (told: Event) => {
			const { data, lastEventId } = told as MessageEvent<E[K]>;
			handler(data, lastEventId);
		};
		super.addEventListener(named(event), listener);
		return () => super.removeEventListener(named(event), listener);
	}

	/**
	 * `initialLastEventId`, where it comes later: from a cache that is restored. Returns whether it was in time;
	 * if not, the stream has begun elsewhere, and the restored cache is stale.
	 */
	seed(lastEventId: string): boolean {
		if (!this.#feed.seed(lastEventId)) return false;
		if (this.#connection.isRunning) this.#connection.restart();
		return true;
	}

	// -- told by the parts

	#receive(blocks: Block[]): void {
		const fresh = this.#feed.receive(blocks);
		if (!blocks.length) return;
		this.#feed.prove();
		this.#tabs.brought(fresh);
	}

	#dispatch(envelope: Envelope): void {
		const lastEventId = this.#feed.cursor;
		this.dispatchEvent(new MessageEvent('message', { data: envelope, lastEventId }));
		this.dispatchEvent(new MessageEvent(named(envelope.event), { data: envelope.data, lastEventId }));
	}

	#fail({ message, status }: Outcome, fatal: boolean): void {
		this.dispatchEvent(new SSEErrorEvent({ message, status, fatal }));
	}

	#refuse(outcome: Outcome): void {
		// Other tabs may have better headers: they get the lead.
		this.#stop(outcome.status === 401 ? 'unauthorized' : 'closed');
		this.#fail(outcome, true);
	}

	#stop(status: 'unauthorized' | 'closed'): void {
		this.#stopped = status;
		this.#update();
		this.#changed();
	}

	#changed(): void {
		this.#tabs.tellState();
		const status = this.#currentStatus();
		if (status === this.#status) return;
		this.#status = status;
		this.dispatchEvent(new Event('statuschange'));
	}

	#currentStatus(): Status {
		if (this.#stopped) return this.#stopped;
		const { leader } = this.#tabs;
		if (!leader) return this.#connection.status;
		return leader.status === 'live' ? 'follower' : leader.status;
	}

	// -- whether there is a stream

	#update(): void {
		const isWanted = this.#holders > 0 && !this.#stopped;
		if (isWanted && !this.#unlisten) {
			this.#unlisten = this.#platform.listen((event) => {
				if (event === 'away') this.#run(false);
				else if (event === 'back') this.#run(true);
				else if (event !== 'online') this.#tabs.seen();
				if (event !== 'hidden' && event !== 'away') this.#connection.wake();
			});
			this.#run(true);
		} else if (!isWanted && this.#unlisten) {
			this.#unlisten();
			this.#unlisten = undefined;
			this.#run(false);
		}
	}

	#run(isRunning: boolean): void {
		if (isRunning === this.#isRunning) return;
		this.#isRunning = isRunning;
		if (isRunning) this.#tabs.join();
		else this.#tabs.leave();
		this.#changed();
	}
}

/** An option that is given as undefined is not given. */
function definedOnly<T extends object>(options: T): Partial<T> {
	return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<T>;
}
