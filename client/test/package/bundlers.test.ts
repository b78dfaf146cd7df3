/** Warnings for developers are in no production build, whatever makes it. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { App } from './workshop.js';

const app = new App('bundlers');
/** Something of each warning, and what all begin with. */
const WARNINGS = ['stalecast: ', 'shouldRetry threw', 'gave up on', 'React Native has no EventTarget', 'the sixth makes every request wait', 'matches no query'];

beforeAll(async () => {
	await app.install({ vite: '^8', esbuild: '^0.28', webpack: '^5', 'webpack-cli': '^6', rollup: '^4' }, { type: 'module' });
	app.write({
		'index.html': '<!doctype html><script type="module" src="/main.js"></script>',
		'main.js': `
			import { SSEClient } from 'stalecast-client';
			import { bindQueryClient } from 'stalecast-client/query';
			window.sse = new SSEClient('/v1/sse/1');
			window.bind = (queryClient) => bindQueryClient(window.sse, queryClient, { keys: {} });
			window.sse.connect();
		`,
	});
});
afterAll(() => app.remove());

const bundlers: [name: string, command: (mode: string) => string[], output: string][] = [
	['Vite', (mode) => ['vite', 'build', '--mode', mode, '--config', 'vite.config.js'], 'vite/main.js'],
	['esbuild', (mode) => ['esbuild', 'main.js', '--bundle', '--minify', `--define:process.env.NODE_ENV="${mode}"`, '--outfile=esbuild/main.js'], 'esbuild/main.js'],
	['webpack', (mode) => ['webpack', './main.js', '--mode', mode, '-o', 'webpack'], 'webpack/main.js'],
];

test('each warning is looked for', () => {
	const texts = ['index.js', 'query.js', 'react.js'].map((name) => readFileSync(join(app.folder, 'node_modules/stalecast-client/dist', name), 'utf8'));
	expect(texts.join('').match(/\bwarn\(/g)).toHaveLength(WARNINGS.length - 1);
});

test.each(bundlers)('%s', async (_, command, output) => {
	app.write({
		'vite.config.js': `export default { build: { outDir: 'vite', rolldownOptions: { output: { entryFileNames: 'main.js' } } } };`,
	});
	const built = async (mode: string) => {
		await app.run(['npx', ...command(mode)], { NODE_ENV: mode });
		return readFileSync(join(app.folder, output), 'utf8');
	};
	const foundIn = (text: string) => WARNINGS.filter((words) => text.includes(words));
	// So the search finds what there is.
	expect(foundIn(await built('development'))).toEqual(WARNINGS);
	const text = await built('production');
	expect(foundIn(text)).toEqual([]);
	expect(text).not.toContain('NODE_ENV');
});
