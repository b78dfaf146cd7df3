/** The client as an application sees it: what is told to whom, and when there is a stream at all. */

import type { Mode } from '../polling.js';
import { groupName } from '../tabs/channel.js';
import { createTabs, type Role, type Tabs, type TabsOptions } from '../tabs/leader.js';
import type { RegisteredEvents } from '../types.js';
import { note } from './crowd.js';
import { createFeed, type Envelope, type Feed } from './feed.js';
import type { Platform } from './platform.js';
import type { LastError, SSEErrorEvent, Status } from './status.js';
import { createEvent, createMessage } from './events.js';
import type { Outcome } from './transport.js';
import { warn } from './warn.js';

export interface SSEClientOptions extends TabsOptions {
	/**
	 * Who the user is, e.g. a user id: tabs share a stream only within one scope. With `headers` and without a
	 * scope nothing is shared, since nobody can tell whose stream it is. Default: none.
	 */
	scope?: string | undefined;
	/** Whether the tabs of a browser share one stream. Default: true. */
	shareTabs?: boolean | undefined;
	/**
	 * Where to begin: the position that the cache was read at (`GET /v1/topics/{topicId}/cursor`, asked before
	 * the data). Default: at the newest event, and whatever was fetched before is called stale.
	 */
	initialLastEventId?: string | undefined;
}

/** The data of each event, by its name; an interface will do. */
export type EventMap = object;

/** As `on` passes it. */
type Handler<D> = (data: D, lastEventId: string) => void;

/** Every event there is, told apart by `event`. */
export type EnvelopeOf<E extends EventMap> = [keyof E] extends [never]
	? Envelope
	: { [K in keyof E & string]: { event: K; data: E[K] } }[keyof E & string];

interface ClientEvents<E extends EventMap> {
	/** Every event, as an envelope. */
	message: MessageEvent<EnvelopeOf<E>>;
	error: SSEErrorEvent;
	/** `status` is another. */
	statuschange: Event;
	/**
	 * The stream begins here, at the newest event: what happened before this moment is unknown, so whatever was
	 * fetched before it may be stale. Once for a client without `initialLastEventId`.
	 */
	began: Event;
	/** The client gave up: what happens from now on is told to nobody, so whatever was fetched may be stale. */
	lost: Event;
}

// Said before the class below fails for want of it.
warn(() => (globalThis.EventTarget ? '' : "React Native has no EventTarget: import 'event-target-polyfill' first"));

/** Absolute where there is a page or a worker; on a server nothing is asked, so anything will do. */
function resolve(url: string | URL, { document, location }: Platform): string {
	// What was made of a blob stands beside the page that made it.
	const base = (document?.baseURI ?? location?.href)?.replace(/^blob:/, '');
	try {
		return String(base ? new URL(url, base) : url);
	} catch {
		throw new TypeError(`${url} is no absolute URL`);
	}
}

// It only types what EventTarget has, so there is nothing to initialize.
// oxlint-disable-next-line typescript/no-unsafe-declaration-merging, no-unused-vars
export interface SSEClient<E extends EventMap = RegisteredEvents> {
	addEventListener<K extends keyof ClientEvents<E>>(
		type: K,
		listener: (event: ClientEvents<E>[K]) => void,
		options?: boolean | AddEventListenerOptions,
	): void;
	removeEventListener<K extends keyof ClientEvents<E>>(
		type: K,
		listener: (event: ClientEvents<E>[K]) => void,
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
	/** Absolute in a browser. */
	readonly url: string;
	/** Whose stream it is; see the option. */
	readonly scope: string;
	#feed: Feed;
	#tabs: Tabs;
	#status: Status = 'connecting';
	#holders = 0;
	#stopped: 'unauthorized' | 'closed' | undefined;
	#lastError: LastError | undefined;

	/** `platform` is for tests: what stands in for the browser. */
	constructor(url: string | URL, options: SSEClientOptions = {}, platform: Platform = globalThis) {
		super();
		const { scope = '', shareTabs = true, initialLastEventId } = options;
		this.url = resolve(url, platform);
		this.scope = scope;
		this.#feed = createFeed(platform, (envelope) => {
			for (const type of envelope ? ['message', NAMED + envelope.event] : ['began']) {
				this.dispatchEvent(createMessage(type, envelope, this.lastEventId));
			}
		});
		const isShared = shareTabs && (!options.headers || options.scope !== undefined);
		const group = isShared ? groupName(this.url, this.scope) : undefined;
		const failed = (outcome: Outcome) => {
			const { fatal, message, status } = (this.#lastError = outcome as LastError);
			// Other tabs may have better headers: they get the lead.
			if (fatal) this.#stop(status === 401 ? 'unauthorized' : 'closed');
			this.dispatchEvent(createEvent('error', this.#lastError));
			if (fatal) {
				warn(() => `gave up on ${this.url} until reconnect(): ${message}`);
				this.dispatchEvent(createEvent('lost'));
			}
		};
		this.#tabs = createTabs({
			platform,
			name: group,
			url: this.url,
			options,
			feed: this.#feed,
			told: () => this.#changed(),
			failed,
		});
		if (initialLastEventId) this.seed(initialLastEventId);
	}

	get status(): Status {
		return this.#status;
	}

	/** What failed last, until something comes through again, or `reconnect()`. */
	get lastError(): LastError | undefined {
		return this.#lastError;
	}

	/** As an EventSource's. */
	get readyState(): 0 | 1 | 2 {
		return this.#stopped ? 2 : /live|follower|polling/.test(this.#status) ? 1 : 0;
	}

	/** The position up to which every event was dispatched; '' before there is one. */
	get lastEventId(): string {
		return this.#feed.cursor;
	}

	/** Whether the server has answered: from then on events may be dispatched. */
	get hasBegun(): boolean {
		return this.#feed.hasBegun;
	}

	/** Of this tab among those of the browser; undefined while it has no part. */
	get role(): Role | undefined {
		return this.#tabs.role;
	}

	get mode(): Mode {
		return this.#tabs.source.mode;
	}

	/** The switch: `poll` or `stream` force one, at once and in all tabs; `auto` decides by what comes through. */
	set mode(mode: Mode) {
		this.#tabs.use(mode);
	}

	/** For `useSyncExternalStore`: told of every change of `status`. */
	readonly subscribe = (listener: () => void): (() => void) => this.#listen('statuschange', listener);

	readonly getSnapshot = (): Status => this.#status;

	/**
	 * Ask for the stream. It stands until everybody who asked has called what was returned; so several parts of
	 * a page may ask, and React may mount twice.
	 */
	connect(): () => void {
		let held = 1;
		this.#holders++;
		this.#update();
		return () => {
			this.#holders -= held;
			held = 0;
			// StrictMode, and whoever replaces one part of a page by another, asks again at once.
			queueMicrotask(() => this.#update());
		};
	}

	/** End it, whoever asked for it: at a log-out. */
	close(): void {
		this.#stop('closed');
	}

	/** Try anew at once, also after `close()` or when the server refused. Does not ask for the stream. */
	reconnect(): void {
		this.#lastError = undefined;
		this.#tabs.source.restart();
		this.#stop(undefined);
	}

	/** Called for every event of that name, after whoever listens to `message`. Returns what ends it. */
	on<K extends keyof E & string>(event: K, handler: Handler<E[K]>): () => void {
		return this.#listen(NAMED + event, ({ data, lastEventId }) => handler(data.data, lastEventId));
	}

	#listen(type: string, listener: (event: any) => void): () => void {
		this.addEventListener(type as 'message', listener);
		return () => this.removeEventListener(type as 'message', listener);
	}

	/**
	 * `initialLastEventId`, where it comes later: from a cache that is restored. Returns whether it was in time;
	 * if not, the stream has begun elsewhere, and the restored cache is stale.
	 */
	seed(lastEventId: string): boolean {
		if (this.lastEventId) return false;
		this.#feed.begin(lastEventId);
		this.#tabs.source.restart();
		return true;
	}

	#stop(status: 'unauthorized' | 'closed' | undefined): void {
		this.#stopped = status;
		this.#update();
		this.#changed();
	}

	#changed(): void {
		const status = this.#stopped ?? this.#tabs.status;
		if (status === this.#status) return;
		this.#status = status;
		if (this.readyState === 1) this.#lastError = undefined;
		this.dispatchEvent(createEvent('statuschange'));
	}

	#update(): void {
		const isWanted = this.#holders > 0 && !this.#stopped;
		note(this, this.url, isWanted);
		this.#tabs.want(isWanted);
	}
}

/** Before an event's name, the type under which `on` listens: the target has the table of who is to be called. */
const NAMED = ':';
