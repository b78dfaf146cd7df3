/** `npx stalecast-client types`, from the tarball: for a real server, for files, and for what is neither. */

import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { freePort, isLacking, PYTHON, World } from '../browser/harness.js';
import { App, type Outcome, TSC } from './workshop.js';

const EVENTS_MODULE = `
from enum import Enum
from typing import Literal
from uuid import UUID

from pydantic import Field

from app.contracts import EventType, Invalidation


class Why(Enum):
    MOVED = "moved"
    RENAMED = "renamed"


class Page(Invalidation):
    """A page. /* More: */ it has a number."""

    id: UUID | int = Field(description="Which page.")
    reason: Why


class Board(Invalidation):
    id: str
    reason: Literal["cleared"] = "cleared"


def register(registry):
    registry.register(EventType("page.moved", Page))
    registry.register(EventType("page_moved", Board))
`;

const USE = `
import { SSEClient } from 'stalecast-client';
import './events.js';

const sse = new SSEClient('/v1/sse/42');
sse.on('page.moved', ({ id, reason }) => {
	const given: string | number = id;
	const why: 'moved' | 'renamed' = reason;
	console.log(given, why);
});
sse.on('page_moved', ({ id, reason }) => console.log(id.toUpperCase(), reason satisfies 'cleared' | undefined));
sse.on('reload_required', ({ reason }) => console.log(reason.toUpperCase()));
// @ts-expect-error: nobody has registered it
sse.on('page.removed', () => {});
// @ts-expect-error: it is told to nobody
sse.on('position', () => {});
`;

const OPTIONS = { strict: true, noEmit: true, module: 'nodenext', target: 'es2022', lib: ['es2023', 'dom'], types: [] };

let app: App;
beforeAll(async () => {
	app = new App('types');
	await app.install({}, { type: 'module' });
});
afterAll(() => app.remove());

const ask = (sources: string[], input = ''): Promise<Outcome> =>
	app.try(['node_modules/.bin/stalecast-client', 'types', ...sources], { input });

function expectRefusal({ code, stdout, stderr }: Outcome, ...said: string[]): void {
	expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
	expect(stderr).toMatch(/^stalecast-client: /);
	expect(stderr).not.toMatch(/^ +at /m);
	for (const words of said) expect(stderr).toContain(words);
}

describe.skipIf(isLacking())('a server with events of its own', () => {
	const world = new World();
	beforeAll(async () => {
		app.write({ 'events_of_its_own.py': EVENTS_MODULE });
		const project = new URL('../../..', import.meta.url).pathname;
		await world.start({ PYTHONPATH: `${project}:${app.folder}`, STALECAST_EVENTS_MODULE: 'events_of_its_own' });
	});
	afterAll(() => world.stop());

	test('its types are those that a client takes', async () => {
		const { stdout, stderr } = await app.run(['npx', '--no-install', 'stalecast-client', 'types', world.stalecastUrl]);
		expect(stderr).toBe('');
		app.write({ 'events.ts': stdout, 'use.ts': USE, 'tsconfig.json': JSON.stringify({ compilerOptions: OPTIONS, files: ['use.ts'] }) });
		await app.run(['node', TSC, '-p', '.']);
		expect(stdout).toContain('/** A page. /* More: *\\/ it has a number. */');
	});

	test('the same by its document, by the command of the server, by a file and by standard input', async () => {
		const { stdout } = await ask([world.stalecastUrl]);
		const project = new URL('../../..', import.meta.url).pathname;
		const env = { PYTHONPATH: `${project}:${app.folder}`, STALECAST_EVENTS_MODULE: 'events_of_its_own' };
		const schema = (await app.run([PYTHON, '-m', 'app', 'schema'], env)).stdout;
		app.write({ 'schema.json': schema });
		expect((await ask([`${world.stalecastUrl}/`])).stdout).toBe(stdout);
		expect((await ask([`${world.stalecastUrl}/openapi.json`])).stdout).toBe(stdout);
		expect((await ask(['schema.json'])).stdout).toBe(stdout);
		expect((await ask(['-'], schema)).stdout).toBe(stdout);
	});

	test('for several servers nothing is registered', async () => {
		const { stdout } = await ask([world.stalecastUrl, '--no-register']);
		expect(stdout).toContain('export type ServerEvents =');
		expect(stdout).not.toContain('declare module');
	});
});

describe('what gives no types says what to do, and writes none', () => {
	let server: Server;
	let url: string;
	beforeAll(async () => {
		server = createServer(({ url: path }, response) => {
			const [, prefix] = path!.split('/');
			if (prefix === 'login') response.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html><form>');
			else if (prefix === 'other') response.end(JSON.stringify({ openapi: '3.1.0', components: { schemas: { Health: {} } } }));
			else if (prefix === 'cut') response.writeHead(200, { 'Content-Length': '100' }).write('{', () => response.destroy());
			else response.writeHead(Number(prefix)).end('{}');
		});
		await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
		url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
	});
	afterAll(() => server.close());

	test('a server that is not there', async () => {
		expectRefusal(await ask([`http://127.0.0.1:${await freePort()}`]), 'ECONNREFUSED', 'start the server', 'stalecast schema');
	});

	test.each([
		['404', '/openapi.json is not there (404)', 'the URL under which'],
		['401', 'not for everybody (401)', 'without what guards it'],
		['503', '503', "the server's log"],
		['cut', 'cannot be reached', 'start the server'],
		['login', 'no JSON', 'stalecast schema'],
		['other', 'without the schema SseEnvelope', 'Stalecast'],
	])('a server that answers: %s', async (prefix, ...said) => {
		expectRefusal(await ask([`${url}/${prefix}`]), ...said);
	});

	test.each<[sources: string[], ...said: string[]]>([
		[['nowhere.json'], 'ENOENT', 'give a file'],
		[['.'], 'EISDIR', 'give a file'],
		[['stalecast.example.com'], 'ENOENT', 'http://'],
		[['http://'], 'no URL'],
		[['package.json'], 'package.json: it is no schema of events'],
		[[], 'give one source'],
		[['a', 'b'], 'give one source'],
		[['a', '--registered'], '--registered'],
	])('%s', async (sources, ...said) => {
		expectRefusal(await ask(sources), ...said);
	});

	test.each([
		['', 'standard input holds no JSON'],
		['{"type": "object"}', 'no schema of events'],
		['{"oneOf": [{"$ref": "other.json"}]}', 'other.json is outside'],
	])('standard input: %s', async (input, said) => {
		expectRefusal(await ask(['-'], input), said);
	});
});
