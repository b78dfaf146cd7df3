/** The tests that `mutate.mjs` asks for. */

import { defineConfig, type UserWorkspaceConfig } from 'vitest/config';
import all from '../vitest.config.js';

const names = process.env.MUTATE_TESTS!.split(',').filter(Boolean);
const projects = (all.test!.projects as UserWorkspaceConfig[]).filter(({ test }) =>
	(names.length ? ['unit'] : ['unit', 'wpt', 'model']).includes(`${test!.name}`),
);
if (names.length) projects[0]!.test!.include = names.map((name) => `test/unit/${name}{,-*}.test.{ts,tsx}`);
// Instrumented, and beside other work, a test may take long.
for (const { test } of projects) test!.testTimeout = 60_000;

export default defineConfig({
	...all,
	root: new URL('..', import.meta.url).pathname,
	test: { projects },
});
