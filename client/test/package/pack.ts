/** Before the tests of the package: the tarball, as `npm publish` would make it from a fresh clone. */

import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { TestProject } from 'vitest/node';

declare module 'vitest' {
	interface ProvidedContext {
		tarball: string;
	}
}

const CLIENT = fileURLToPath(new URL('../..', import.meta.url));
/** A clone has more, which a build does not need, and no `dist`. */
const CLONED = ['src', 'package.json', 'README.md', 'LICENSE', 'vite.config.ts', 'tsconfig.json', 'tsconfig.build.json'];

export default function setup(project: TestProject): () => void {
	const folder = mkdtempSync(join(tmpdir(), 'stalecast-pack-'));
	for (const name of CLONED) cpSync(join(CLIENT, name), join(folder, name), { recursive: true });
	symlinkSync(join(CLIENT, 'node_modules'), join(folder, 'node_modules'));
	// What `prepack` builds may say something first.
	const output = execFileSync('npm', ['pack', '--silent'], { cwd: folder, encoding: 'utf8' });
	project.provide('tarball', join(folder, output.trim().split('\n').at(-1)!));
	return () => rmSync(folder, { recursive: true, force: true });
}
