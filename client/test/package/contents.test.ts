/** What lies in the tarball. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, inject, test } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'stalecast-tarball-'));
execFileSync('tar', ['-xzf', inject('tarball'), '-C', folder, '--strip-components', '1']);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const read = (name: string): string => readFileSync(join(folder, name), 'utf8');
const manifest = JSON.parse(read('package.json'));
const inProject = (name: string): string => readFileSync(new URL(`../../../${name}`, import.meta.url), 'utf8');

test('its version is that of the server beside it', () => {
	expect(inProject('app/__init__.py')).toContain(`__version__ = "${manifest.version}"`);
});

test('it has the license of the project', () => {
	expect(read('LICENSE')).toBe(inProject('LICENSE'));
});

test('it needs nothing else to be installed', () => {
	expect(manifest.dependencies).toBeUndefined();
	for (const peer of Object.keys(manifest.peerDependencies)) expect(manifest.peerDependenciesMeta[peer]).toEqual({ optional: true });
});

test('every link of the README leads somewhere from npm, too', () => {
	const targets = [...read('README.md').matchAll(/\]\(([^)]+)\)/g)].map(([, target]) => target!);
	expect(targets).not.toEqual([]);
	const repository = manifest.repository.url.replace(/^git\+|\.git$/g, '');
	const raw = repository.replace('//github.com/', '//raw.githubusercontent.com/');
	for (const target of targets) expect(target).toSatisfy((link: string) => link.startsWith(repository) || link.startsWith(raw));
});

test.each(['dist/react.js', 'dist/cjs/react.js'])('%s is for the client of a framework with server components', (name) => {
	expect(read(name).split('\n')[0]).toMatch(/^(['"])use client\1;$/);
});

// NODE_ENV is `test` while these tests pack it.
test.each(['dist/react.js', 'dist/cjs/react.js'])('%s has the runtime of production, wherever it was packed', (name) => {
	expect(read(name)).toMatch(/react\/jsx-runtime/);
	expect(read(name)).not.toMatch(/jsxDEV/);
});

test.each(['dist/index.js', 'dist/query.js', 'dist/cjs/index.js', 'dist/cjs/query.js'])('%s is for either side', (name) => {
	expect(read(name)).not.toContain('use client');
});
