/** Where there is no bundler: Node itself, Jest, and TypeScript as it resolves packages for Node. */

import { afterAll, beforeAll, expect, test } from 'vitest';
import { App, TSC } from './workshop.js';

const apps: App[] = [];
afterAll(() => {
	for (const app of apps) app.remove();
});

const made = (name: string): App => {
	const app = new App(name);
	apps.push(app);
	return app;
};

/** What each module is for, seen from outside; peers are there. */
const LOOK = `
const sse = new SSEClient('http://127.0.0.1:1/v1/sse/1', { initialLastEventId: '1-0' });
const { createElement } = React;
const Shown = () => createElement('p', null, useSSEStatus());
const html = renderToString(createElement(SSEProvider, { client: sse }, createElement(Shown)));
const seen = [sse.lastEventId, html, typeof bindQueryClient, zSseEnvelope.safeParse({ event: 'position', data: {} }).success];
`;
const SEEN = ['1-0', '<p>connecting</p>', 'function', true];
const NAMES = {
	React: 'react',
	'{ renderToString }': 'react-dom/server',
	'{ SSEClient }': 'stalecast-client',
	'{ bindQueryClient }': 'stalecast-client/query',
	'{ SSEProvider, useSSEStatus }': 'stalecast-client/react',
	'{ zSseEnvelope }': 'stalecast-client/zod',
};
const imports = Object.entries(NAMES).map(([names, from]) => `import ${names} from '${from}';\n`).join('');
const requires = Object.entries(NAMES).map(([names, from]) => `const ${names} = require('${from}');\n`).join('');

const app = made('node');
beforeAll(() => app.install({ react: '^19', 'react-dom': '^19', zod: '^4', '@tanstack/query-core': '^5', jest: '^30', '@types/node': '^20' }));

test.each([
	['an ES module', 'look.mjs', imports],
	['CommonJS', 'look.cjs', requires],
])('Node, from %s', async (_, name, beginning) => {
	app.write({ [name]: `${beginning}${LOOK}console.log(JSON.stringify(seen));` });
	const { stdout, stderr } = await app.run(['node', name]);
	expect(stderr).toBe('');
	expect(JSON.parse(stdout)).toEqual(SEEN);
});

test('Jest, which requires', async () => {
	app.write({ 'look.test.js': `${requires}test('it', () => {${LOOK}expect(seen).toEqual(${JSON.stringify(SEEN)}); });` });
	const { stderr } = await app.run(['npx', 'jest']);
	expect(stderr).toContain('1 passed');
});

const USE = `
import { SSEClient, type Status } from 'stalecast-client';
import { bindQueryClient, type BindOptions } from 'stalecast-client/query';
const sse = new SSEClient('/v1/sse/1');
export const status: Status = sse.status;
export const options: BindOptions = { keys: { argument_updated: ({ id }) => [['argument', id]] } };
export const bound = (queryClient: Parameters<typeof bindQueryClient>[1]) => bindQueryClient(sse, queryClient, options);
// @ts-expect-error: there is no such event
sse.on('argument_eaten', () => {});
`;

// The declarations of the package are checked, too.
test.each(['node16', 'nodenext'])('TypeScript, %s, from an ES module and from CommonJS', async (module) => {
	app.write({ 'use.mts': USE, 'use.cts': USE });
	const options = ['--strict', '--noEmit', '--exactOptionalPropertyTypes', '--skipDefaultLibCheck', '--types', 'node'];
	const target = ['--target', 'es2022', '--lib', 'es2023,dom'];
	await app.run(['node', TSC, '--ignoreConfig', '--module', module, ...target, ...options, 'use.mts', 'use.cts']);
});
