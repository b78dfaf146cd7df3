/**
 * `make example`: a Stalecast server, and vite with the example's pages and API, until either ends.
 *
 * Only this file starts and ends the server. It runs in a process group of its own: Ctrl-C reaches this process
 * only, which then ends everything in order.
 */

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { createServer as createTcpServer } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const PROJECT = fileURLToPath(new URL('../..', import.meta.url));
const PYTHON = fileURLToPath(new URL('../../.venv/bin/python', import.meta.url));
const VITE = new URL('../node_modules/vite/dist/node/index.js', import.meta.url);
const HOST = '127.0.0.1';
const START_MS = 30_000;
const LOOK_MS = 100;
/** Longer than the server's drain below and the end of its store. */
const STOP_MS = 10_000;
const DRAIN_S = '1';

const { values } = parseArgs({
	options: { port: { type: 'string', default: '8000' }, 'page-port': { type: 'string', default: '5173' } },
});
const port = Number(values.port);
const pagePort = Number(values['page-port']);
const stalecastUrl = `http://${HOST}:${port}`;
const pageUrl = `http://${HOST}:${pagePort}`;

const say = (text) => console.log(`example: ${text}`);

class CannotStart extends Error {}

let server;
/** Between asking it to end and its end. */
let isStopping = false;
let isEnding = false;

function startServer() {
	isStopping = false;
	const child = spawn(PYTHON, ['-m', 'app', 'serve', '--host', HOST, '--port', String(port)], {
		cwd: PROJECT,
		// A line for every stream and poll would hide what this file says.
		env: { STALECAST_DRAIN_S: DRAIN_S, STALECAST_LOG_LEVEL: 'warning', ...process.env },
		stdio: ['ignore', 'inherit', 'inherit'],
		detached: true,
	});
	server = child;
	child.ended = new Promise((resolve) => {
		child.once('error', (error) => resolve(error.message));
		child.once('exit', (code, signal) => resolve(signal ?? `exit status ${code}`));
	}).then((how) => {
		if (server === child) server = undefined;
		return how;
	});
	return child;
}

/** Resolves when it has ended, however. */
async function stopServer() {
	const child = server;
	if (!child) return;
	isStopping = true;
	child.kill('SIGTERM');
	const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
	await child.ended;
	clearTimeout(timer);
}

/** Rejects with CannotStart when `child` ends instead. */
async function waitServes(child) {
	let end;
	void child.ended.then((how) => (end = how));
	const giveUpAt = Date.now() + START_MS;
	for (;;) {
		if (await answers(`${stalecastUrl}/readyz`)) return;
		if (end !== undefined) throw new CannotStart(`the Stalecast server did not start (${end}); its own words are above`);
		if (Date.now() > giveUpAt) throw new CannotStart(`the Stalecast server is not ready after ${START_MS / 1000} s`);
		await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
	}
}

async function answers(url) {
	try {
		return (await fetch(url, { signal: AbortSignal.timeout(1000) })).ok;
	} catch {
		return false;
	}
}

/** Another server there would answer in place of ours. */
async function checkFree(wanted, how) {
	if (!(Number.isInteger(wanted) && wanted > 0 && wanted < 65536)) {
		throw new CannotStart(`${how} needs a number from 1 to 65535`);
	}
	await new Promise((resolve, reject) => {
		const probe = createTcpServer();
		probe.once('error', ({ code }) => {
			const why = code === 'EADDRINUSE' ? 'is taken' : `cannot be used (${code})`;
			reject(new CannotStart(`port ${wanted} ${why}: end what uses it, or choose another with \`make example ${how}...\``));
		});
		probe.listen(wanted, HOST, () => probe.close(resolve));
	});
}

async function end(status) {
	if (isEnding) {
		// Asked twice: somebody is in a hurry.
		server?.kill('SIGKILL');
		return;
	}
	isEnding = true;
	process.exitCode = status;
	await Promise.all([stopServer(), vite?.close()]);
	process.exit();
}

/** Keeps the pages and their database while the server is away, for as long as somebody can start it again. */
function watch(child) {
	void child.ended.then((how) => {
		if (isEnding) return;
		if (process.stdin.isTTY) return say(`the Stalecast server has ended (${how}). Vote and edit; Enter starts it again.`);
		say(`the Stalecast server has ended (${how})`);
		void end(1);
	});
}

async function toggle() {
	if (isEnding || (isStopping && server)) return;
	if (server) {
		say('stopping the Stalecast server ...');
		await stopServer();
		return;
	}
	say('starting the Stalecast server ...');
	const child = startServer();
	try {
		await waitServes(child);
		say('the Stalecast server is back. Enter stops it.');
		watch(child);
	} catch (error) {
		if (!(error instanceof CannotStart)) throw error;
		if (!isEnding) say(`${error.message}. Enter tries again.`);
	}
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => void end(0));
// Whatever goes wrong here, nothing stays behind.
process.on('exit', () => server?.kill('SIGKILL'));

let vite;
try {
	if (!existsSync(PYTHON) || !existsSync(VITE)) {
		throw new CannotStart('it is not set up: run `make example` in the root of the repository');
	}
	await checkFree(port, 'PORT=');
	await checkFree(pagePort, 'PAGE_PORT=');
	// Drawn for this run: the server and the example's API share it, and nobody else.
	process.env.STALECAST_PUBLISH_TOKEN = randomBytes(16).toString('base64url');
	process.env.STALECAST_URL = stalecastUrl;
	const child = startServer();
	const { createServer } = await import(VITE.href);
	vite = await createServer({
		configFile: fileURLToPath(new URL('vite.config.ts', import.meta.url)),
		server: { port: pagePort },
		clearScreen: false,
	});
	await vite.listen();
	await waitServes(child);
	if (!isEnding) {
		watch(child);
		say(`open ${pageUrl} in two windows.${process.stdin.isTTY ? ' Enter stops the Stalecast server.' : ''} Ctrl-C ends all.`);
		if (process.stdin.isTTY) createInterface({ input: process.stdin }).on('line', () => void toggle());
	}
} catch (error) {
	if (!isEnding) {
		console.error(error instanceof CannotStart ? `example: ${error.message}` : error);
		void end(1);
	}
}
