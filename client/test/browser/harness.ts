/**
 * A deployment on this machine: Redis, Stalecast, the application with its database, a proxy, and Chromium.
 *
 * Everything that is started here is ended here, by its own process.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, request as httpRequest, type Server, type ServerResponse } from 'node:http';
import { createServer as createTcpServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Browser, type BrowserContext, type BrowserServer, chromium, type Page } from 'playwright-core';
import { createClient } from 'redis';
import { build } from 'vite';
import type { PageConfig } from './page/main.js';

const CLIENT = fileURLToPath(new URL('../..', import.meta.url));
const PROJECT = fileURLToPath(new URL('../../..', import.meta.url));
export const PYTHON = process.env.STALECAST_PYTHON ?? join(PROJECT, '.venv/bin/python');
export const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
export const FIREFOX = process.env.FIREFOX ?? ['/usr/bin/firefox-esr', '/usr/bin/firefox'].find(existsSync);
const NGINX = ['/usr/sbin/nginx', '/usr/local/sbin/nginx', '/usr/bin/nginx'].find(existsSync);
const REDIS = ['/usr/bin/redis-server', '/usr/local/bin/redis-server'].find(existsSync);
const START_MS = 20_000;
const POLL_MS = 20;

/** What is missing for these tests, if anything. */
const missing = [
	!existsSync(PYTHON) && `${PYTHON} (make .venv/.dev)`,
	!existsSync(CHROMIUM) && 'chromium',
	!NGINX && 'nginx',
	!REDIS && 'redis-server',
].filter((name) => name !== false && name !== undefined);

/** Where everything is to be tested, nothing may be skipped; elsewhere it is said. */
export function isLacking(...more: string[]): boolean {
	const names = [...missing, ...more];
	if (names.length && process.env.REQUIRE_ALL) throw new Error(`missing: ${names.join(', ')}`);
	if (names.length) console.warn(`skipped, for want of ${names.join(', ')}`);
	return names.length > 0;
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Polls in real time; the error says what was waited for and, by `last`, what was seen instead. */
export async function waitUntil(what: string, check: () => unknown, ms = START_MS, last?: () => unknown): Promise<void> {
	const end = Date.now() + ms;
	for (;;) {
		if (await check()) return;
		if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}; ${JSON.stringify(await last?.())}`);
		await sleep(POLL_MS);
	}
}

export async function freePort(): Promise<number> {
	const server = createTcpServer();
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const { port } = server.address() as { port: number };
	await new Promise((resolve) => server.close(resolve));
	return port;
}

export class Service {
	#child: ChildProcess | undefined;

	constructor(
		private readonly name: string,
		private readonly folder: string,
		private readonly command: string[],
		private readonly env: Record<string, string>,
		private readonly isReady: () => Promise<boolean>,
	) {}

	async start(): Promise<void> {
		const log = openSync(join(this.folder, `${this.name}.log`), 'a');
		const [program, ...given] = this.command;
		const child = spawn(program!, given, {
			cwd: this.folder,
			env: { PATH: process.env.PATH, HOME: this.folder, ...this.env },
			stdio: ['ignore', log, log],
		});
		this.#child = child;
		await waitUntil(`${this.name} is ready`, () => {
			if (child.exitCode !== null) throw new Error(`${this.name} ended:\n${this.output()}`);
			return this.isReady();
		});
	}

	output(): string {
		return readFileSync(join(this.folder, `${this.name}.log`), 'utf8').slice(-4000);
	}

	get isRunning(): boolean {
		return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
	}

	async stop(signal: NodeJS.Signals): Promise<void> {
		if (!this.isRunning) return;
		const child = this.#child!;
		this.#child = undefined;
		const ended = new Promise((resolve) => child.once('exit', resolve));
		child.kill(signal);
		await ended;
	}
}

/** Of the process `root` and of all below it, in Linux's own account of them. */
function family(root: number): number[] {
	const parents = new Map<number, number>();
	for (const name of readdirSync('/proc')) {
		if (!/^\d+$/.test(name)) continue;
		try {
			// The name of a program, in brackets, may hold anything; after it come the state and the parent.
			const [, parent] = readFileSync(`/proc/${name}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
			parents.set(Number(name), Number(parent));
		} catch {
			// It has ended meanwhile.
		}
	}
	const found = [root];
	for (const pid of found) for (const [child, parent] of parents) if (parent === pid) found.push(child);
	return found;
}

/** Stops a program and everything that it started, as a lid that is closed does. Returns what lets them run on. */
export function suspend(root: number): () => void {
	const stopped = new Set<number>();
	const signal = (pid: number, name: NodeJS.Signals) => {
		try {
			process.kill(pid, name);
		} catch {
			// It has ended meanwhile.
		}
	};
	// Until there is none that was started meanwhile.
	for (let count = -1; count < stopped.size; ) {
		count = stopped.size;
		for (const pid of family(root)) {
			if (!stopped.has(pid)) signal(pid, 'SIGSTOP');
			stopped.add(pid);
		}
	}
	return () => {
		for (const pid of stopped) signal(pid, 'SIGCONT');
	};
}

export const answers = async (url: string): Promise<boolean> => {
	try {
		return (await fetch(url)).status < 500;
	} catch {
		return false;
	}
};

/** How a proxy in front of Stalecast treats its streams. */
export type Proxying = 'passing' | 'holding';

let pageFolder: Promise<string> | undefined;

/** Built once for all tests of a file; removed with its world. */
function buildPage(): Promise<string> {
	pageFolder ??= (async () => {
		const outDir = mkdtempSync(join(tmpdir(), 'stalecast-page-'));
		await build({
			configFile: false,
			logLevel: 'error',
			root: join(CLIENT, 'test/browser/page'),
			resolve: {
				alias: [
					{ find: /^stalecast-client$/, replacement: join(CLIENT, 'src/index.ts') },
					{ find: /^stalecast-client\/(.*)$/, replacement: join(CLIENT, 'src/$1/index.ts') },
				],
			},
			build: { outDir, emptyOutDir: true, target: 'es2022' },
		});
		return outDir;
	})();
	return pageFolder;
}

export class World {
	/** Another one for each test: the server remembers topics for a while. */
	topic = '';
	readonly database = new Map<string, number>();
	/** Requests for items: which page, which item, when it was answered. */
	readonly fetches: { page: string; item: string; at: number }[] = [];
	/** Called before an item is answered, after its version was read. */
	beforeAnswer: (page: string, item: string) => Promise<void> | void = () => {};
	/** Which bearer token the application lets through to streams; any, if undefined. */
	validToken: string | undefined;
	/** Where the site's files are. */
	served = '';
	/** How the site answers a stream, if not by what Stalecast says: as a proxy does that has lost its backend. */
	refuse: ((response: ServerResponse) => void) | undefined;
	#browserServer: Promise<BrowserServer> | undefined;
	#browser: Promise<Browser> | undefined;
	stalecast!: Service;
	nginx: Service | undefined;
	stalecastUrl!: string;
	siteUrl!: string;
	nginxUrl = '';
	#folder = mkdtempSync(join(tmpdir(), 'stalecast-test-'));
	#redis!: Service;
	#publisher!: ReturnType<typeof createClient>;
	#site!: Server;
	#context: Promise<BrowserContext> | undefined;
	/** Answers that the site passes on, and those of Stalecast that they are of. */
	#proxied = new Map<ServerResponse, IncomingMessage>();

	/** `served`: where the site's files are, if not those of the page that tests of this folder open. */
	async start(settings: Record<string, string> = {}, served?: string): Promise<void> {
		const redisPort = await freePort();
		const redisUrl = `redis://127.0.0.1:${redisPort}`;
		const redis = [REDIS!, '--port', `${redisPort}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
		this.#publisher = createClient({ url: redisUrl });
		this.#publisher.on('error', () => {});
		this.#redis = new Service('redis', this.#folder, redis, {}, async () => {
			try {
				if (!this.#publisher.isOpen) await this.#publisher.connect();
				return (await this.#publisher.ping()) === 'PONG';
			} catch {
				return false;
			}
		});
		await this.#redis.start();
		const port = await freePort();
		this.stalecastUrl = `http://127.0.0.1:${port}`;
		this.stalecast = new Service(
			'stalecast',
			this.#folder,
			[PYTHON, '-m', 'app', 'serve', '--port', `${port}`],
			{
				PYTHONPATH: PROJECT,
				REDIS_URL: redisUrl,
				STALECAST_RETRY_MS: '200',
				STALECAST_DRAIN_S: '1',
				STALECAST_HEARTBEAT_INTERVAL_S: '1',
				...settings,
			},
			() => answers(`${this.stalecastUrl}/readyz`),
		);
		await this.stalecast.start();
		this.served = served ?? (await buildPage());
		this.#site = createServer((request, response) => this.#serve(request, response));
		await new Promise<void>((resolve) => this.#site.listen(0, '127.0.0.1', resolve));
		this.siteUrl = `http://127.0.0.1:${(this.#site.address() as { port: number }).port}`;
	}

	async stop(): Promise<void> {
		await (await this.#browser)?.close();
		await (await this.#browserServer)?.close();
		this.#site?.closeAllConnections();
		this.#site?.close();
		await this.nginx?.stop('SIGQUIT');
		await this.stalecast?.stop('SIGKILL');
		this.#publisher?.destroy();
		await this.#redis?.stop('SIGTERM');
		rmSync(this.#folder, { recursive: true, force: true });
		if (pageFolder) rmSync(await pageFolder, { recursive: true, force: true });
		pageFolder = undefined;
	}

	/** nginx in front of Stalecast; called again, it changes how. */
	async proxy(proxying: Proxying): Promise<void> {
		const port = this.nginxUrl ? new URL(this.nginxUrl).port : await freePort();
		const buffering =
			proxying === 'holding'
				? // With gzip it lets nothing through before a buffer is full, not even the headers.
					'proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;'
				: 'proxy_buffering off;';
		const file = join(this.#folder, 'nginx.conf');
		writeFileSync(
			file,
			`daemon off; master_process off; pid ${this.#folder}/nginx.pid; error_log stderr;
			events { worker_connections 512; }
			http {
				access_log off;
				server {
					listen 127.0.0.1:${port};
					location / { proxy_pass ${this.siteUrl}; }
					location ~ ^/(v1/|healthz) { proxy_pass ${this.stalecastUrl}; proxy_http_version 1.1; proxy_read_timeout 1h; ${buffering} }
				}
			}`,
		);
		this.nginxUrl = `http://127.0.0.1:${port}`;
		await this.nginx?.stop('SIGTERM');
		this.nginx = new Service('nginx', this.#folder, [NGINX!, '-p', this.#folder, '-c', file], {}, () =>
			answers(`${this.nginxUrl}/healthz`),
		);
		await this.nginx.start();
	}

	/** Begin a test: no page is open, every item is at version 0. */
	async reset(items: string[]): Promise<void> {
		await (await this.#context)?.close();
		this.#context = undefined;
		this.database.clear();
		for (const item of items) this.database.set(item, 0);
		this.fetches.length = 0;
		this.beforeAnswer = () => {};
		this.validToken = undefined;
		this.refuse = undefined;
		if (!this.stalecast.isRunning) await this.stalecast.start(); // an earlier test failed while it was down
		await waitUntil('no stream is open', async () => (await this.gauge()) === 0);
		this.topic = `topic-${Math.random().toString(36).slice(2)}`;
	}

	/** An empty one, in the browser of this test. */
	async newPage(): Promise<Page> {
		// Promises, not what they bring: pages are opened side by side.
		this.#browserServer ??= chromium.launchServer({
			executablePath: CHROMIUM,
			args: [
				'--no-sandbox',
				'--disable-gpu',
				'--disable-quic',
				'--no-first-run',
				'--disable-background-networking',
				'--disable-component-update',
				'--disable-sync',
			],
		});
		this.#browser ??= this.#browserServer.then((server) => chromium.connect(server.wsEndpoint()));
		this.#context ??= this.#browser.then((browser) => browser.newContext());
		return (await this.#context).newPage();
	}

	/**
	 * `base`: where the page finds Stalecast. Through nginx, or through the site itself (which checks the token),
	 * it is of the page's own origin; Stalecast itself is of another.
	 */
	async open(config: Partial<PageConfig> & { name: string }, base = this.stalecastUrl): Promise<Page> {
		const page = await this.newPage();
		if (config.hasToken) await page.addInitScript(() => (window.token = () => sessionStorage.getItem('token') ?? 'first'));
		await page.goto(this.pageUrl(config, base));
		return page;
	}

	/** Once a page is open: the process that is Chromium. */
	async chromiumPid(): Promise<number> {
		return (await this.#browserServer)!.process().pid!;
	}

	/** Once a page is open: whether there is a network for Chromium. */
	async setOffline(isOffline: boolean): Promise<void> {
		await (await this.#context)!.setOffline(isOffline);
	}

	pageUrl(config: Partial<PageConfig> & { name: string }, base = this.stalecastUrl): string {
		const full = { url: `${base}/v1/sse/${this.topic}`, items: [...this.database.keys()], ...config };
		const site = base === this.stalecastUrl ? this.siteUrl : base;
		return `${site}/?config=${encodeURIComponent(JSON.stringify(full))}`;
	}

	/** Change an item in the database, and say so. */
	async update(item: string): Promise<void> {
		this.database.set(item, (this.database.get(item) ?? 0) + 1);
		await this.publish({ event: 'argument_updated', data: { id: item, reason: 'edited' } });
	}

	async publish(envelope: object): Promise<string> {
		const payload = JSON.stringify(envelope);
		return (await this.#publisher.sendCommand([
			'XADD', `topic:events:${this.topic}`, 'MAXLEN', '~', '1000', '*', 'payload', payload,
		])) as unknown as string;
	}

	/** Keep the newest `keep` events only. */
	async trim(keep: number): Promise<void> {
		await this.#publisher.sendCommand(['XTRIM', `topic:events:${this.topic}`, 'MAXLEN', '=', `${keep}`]);
	}

	/** Clients that the server counts; -1 while it is down. */
	async gauge(): Promise<number> {
		try {
			return ((await (await fetch(`${this.stalecastUrl}/readyz`)).json()) as { clients: number }).clients;
		} catch {
			return -1;
		}
	}

	/** What the page shows, as the database would have it. */
	async shown(page: Page): Promise<Record<string, number>> {
		return page.$$eval('li', (elements) =>
			Object.fromEntries(elements.map(({ dataset }) => [dataset.id, Number(dataset.version ?? -1)])),
		);
	}

	async isEqual(page: Page): Promise<boolean> {
		const shown = await this.shown(page);
		return [...this.database].every(([item, version]) => shown[item] === version);
	}

	async waitEqual(pages: Page[], ms?: number): Promise<void> {
		for (const page of pages) {
			await waitUntil('the page shows the database', () => this.isEqual(page), ms, async () => ({
				shown: await this.shown(page),
				database: Object.fromEntries(this.database),
				seen: await seen(page),
			}));
		}
	}

	async waitStatus(page: Page, ...statuses: string[]): Promise<void> {
		await waitUntil(`the status is ${statuses}`, async () => statuses.includes(await status(page)), START_MS, () => seen(page));
	}

	/** Requests for each item by one page, from `since` on. */
	counts(page: string, since = 0): Map<string, number> {
		const counts = new Map<string, number>();
		for (const fetch of this.fetches) {
			if (fetch.page === page && fetch.at >= since) counts.set(fetch.item, (counts.get(fetch.item) ?? 0) + 1);
		}
		return counts;
	}

	/** Cut every stream that goes through the site. */
	cutProxied(): void {
		for (const response of this.#proxied.keys()) response.destroy();
	}

	/** Every stream that goes through the site stays open, and nothing comes over it any more: as if a router forgot it. */
	forgetProxied(): void {
		for (const [response, answer] of this.#proxied) {
			answer.unpipe(response);
			answer.removeAllListeners('error').on('error', () => {});
			answer.destroy();
		}
	}

	#serve(request: IncomingMessage, response: ServerResponse): void {
		const url = new URL(request.url!, 'http://site');
		const item = /^\/api\/items\/([^/]+)$/.exec(url.pathname)?.[1];
		if (item !== undefined) void this.#answerItem(url.searchParams.get('page') ?? '', item, response);
		else if (url.pathname.startsWith('/v1/')) this.#forward(request, response);
		else {
			const file = join(this.served, url.pathname === '/' ? 'index.html' : url.pathname);
			if (!existsSync(file)) return void response.writeHead(404).end();
			const type = file.endsWith('.js') ? 'text/javascript' : 'text/html; charset=utf-8';
			response.writeHead(200, { 'Content-Type': type }).end(readFileSync(file));
		}
	}

	async #answerItem(page: string, item: string, response: ServerResponse): Promise<void> {
		const version = this.database.get(item);
		await this.beforeAnswer(page, item);
		this.fetches.push({ page, item, at: Date.now() });
		response.writeHead(200, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' });
		response.end(JSON.stringify({ version }));
	}

	/** As an application's gateway does that knows who may listen. */
	#forward(request: IncomingMessage, response: ServerResponse): void {
		if (this.validToken !== undefined && request.headers.authorization !== `Bearer ${this.validToken}`) {
			return void response.writeHead(401, { 'WWW-Authenticate': 'Bearer' }).end('token expired');
		}
		if (this.refuse) return this.refuse(response);
		const upstream = httpRequest(`${this.stalecastUrl}${request.url}`, { headers: request.headers }, (answer) => {
			this.#proxied.set(response, answer);
			response.writeHead(answer.statusCode!, answer.headers);
			response.flushHeaders();
			answer.pipe(response);
			answer.on('error', () => response.destroy());
		});
		upstream.on('error', () => (response.headersSent ? response.destroy() : response.writeHead(502).end()));
		response.on('close', () => {
			this.#proxied.delete(response);
			upstream.destroy();
		});
		upstream.end();
	}
}

export const status = (page: Page): Promise<string> => page.evaluate(() => window.sse.status);
export const seen = (page: Page): Promise<Window['seen']> => page.evaluate(() => window.seen);
