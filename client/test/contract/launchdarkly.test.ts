/**
 * launchdarkly's sse-contract-tests (Apache-2.0): a program in Go that plays servers to any client of event streams and
 * judges what the client makes of them. It is not in this repository: `go.mod` says which version is built.
 *
 * It listens on all interfaces of the machine for the seconds that it takes, and cannot be told otherwise.
 */

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createAdapter } from './adapter.js';

const PACKAGE = 'github.com/launchdarkly/sse-contract-tests';
const BUILD_MS = 240_000;
const RUN_MS = 180_000;

/** Tests that fail or are passed over, and why. One that is here and passes fails the run, as any other that does not. */
const EXPLAINED: Record<string, string> = {
	'basic parsing/large message in one chunk': '7 MB: a block of ours has at most 1 Mi characters; what is longer is refused',
	'basic parsing/large message in two chunks': '14 MB: likewise',
	comments: 'comments are heartbeats here, and told to nobody',
	'HTTP behavior/POST request': 'a stream is asked for by GET',
	'HTTP behavior/REPORT request': 'a stream is asked for by GET',
	'reconnection/resends request body if any when reconnecting': 'a stream is asked for by GET',
};
/** Fewer were no run of the whole. */
const LEAST_TESTS = 100;

const folder = mkdtempSync(join(tmpdir(), 'stalecast-contract-'));
const program = join(folder, 'sse-contract-tests');

/** Returns why the program is not here, if so. */
async function build(): Promise<string | undefined> {
	try {
		await promisify(execFile)('go', ['build', '-o', program, PACKAGE], { cwd: import.meta.dirname, timeout: BUILD_MS });
		return undefined;
	} catch (error) {
		const why = String(error);
		// Where everything was installed there is Go. Its modules come from elsewhere, which may not have this one.
		if (process.env.REQUIRE_ALL && !/reading http|dial tcp|unrecognized import path/.test(why)) throw error;
		return why;
	}
}

const lack = await build();
if (lack) console.warn(`skipped, for want of ${PACKAGE}: ${lack}`);

async function freePort(): Promise<number> {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
	const { port } = server.address() as AddressInfo;
	await new Promise((resolve) => server.close(resolve));
	return port;
}

/** What the program printed, and by which code it ended: 0 or 1, unless it came to no end of its own. */
async function run(url: string): Promise<{ output: string; code: number | null }> {
	const given = ['-url', url, '-host', '127.0.0.1', '-port', `${await freePort()}`];
	const child = spawn(program, given, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, NO_COLOR: '1' }, timeout: RUN_MS });
	let output = '';
	for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding('utf8').on('data', (piece: string) => (output += piece));
	const [code] = await once(child, 'close');
	return { output, code };
}

describe.skipIf(lack)('sse-contract-tests', () => {
	let adapter: Server;
	beforeAll(async () => {
		adapter = createAdapter();
		await new Promise<void>((resolve) => adapter.listen(0, '127.0.0.1', resolve));
	});
	afterAll(() => {
		adapter?.closeAllConnections();
		adapter?.close();
		rmSync(folder, { recursive: true, force: true });
	});

	test('all pass but those explained', { timeout: RUN_MS + 10_000 }, async () => {
		const { output, code } = await run(`http://127.0.0.1:${(adapter.address() as AddressInfo).port}`);
		const names = (pattern: RegExp) => [...output.matchAll(pattern)].map(([, name]) => name!);
		const groups = names(/^\[(.*)\/.*\]$/gm);
		const tests = names(/^\[(.*)\]$/gm).filter((name) => !groups.includes(name));
		const failed = names(/^ {2}FAILED: (.*)$/gm);
		const skipped = names(/^ {2}SKIPPED: (.*?)(?: \(.*\))?$/gm);
		expect([0, 1], output).toContain(code);
		expect([...failed, ...skipped].sort(), output).toEqual(Object.keys(EXPLAINED).sort());
		expect(tests.length).toBeGreaterThanOrEqual(LEAST_TESTS);
		console.info(`sse-contract-tests: ${tests.length - failed.length - skipped.length} of ${tests.length} pass`);
	});
});
