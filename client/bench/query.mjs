/**
 * What an event costs a page with a large cache: `npm run bench`, after a build; `npm run bench -- --chromium` in a browser.
 *
 * Prints how long each case took altogether, from the first event until all is marked (and fetched), and the longest
 * time that the page could not have answered: the longest gap between two tasks that follow each other at once. Of five
 * rounds the best of each figure, since whatever else the machine does only adds to it.
 */

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const here = new URL('.', import.meta.url);

/** Runs in Node and in a page alike, so it closes over nothing. */
async function measure({ QueryClient, QueryObserver }, { SSEClient }, { bindQueryClient }) {
	const QUERIES = 10_000;
	const ROUNDS = 5;
	const block = (id, item) =>
		`id: ${id}-0\ndata: ${JSON.stringify({ event: 'argument_updated', data: { id: item, reason: 'edited' } })}\n\n`;
	const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

	/** Tasks that follow each other at once, and the longest that came between. */
	function watch() {
		const { port1, port2 } = new MessageChannel();
		let last = performance.now();
		let longestMs = 0;
		port1.onmessage = () => {
			const now = performance.now();
			longestMs = Math.max(longestMs, now - last);
			last = now;
			port2.postMessage(0);
		};
		port2.postMessage(0);
		return () => {
			port1.onmessage = null;
			port1.close();
			port2.close();
			return Math.max(longestMs, performance.now() - last);
		};
	}

	async function run({ name, keys: keyOf, events, observed = 0, isHidden = false, handlers = 0 }) {
		const fake = new EventTarget();
		fake.hidden = isHidden;
		if (isHidden) {
			if (globalThis.document) Object.defineProperty(document, 'hidden', { get: () => fake.hidden, configurable: true });
			else globalThis.document = fake;
		}
		let stream;
		const platform = {
			fetch: async () => {
				const body = new ReadableStream({ start: (controller) => void (stream = controller) });
				return new Response(body, { headers: { 'Content-Type': 'text/event-stream' } });
			},
			setTimeout: (run, ms) => setTimeout(run, ms),
			clearTimeout: (timer) => clearTimeout(timer),
			Date, Math, performance,
		};
		const sse = new SSEClient('https://example.test/s', { initialLastEventId: '1-0' }, platform);
		const queryClient = new QueryClient({
			defaultOptions: { queries: { staleTime: Infinity, gcTime: Infinity, retry: false, refetchOnMount: false } },
		});
		for (let item = 0; item < QUERIES; item++) queryClient.setQueryData(['item', item], item);
		let fetches = 0;
		const leave = [];
		for (let item = 0; item < observed; item++) {
			const options = { queryKey: ['item', item], queryFn: async () => ++fetches };
			leave.push(new QueryObserver(queryClient, options).subscribe(() => {}));
		}
		const unbind = bindQueryClient(sse, queryClient, { keys: { argument_updated: ({ id }) => [keyOf(id)] } });
		let told = 0;
		for (let count = 0; count < handlers; count++) sse.on(count ? `other_${count}` : 'argument_updated', () => told++);
		const release = sse.connect();
		while (!stream) await rest(1);
		stream.enqueue(new TextEncoder().encode('id: 1-0\n\n'));
		await rest(50);

		const blocks = Array.from({ length: events }, (_, seq) => block(seq + 2, seq % QUERIES));
		// As they come from a network: in reads of some kilobytes, not all in one.
		const reads = [];
		while (blocks.length) reads.push(new TextEncoder().encode(blocks.splice(0, 500).join('')));
		const isMarked = () => unbind.lastEventId === `${events + 1}-0`;
		const isDone = () => isMarked() && (isHidden || fetches >= Math.min(observed, events));
		let end = watch();
		let beganAt = performance.now();
		const wait = async (isOver) => {
			while (!isOver()) {
				await rest(1);
				if (performance.now() - beganAt > 60_000) throw new Error(`${name}: never done`);
			}
		};
		for (const read of reads) {
			stream.enqueue(read);
			await new Promise((resolve) => setTimeout(resolve));
		}
		await wait(isDone);
		if (isHidden) {
			await rest(50);
			end();
			end = watch();
			beganAt = performance.now();
			fake.hidden = false;
			(globalThis.document === fake ? fake : document).dispatchEvent(new Event('visibilitychange'));
			await wait(() => fetches >= Math.min(observed, events));
		}
		const totalMs = performance.now() - beganAt;
		const longestMs = end();
		const stale = queryClient.getQueryCache().getAll().filter(({ state }) => state.isInvalidated).length;
		unbind();
		release();
		for (const each of leave) each();
		queryClient.clear();
		if (isHidden && globalThis.document === fake) delete globalThis.document;
		return { name, totalMs, longestMs, fetches, stale, told };
	}

	const byId = (id) => ['item', id];
	const cases = [
		{ name: '10,000 queries x 1000 keys', keys: byId, events: 1000 },
		{ name: '10,000 queries x 1000 keys, 500 fetched', keys: byId, events: 1000, observed: 500 },
		{ name: '10,000 queries x 10,000 keys', keys: byId, events: 10_000 },
		{ name: '10,000 queries x 300 keys with an object', keys: (id) => ['item', { id }], events: 300 },
		{ name: '10,000 keys shown after hiding, 500 fetched', keys: byId, events: 10_000, observed: 500, isHidden: true },
		{ name: '10,000 keys shown after hiding, all fetched', keys: byId, events: 10_000, observed: 10_000, isHidden: true },
		{ name: '10,000 events, 200 `on` handlers', keys: () => ['none'], events: 10_000, handlers: 200 },
	];
	const results = [];
	for (const each of cases) {
		const rounds = [];
		for (let round = 0; round < ROUNDS; round++) rounds.push(await run(each));
		const best = (figure) => Math.min(...rounds.map((result) => result[figure]));
		results.push({ ...rounds[0], totalMs: best('totalMs'), longestMs: best('longestMs') });
	}
	return results;
}

async function inChromium() {
	const { chromium } = await import('playwright-core');
	const browser = await chromium.launch({
		executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
		args: ['--no-sandbox'],
	});
	try {
		const page = await browser.newPage();
		await page.route('http://bench.test/**', async (route) => {
			const { pathname } = new URL(route.request().url());
			if (pathname === '/') return route.fulfill({ contentType: 'text/html', body: '<!doctype html>' });
			const path = pathname.startsWith('/core/')
				? new URL(`../node_modules/@tanstack/query-core/build/modern/${pathname.slice(6)}`, here)
				: new URL(`..${pathname}`, here);
			return route.fulfill({ contentType: 'text/javascript', body: await readFile(path, 'utf8') });
		});
		await page.goto('http://bench.test/');
		return await page.evaluate(`(async () => {
			globalThis.process = { env: { NODE_ENV: 'production' } };
			const parts = ['/core/index.js', '/dist/index.js', '/dist/query.js'].map((path) => import(path));
			return await (${measure})(...(await Promise.all(parts)));
		})()`);
	} finally {
		await browser.close();
	}
}

async function inNode() {
	process.env.NODE_ENV = 'production';
	const parts = ['@tanstack/query-core', '../dist/index.js', '../dist/query.js'].map((path) => import(path));
	return measure(...(await Promise.all(parts)));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
	const results = await (process.argv.includes('--chromium') ? inChromium() : inNode());
	for (const { name, totalMs, longestMs, fetches, stale, told } of results) {
		console.log(
			`${name.padEnd(46)} total ${totalMs.toFixed(0).padStart(5)} ms   longest task ${longestMs.toFixed(0).padStart(4)} ms` +
				`   ${stale} stale, ${fetches} fetched${told ? `, ${told} told` : ''}`,
		);
	}
	process.exit(); // streams that stand
}
