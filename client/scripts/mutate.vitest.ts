/** The tests that `mutate.mjs` asks for. */

import { defineConfig, type UserWorkspaceConfig } from 'vitest/config';
import all from '../vitest.config.js';

const names = process.env.MUTATE_PROJECTS!.split(',');

export default defineConfig({
	...all,
	root: new URL('..', import.meta.url).pathname,
	test: { projects: (all.test!.projects as UserWorkspaceConfig[]).filter(({ test }) => names.includes(`${test!.name}`)) },
});
