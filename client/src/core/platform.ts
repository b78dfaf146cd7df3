/** What the client needs of a browser: its globals, by their own names, so that a model of many tabs can stand in for them. */

export interface Channel {
	onmessage: ((event: MessageEvent) => void) | null;
	postMessage(message: unknown): void;
	close(): void;
}

/** Where something is optional, the client does without: on a server, in a worker, over plain HTTP. */
export interface Platform {
	fetch(url: string, init: RequestInit): Promise<Response>;
	setTimeout(run: () => void, ms?: number): unknown;
	clearTimeout(timer: unknown): void;
	/** It may be set, also between two looks: no duration is measured by it, and nothing is said to another tab. */
	Date: { now(): number };
	Math: { random(): number };
	/**
	 * Milliseconds since this page was navigated to (it has fetched nothing before), by a clock that nobody sets. It may
	 * stand still while the machine sleeps, and does in all tabs alike.
	 */
	performance: { now(): number };
	/** In a worker, what a relative URL stands beside. */
	location?: undefined | { readonly href: string };
	document?: undefined | { readonly baseURI: string; readonly hidden: boolean };
	navigator?: undefined | { readonly onLine?: boolean; readonly locks?: Pick<LockManager, 'request'> };
	BroadcastChannel?: undefined | (new (name: string) => Channel);
	addEventListener?(type: string, listener: (event: Event) => void, options: AddEventListenerOptions): void;
}

/** A timer of its own: each call replaces what the call before had set; without `run` nothing is set. */
export function createTimer(platform: Platform): (run?: () => void, ms?: number) => void {
	let timer: unknown;
	return (run, ms) => {
		platform.clearTimeout(timer);
		timer = run && platform.setTimeout(run, ms);
	};
}

/**
 * What a page can hear of, and whether it runs from then on: one that is frozen, or left, may never run again. Being
 * shown or hidden says nothing of that: a page that is left is hidden after it.
 */
const PAGE_EVENTS: Record<string, boolean | undefined> = {
	visibilitychange: undefined,
	online: true,
	offline: true,
	freeze: false,
	pagehide: false,
	resume: true,
	pageshow: true,
};

/**
 * Tells whether the page runs, when it begins or ceases to, or is online or offline; and, by `undefined`, when it was shown or
 * hidden. Returns what ends it.
 */
export function listenToPage(platform: Platform, hear: (isRunning: boolean | undefined) => void): () => void {
	const controller = new AbortController();
	for (const type in PAGE_EVENTS) {
		// Captured: `freeze` and `resume` are the document's, and do not bubble.
		const options = { capture: true, signal: controller.signal };
		platform.addEventListener?.(type, () => hear(PAGE_EVENTS[type]), options);
	}
	return () => controller.abort();
}
