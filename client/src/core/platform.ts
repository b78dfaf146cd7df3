/** What the client needs of a browser, gathered in one place so that a model of many tabs can stand in for it. */

export type PageEvent = 'visible' | 'hidden' | 'online' | 'away' | 'back';

export interface Channel {
	postMessage(message: unknown): void;
	close(): void;
	addEventListener(type: 'message', listener: (event: MessageEvent) => void): void;
}

export interface Platform {
	fetch(url: string, init: RequestInit): Promise<Response>;
	/** Milliseconds since 1970; every tab of a browser reads the same clock. */
	now(): number;
	setTimeout(run: () => void, ms: number): unknown;
	clearTimeout(timer: unknown): void;
	random(): number;
	/** When this page was navigated to: it has fetched nothing before. */
	startedAt: number;
	isHidden(): boolean;
	isOnline(): boolean;
	/**
	 * Until the returned function is called. `away`: the page is being left, or frozen, and may never run
	 * again; `back`: it runs again all the same.
	 */
	listen(listener: (event: PageEvent) => void): () => void;
	/** Where either is missing, every tab connects itself. */
	locks: Pick<LockManager, 'request'> | undefined;
	openChannel: ((name: string) => Channel) | undefined;
}

const CLOCK_TOLERANCE_MS = 1000;

export function browserPlatform(fetch?: typeof globalThis.fetch): Platform {
	const { document, navigator } = globalThis;
	return {
		// Not a kept reference: instrumentation and mocks replace it later.
		fetch: (url, init) => (fetch ?? globalThis.fetch)(url, init),
		now: Date.now,
		setTimeout: (run, ms) => setTimeout(run, ms),
		clearTimeout: (timer) => clearTimeout(timer as number),
		random: Math.random,
		// The clock that the origin was read from may have been set since.
		startedAt: performance.timeOrigin - CLOCK_TOLERANCE_MS,
		isHidden: () => !!document?.hidden,
		isOnline: () => navigator?.onLine !== false,
		listen(listener) {
			const controller = new AbortController();
			const on = (target: EventTarget | undefined, type: string, event: () => PageEvent) =>
				target?.addEventListener(type, () => listener(event()), { signal: controller.signal });
			on(document, 'visibilitychange', () => (document.hidden ? 'hidden' : 'visible'));
			on(document, 'freeze', () => 'away');
			on(document, 'resume', () => 'back');
			// Not on EventTarget-less globals (Node).
			if (document) {
				on(globalThis as unknown as EventTarget, 'online', () => 'online');
				on(globalThis as unknown as EventTarget, 'pagehide', () => 'away');
				on(globalThis as unknown as EventTarget, 'pageshow', () => 'back');
			}
			return () => controller.abort();
		},
		locks: navigator?.locks,
		openChannel: globalThis.BroadcastChannel && ((name) => new BroadcastChannel(name)),
	};
}
