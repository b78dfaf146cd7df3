/**
 * A browser with several tabs, a network and a Stalecast server, all in one task on one virtual clock.
 *
 * What is modelled: Web Locks (queue, steal, release at death), BroadcastChannel (in order, per sender; held or
 * dropped while a tab is frozen), streams with replay, trimming and wiping, lines that are cut or vanish, answers of
 * what stands before the server, tokens that expire, a network that goes, a machine that sleeps, a time of day that is
 * set (as each tab sees it), and pages that are hidden, frozen, left or killed. Every tab runs the client as it is.
 */

import { SSEClient, type SSEClientOptions } from '../../src/core/client.js';
import type { Channel, Platform } from '../../src/core/platform.js';

/** Beyond any chain of promises between two things that wait. */
const SETTLE_TURNS = 4;
/** Ten tabs that all ask and are all answered, several times over. */
const MESSAGES_AT_ONCE = 5000;
/** As rare as any server should send them: the defaults must bear it. */
const HEARTBEAT_MS = 15_000;

export class Clock {
	now = 1_700_000_000_000;
	/** For how long the machine with the tabs has slept. */
	sleptMs = 0;
	#timers: { at: number; order: number; run: () => void; sleeps: boolean }[] = [];
	#order = 0;

	/** `sleeps`: a timer of the machine with the tabs. */
	set(run: () => void, ms: number, sleeps = false): object {
		const timer = { at: this.now + Math.max(0, ms), order: this.#order++, run, sleeps };
		this.#timers.push(timer);
		return timer;
	}

	clear(timer: unknown): void {
		this.#timers = this.#timers.filter((other) => other !== timer);
	}

	/** The time is not the machine's: its timers have as long to go as before. */
	sleep(ms: number): void {
		this.sleptMs += ms;
		for (const timer of this.#timers) if (timer.sleeps) timer.at += ms;
	}

	async settle(): Promise<void> {
		for (let turn = 0; turn < SETTLE_TURNS; turn++) await new Promise((resolve) => setImmediate(resolve));
	}

	async advance(ms: number): Promise<void> {
		const end = this.now + ms;
		await this.settle();
		for (;;) {
			const due = this.#timers.filter(({ at }) => at <= end);
			if (!due.length) break;
			const next = due.reduce((a, b) => (b.at < a.at || (b.at === a.at && b.order < a.order) ? b : a));
			this.clear(next);
			this.now = Math.max(this.now, next.at);
			next.run();
			await this.settle();
		}
		this.now = end;
	}
}

interface StoredEvent {
	ms: number;
	seq: number;
	payload: string;
}

interface Line {
	write(text: string): void;
	end(): void;
	cut(): void;
}

/** The server's side, by the rules of its own `resume`: an entry that is gone proves nothing. */
export class Server {
	isUp = true;
	/** A proxy that lets nothing of a stream through until it ends. */
	holdsBack = false;
	/** Planted bug: it begins at the newest event, whatever the cursor. */
	forgets = false;
	/** Answers like this instead of a stream. */
	answer: { status: number; headers?: Record<string, string>; body?: string } | undefined;
	/** Where there is one, whoever comes with another gets a 401. */
	token: number | undefined;
	requests: { url: string; headers: Headers }[] = [];
	readonly database = new Map<string, number>();
	#events: StoredEvent[] = [];
	#last = { ms: 0, seq: 0 };
	#earliest = 0;
	#origin = 2 ** 32 + 1;
	/** Something was trimmed since the last wipe. */
	#isTrimmed = false;
	#lines = new Set<Line>();

	constructor(private readonly clock: Clock) {
		this.#beat();
	}

	#beat(): void {
		for (const line of this.#lines) line.write(':\n');
		this.clock.set(() => this.#beat(), HEARTBEAT_MS);
	}

	get connections(): number {
		return this.#lines.size;
	}

	get position(): string {
		return this.#last.ms ? `${this.#last.ms}-${this.#last.seq}` : `0-${this.#origin}`;
	}

	change(item: string): void {
		this.database.set(item, (this.database.get(item) ?? 0) + 1);
		this.publish({ event: 'argument_updated', data: { id: item, reason: 'edited' } });
	}

	publish(envelope: object): void {
		const now = Math.max(this.clock.now, this.#earliest);
		this.#last = this.#last.ms === now ? { ms: now, seq: this.#last.seq + 1 } : { ms: now, seq: 0 };
		const event = { ...this.#last, payload: JSON.stringify(envelope) };
		this.#events.push(event);
		if (this.isUp) for (const line of this.#lines) line.write(block(event));
	}

	/** All but the newest `keep` events are gone. */
	trim(keep: number): void {
		const kept = keep ? this.#events.slice(-keep) : [];
		this.#isTrimmed ||= kept.length < this.#events.length;
		this.#events = kept;
	}

	/** Everything is gone, and nothing remembers that it was there. Live clients are told. */
	wipe(): void {
		this.#events = [];
		this.#isTrimmed = false;
		// A wipe takes longer than a millisecond: no id is given twice.
		this.#earliest = Math.max(this.#earliest, this.#last.ms + 1);
		this.#last = { ms: 0, seq: 0 };
		this.#origin++;
		if (this.isUp) for (const line of this.#lines) line.write(this.#reload());
	}

	cutLines(): void {
		for (const line of this.#lines) line.cut();
	}

	/** Nobody at the other end hears of it. */
	forgetLines(): void {
		this.#lines.clear();
	}

	down(): void {
		this.isUp = false;
		this.cutLines();
	}

	up(): void {
		this.isUp = true;
	}

	async fetch(url: string, init: RequestInit): Promise<Response> {
		const headers = new Headers(init.headers);
		this.requests.push({ url, headers });
		const { signal } = init;
		signal!.throwIfAborted();
		if (!this.isUp) throw new TypeError('connection refused');
		if (this.answer) return new Response(this.answer.body ?? null, this.answer);
		const token = headers.get('Authorization');
		if (this.token !== undefined && token !== `Bearer ${this.token}`) return new Response(null, { status: 401 });
		const isLive = !url.includes('live=false');
		if (this.holdsBack && isLive) {
			return new Promise((_, reject) => signal!.addEventListener('abort', () => reject(signal!.reason)));
		}
		const lines = this.#lines;
		const first = `retry: 1000\n${this.#replay(headers.get('Last-Event-ID') ?? '')}`;
		const encoder = new TextEncoder();
		const body = new ReadableStream<Uint8Array>({
			start(controller) {
				const line: Line = {
					write: (text) => controller.enqueue(encoder.encode(text)),
					end: () => {
						lines.delete(line);
						controller.close();
					},
					cut: () => {
						lines.delete(line);
						controller.error(new TypeError('network error'));
					},
				};
				lines.add(line);
				signal!.addEventListener('abort', () => lines.has(line) && line.cut());
				line.write(first);
				if (!isLive) line.end();
			},
		});
		return new Response(body, { headers: { 'Content-Type': 'text/event-stream; charset=utf-8' } });
	}

	#replay(cursor: string): string {
		if (!cursor || this.forgets) return positionBlock(this.position);
		const first = positionBlock(cursor);
		if (cursor === this.position) return first;
		const at = this.#events.findIndex(({ ms, seq }) => `${ms}-${seq}` === cursor);
		const isAtOrigin = cursor === `0-${this.#origin}` && !this.#isTrimmed;
		if (at >= 0 || isAtOrigin) return first + this.#events.slice(at + 1).map(block).join('');
		return first + this.#reload();
	}

	#reload(): string {
		const payload = JSON.stringify({ event: 'reload_required', data: { reason: 'trimmed' } });
		return `id: ${this.position}\ndata: ${payload}\n\n`;
	}
}

const positionBlock = (id: string): string => `event: position\nid: ${id}\ndata: {"event":"position","data":{}}\n\n`;

const block = ({ ms, seq, payload }: StoredEvent): string => `id: ${ms}-${seq}\ndata: ${payload}\n\n`;

interface LockRequest {
	tab: Tab;
	grant: () => unknown;
	resolve: (value: unknown) => void;
	reject: (error: Error) => void;
}

const aborted = () => new DOMException('aborted', 'AbortError');

/** One name is all that a world needs: a lock and a channel each. */
export class Browser {
	readonly tabs: Tab[] = [];
	#held: LockRequest | undefined;
	#queue: LockRequest[] = [];
	#messages = 0;
	#countedAt = 0;
	isOnline = true;
	isAsleep = false;
	/** Planted bug: what nobody should set is set with the time of day. */
	measuresByWall = false;

	constructor(
		readonly clock: Clock,
		readonly server: Server,
		readonly random: () => number,
	) {}

	/** Tabs that only ever answer each other would never let the clock go on. */
	count(): void {
		if (this.#countedAt !== this.clock.now) this.#messages = 0;
		this.#countedAt = this.clock.now;
		if (this.#messages++ > MESSAGES_AT_ONCE) throw new Error('the tabs talk without end');
	}

	get living(): Tab[] {
		return this.tabs.filter((tab) => tab.state !== 'dead');
	}

	/** Every tab hears of it; lines of before lead nowhere. */
	connectNetwork(isOnline: boolean): void {
		if (isOnline === this.isOnline) return;
		this.isOnline = isOnline;
		this.server.forgetLines();
		for (const tab of this.living) tab.run(() => tab.tell(isOnline ? 'online' : 'offline'));
	}

	/** The lid is closed: nothing of the tabs runs, and their steady clock stands still. `cut`: lines vanish meanwhile. */
	async sleep(ms: number, cut: boolean): Promise<void> {
		await this.clock.settle();
		this.isAsleep = true;
		this.clock.sleep(ms);
		await this.clock.advance(ms / 2);
		if (cut) this.server.forgetLines();
		await this.clock.advance(ms / 2);
		this.isAsleep = false;
		for (const tab of this.living) tab.wakeUp();
	}

	/** `lateMs`: how long after it has fetched everything the page asks for the stream. */
	open(options: SSEClientOptions = {}, lateMs = 0): Tab {
		const tab = new Tab(this, options, lateMs);
		this.tabs.push(tab);
		return tab;
	}

	request(tab: Tab, options: LockOptions, grant: () => unknown): Promise<unknown> {
		return new Promise((resolve, reject) => {
			const request = { tab, grant, resolve, reject };
			if (options.steal) {
				const robbed = this.#held;
				queueMicrotask(() => robbed?.tab.run(() => robbed.reject(aborted())));
				this.#held = undefined;
				this.#hold(request);
				return;
			}
			this.#queue.push(request);
			options.signal?.addEventListener('abort', () => {
				if (!this.#queue.includes(request)) return;
				this.#queue = this.#queue.filter((other) => other !== request);
				reject(aborted());
			});
			queueMicrotask(() => this.#next());
		});
	}

	drop(tab: Tab): void {
		this.#queue = this.#queue.filter((request) => request.tab !== tab);
		if (this.#held?.tab === tab) this.#held = undefined;
		this.#next();
	}

	#next(): void {
		if (this.#held) return;
		const request = this.#queue.shift();
		if (request) this.#hold(request);
	}

	#hold(request: LockRequest): void {
		this.#held = request;
		// A frozen tab is granted a lock as well; it only cannot act on it. And it hears of its locks in the order in
		// which they were granted, never while it is asking for one.
		const tell = () => {
			Promise.resolve(request.grant()).then((value) => {
				if (this.#held !== request) return;
				this.#held = undefined;
				request.resolve(value);
				this.#next();
			});
		};
		queueMicrotask(() => request.tab.run(tell));
	}
}

/** A tab with the cache that its page shows, fetched from the server's database when it is told to. */
export class Tab {
	state: 'running' | 'frozen' | 'dead' = 'running';
	isHidden = false;
	#wallMs = 0;
	reloads = 0;
	begun = 0;
	readonly cache = new Map<string, number>();
	readonly client: SSEClient;
	#held: (() => void)[] = [];
	#channels = new Set<ModelChannel>();
	#page = new EventTarget();
	#aborts = new Set<AbortController>();

	constructor(
		readonly browser: Browser,
		options: SSEClientOptions,
		lateMs: number,
	) {
		this.client = new SSEClient('https://stalecast.test/v1/sse/42', options, this.#platform());
		this.client.on('argument_updated', ({ id }) => this.#fetch(String(id)));
		this.client.on('reload_required', () => {
			this.reloads++;
			this.#fetchAll();
		});
		this.client.addEventListener('began', () => {
			this.begun++;
			this.#fetchAll();
		});
		this.#fetchAll();
		if (lateMs) browser.clock.set(() => this.run(() => this.client.connect()), lateMs, true);
		else this.client.connect();
	}

	/** Run it as soon as the tab runs. */
	run(task: () => void): void {
		if (this.state === 'dead') return;
		if (this.state === 'running' && !this.browser.isAsleep) task();
		else this.#held.push(task);
	}

	/** With the machine. */
	wakeUp(): void {
		if (this.state === 'running') this.#runHeld();
	}

	#runHeld(): void {
		const held = this.#held;
		this.#held = [];
		for (const task of held) task();
	}

	/** The page hears of it. */
	tell(type: string): void {
		this.#page.dispatchEvent(new Event(type));
	}

	show(isHidden: boolean): void {
		this.isHidden = isHidden;
		this.run(() => this.tell('visibilitychange'));
	}

	/** The time of day, as this tab sees it. */
	setClock(ms: number): void {
		this.#wallMs += ms;
	}

	toggleMode(): void {
		this.client.mode = this.client.mode === 'auto' ? 'poll' : 'auto';
	}

	/** `warned`: the page hears of it before, and of the thaw after. */
	freeze(warned: boolean): void {
		if (this.state !== 'running') return;
		if (warned) this.tell('freeze');
		this.state = 'frozen';
	}

	/** `keeps`: messages that came meanwhile are delivered now, or were dropped. */
	thaw(keeps: boolean): void {
		if (this.state !== 'frozen') return;
		this.state = 'running';
		this.keeps = keeps;
		this.#runHeld();
		this.keeps = true;
		this.tell('resume');
		this.tell('visibilitychange');
	}

	keeps = true;

	/** As a crash: nothing runs any more, and the browser frees what it held. */
	kill(): void {
		this.state = 'dead';
		this.#held = [];
		for (const controller of this.#aborts) controller.abort();
		for (const channel of this.#channels) ModelChannel.all.delete(channel);
		this.browser.drop(this);
	}

	#fetch(item: string): void {
		const version = this.browser.server.database.get(item);
		if (version !== undefined) this.cache.set(item, version);
	}

	#fetchAll(): void {
		for (const item of this.browser.server.database.keys()) this.#fetch(item);
	}

	#platform(): Platform {
		const { browser } = this;
		const { clock, server, random } = browser;
		const openedAt = clock.now - clock.sleptMs;
		// oxlint-disable-next-line typescript/no-this-alias, unicorn/no-this-assignment -- for the getter and the class below
		const tab = this;
		return {
			fetch: async (url, init) => {
				// Also what was on its way through promises, which the model cannot hold.
				await new Promise<void>((resolve) => this.run(resolve));
				if (!browser.isOnline) throw new TypeError('no network');
				const line = new AbortController();
				this.#aborts.add(line);
				if (init.signal?.aborted) line.abort();
				init.signal?.addEventListener('abort', () => line.abort());
				return this.#gate(await server.fetch(url, { ...init, signal: line.signal }));
			},
			setTimeout: (task, ms = 0) => clock.set(() => this.run(task), ms, true),
			clearTimeout: (timer) => clock.clear(timer),
			Date: { now: () => clock.now + tab.#wallMs },
			Math: { random },
			performance: { now: () => clock.now - clock.sleptMs - openedAt + (browser.measuresByWall ? tab.#wallMs : 0) },
			document: {
				baseURI: 'https://stalecast.test/',
				get hidden() {
					return tab.isHidden;
				},
			},
			navigator: {
				get onLine() {
					return browser.isOnline;
				},
				locks: {
					request: (...given: unknown[]) =>
						this.browser.request(this, given[1] as LockOptions, given[2] as () => unknown),
				} as Pick<LockManager, 'request'>,
			},
			BroadcastChannel: class extends ModelChannel {
				constructor() {
					super(tab);
					tab.#channels.add(this);
				}
			},
			addEventListener: (...given) => this.#page.addEventListener(...given),
		};
	}

	/** A frozen page reads nothing. */
	#gate(response: Response): Response {
		if (!response.body) return response;
		const reader = response.body.getReader();
		const body = new ReadableStream<Uint8Array>({
			pull: async (controller) => {
				try {
					const { done, value } = await reader.read();
					await new Promise<void>((resolve) => this.run(resolve));
					if (done) controller.close();
					else controller.enqueue(value);
				} catch (error) {
					await new Promise<void>((resolve) => this.run(resolve));
					controller.error(error);
				}
			},
		});
		return new Response(body, { status: response.status, headers: response.headers });
	}
}

class ModelChannel implements Channel {
	static all = new Set<ModelChannel>();
	onmessage: Channel['onmessage'] = null;

	constructor(private readonly tab: Tab) {
		ModelChannel.all.add(this);
	}

	postMessage(message: unknown): void {
		this.tab.browser.count();
		const data = structuredClone(message);
		for (const other of ModelChannel.all) {
			if (other === this || other.tab.browser !== this.tab.browser) continue;
			// As the standard says: what is on its way when a channel is closed is not heard any more.
			const deliver = () => other.tab.keeps && ModelChannel.all.has(other) && other.onmessage?.({ data } as MessageEvent);
			queueMicrotask(() => other.tab.run(deliver));
		}
	}

	close(): void {
		ModelChannel.all.delete(this);
	}
}
