/** Applications as their frameworks' own tools make them, with the tarball in them: built, started, and a page looked at. */

import { type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { answers, freePort, isLacking, waitUntil, World } from '../browser/harness.js';
import { App, TSC } from './workshop.js';

const ITEM = 'a';

/** In the page's own words: where its streams and its data are. */
const SHARED = `
export const topic = new URLSearchParams(location.search).get('url') ?? '/v1/sse/none';
export const fetchItem = async (): Promise<{ version: number }> => (await fetch('/api/items/${ITEM}?page=app')).json();
export const keys = { argument_updated: ({ id }: { id: string | number }) => [['item', String(id)]] };
`;

const TSCONFIG = JSON.stringify({
	compilerOptions: {
		strict: true,
		noEmit: true,
		exactOptionalPropertyTypes: true,
		skipLibCheck: true,
		jsx: 'react-jsx',
		target: 'es2022',
		module: 'esnext',
		moduleResolution: 'bundler',
		lib: ['es2023', 'dom'],
		types: ['vite/client'],
	},
	include: ['src'],
});

const REACT = {
	'index.html': '<!doctype html><div id="root"></div><script type="module" src="/src/main.tsx"></script>',
	'vite.config.js': `import react from '@vitejs/plugin-react';\nexport default { plugins: [react()] };`,
	'tsconfig.json': TSCONFIG,
	'src/shared.ts': SHARED,
	'src/main.tsx': `
import { QueryClient, QueryClientProvider, useQuery } from '@tanstack/react-query';
import { createRoot } from 'react-dom/client';
import { SSEClient } from 'stalecast-client';
import { bindQueryClient } from 'stalecast-client/query';
import { SSEProvider, useSSEStatus } from 'stalecast-client/react';
import { fetchItem, keys, topic } from './shared';

const queryClient = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity } } });

function Item() {
	const { data } = useQuery({ queryKey: ['item', '${ITEM}'], queryFn: fetchItem });
	return <p id="version">{data?.version}</p>;
}

function Status() {
	return <p id="status">{useSSEStatus()}</p>;
}

function Told() {
	const sse = new SSEClient(topic);
	bindQueryClient(sse, queryClient, { keys });
	return <SSEProvider client={sse}><Item /><Status /></SSEProvider>;
}

const root = createRoot(document.getElementById('root')!);
root.render(<QueryClientProvider client={queryClient}>{import.meta.env.VITE_WITH ? <Told /> : <Item />}</QueryClientProvider>);
`,
};

const VUE = {
	'index.html': '<!doctype html><div id="root"></div><script type="module" src="/src/main.ts"></script>',
	'vite.config.js': `import vue from '@vitejs/plugin-vue';\nexport default { plugins: [vue()] };`,
	'tsconfig.json': TSCONFIG,
	'src/shared.ts': SHARED,
	'src/vue.d.ts': `declare module '*.vue' { import type { Component } from 'vue'; const component: Component; export default component; }`,
	'src/App.vue': `<script setup lang="ts">
import { useQuery } from '@tanstack/vue-query';
import { ref } from 'vue';
import { fetchItem } from './shared';
import { sse } from './stream';
const { data } = useQuery({ queryKey: ['item', '${ITEM}'], queryFn: fetchItem });
const status = ref('');
sse?.subscribe(() => (status.value = sse!.getSnapshot()));
</script>
<template><p id="version">{{ data?.version }}</p><p id="status">{{ status }}</p></template>
`,
	'src/stream.ts': `
import { QueryClient } from '@tanstack/vue-query';
import { SSEClient } from 'stalecast-client';
import { bindQueryClient } from 'stalecast-client/query';
import { keys, topic } from './shared';

export const queryClient = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity } } });
export const sse = import.meta.env.VITE_WITH ? new SSEClient(topic) : undefined;
if (sse) {
	bindQueryClient(sse, queryClient, { keys });
	sse.connect();
}
`,
	'src/main.ts': `
import { VueQueryPlugin } from '@tanstack/vue-query';
import { createApp } from 'vue';
import App from './App.vue';
import { queryClient } from './stream';

createApp(App).use(VueQueryPlugin, { queryClient }).mount('#root');
`,
};

/** The server asks for the cursor first, and then for the data: what changes in between is told again. */
const NEXT = {
	'next.config.mjs': 'export default {};',
	'app/layout.jsx': `export default function Layout({ children }) { return <html><body>{children}</body></html>; }`,
	'app/page.jsx': `
import { Board } from './board';

export const dynamic = 'force-dynamic';

export default async function Page({ searchParams }) {
	const { topic } = await searchParams;
	const { cursor } = await (await fetch(process.env.STALECAST_URL + '/v1/topics/' + topic + '/cursor')).json();
	const item = await (await fetch(process.env.SITE_URL + '/api/items/${ITEM}?page=server')).json();
	return <Board url={process.env.STALECAST_URL + '/v1/sse/' + topic} initialLastEventId={cursor} item={item} />;
}
`,
	'app/without/page.jsx': `
import { Without } from './without';

export const dynamic = 'force-dynamic';

export default async function Page() {
	const item = await (await fetch(process.env.SITE_URL + '/api/items/${ITEM}?page=server')).json();
	return <Without item={item} />;
}
`,
	'app/item.jsx': `
'use client';
import { useQuery } from '@tanstack/react-query';

export function Item({ item }) {
	const queryFn = async () => (await fetch('/api/items/${ITEM}')).json();
	const { data } = useQuery({ queryKey: ['item', '${ITEM}'], queryFn, initialData: item });
	return <p id="version">{data.version}</p>;
}
`,
	'app/without/without.jsx': `
'use client';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { useState } from 'react';
import { Item } from '../item';

export function Without({ item }) {
	const [queryClient] = useState(() => new QueryClient({ defaultOptions: { queries: { staleTime: Infinity } } }));
	return <QueryClientProvider client={queryClient}><Item item={item} /></QueryClientProvider>;
}
`,
	'app/board.jsx': `
'use client';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { useEffect, useState } from 'react';
import { SSEClient } from 'stalecast-client';
import { bindQueryClient } from 'stalecast-client/query';
import { SSEProvider, useSSEStatus } from 'stalecast-client/react';
import { Item } from './item';

function Status() {
	return <p id="status">{useSSEStatus()}</p>;
}

export function Board({ url, initialLastEventId, item }) {
	const [queryClient] = useState(() => new QueryClient({ defaultOptions: { queries: { staleTime: Infinity } } }));
	const [sse] = useState(() => new SSEClient(url, { initialLastEventId }));
	useEffect(() => bindQueryClient(sse, queryClient, { keys: { argument_updated: ({ id }) => [['item', String(id)]] } }), [sse, queryClient]);
	return (
		<QueryClientProvider client={queryClient}>
			<SSEProvider client={sse}><Item item={item} /><Status /></SSEProvider>
		</QueryClientProvider>
	);
}
`,
	'app/api/items/[id]/route.js': `
export async function GET(_, { params }) {
	const { id } = await params;
	return fetch(process.env.SITE_URL + '/api/items/' + id + '?page=app', { cache: 'no-store' });
}
`,
};

/** Of what npm warns of, that which a package causes by its peers. */
const peerWarnings = (text: string): string[] => text.split('\n').filter((line) => /peer|ERESOLVE|EBADENGINE|deprecated stalecast/.test(line));

const sizes: { app: string; without: number; with: number }[] = [];

const saidBy = new WeakMap<Page, string[]>();

async function openPage(world: World): Promise<Page> {
	const page = await world.newPage();
	const said: string[] = [];
	page.on('pageerror', (error) => said.push(String(error))).on('console', (message) => said.push(message.text()));
	saidBy.set(page, said);
	return page;
}

/** Where it fails, the error has what the page said. */
const waitText = (page: Page, id: string, text: string): Promise<void> => {
	const isThere = async () => (await page.locator(`#${id}`).allTextContents()).includes(text);
	return waitUntil(`#${id} is ${text}`, isThere, undefined, async () => [saidBy.get(page), await page.content()]);
};

/** What a browser loads as JavaScript, each file gzipped; the page is closed. */
async function scriptsOf(page: Page, url: string): Promise<Buffer[]> {
	const bodies: Promise<Buffer>[] = [];
	page.on('response', (response) => {
		if (response.request().resourceType() === 'script' && response.ok()) bodies.push(response.body());
	});
	await page.goto(url);
	await waitText(page, 'version', '0');
	const scripts = await Promise.all(bodies);
	await page.close();
	return scripts;
}

const weigh = (scripts: Buffer[]): number => scripts.reduce((sum, script) => sum + gzipSync(script).length, 0);

describe.skipIf(isLacking())('in a fresh application', () => {
	const world = new World();
	const react = new App('react');
	const vue = new App('vue');
	const next = new App('next');
	let nextServer: ChildProcess | undefined;

	beforeAll(() => world.start({}, react.folder));
	beforeEach(() => world.reset([ITEM]));
	afterAll(async () => {
		nextServer?.kill('SIGTERM');
		await world.stop();
		for (const app of [react, vue, next]) app.remove();
		const rows = sizes.map(({ app, without, with: all }) => {
			const kB = (bytes: number) => (bytes / 1000).toFixed(1);
			return `| ${app} | ${kB(without)} | ${kB(all)} | ${kB(all - without)} |`;
		});
		console.log(['| kB of JavaScript, gzipped | without | with | the client |', '|---|---|---|---|', ...rows].join('\n'));
	});

	/** A page that is live shows what is said to have changed. */
	async function expectTold(page: Page): Promise<void> {
		await waitText(page, 'status', 'live');
		await world.update(ITEM);
		await waitText(page, 'version', '1');
		await page.close();
	}

	async function build(app: App): Promise<void> {
		await app.run(['npx', 'vite', 'build', '--outDir', 'with'], { VITE_WITH: 'true' });
		await app.run(['npx', 'vite', 'build', '--outDir', 'without'], { VITE_WITH: '' });
	}

	async function expectVite(name: string, app: App): Promise<void> {
		const url = `${world.siteUrl}/?url=${encodeURIComponent(`${world.stalecastUrl}/v1/sse/${world.topic}`)}`;
		world.served = join(app.folder, 'without');
		const without = weigh(await scriptsOf(await openPage(world), url));
		world.served = join(app.folder, 'with');
		sizes.push({ app: name, without, with: weigh(await scriptsOf(await openPage(world), url)) });
		const page = await openPage(world);
		await page.goto(url);
		await expectTold(page);
	}

	test('Vite and React', async () => {
		react.write(REACT);
		const warnings = await react.install({
			react: '^19',
			'react-dom': '^19',
			'@types/react': '^19',
			'@types/react-dom': '^19',
			'@tanstack/react-query': '^5',
			vite: '^8',
			'@vitejs/plugin-react': '^6',
		});
		expect(peerWarnings(warnings)).toEqual([]);
		await react.run(['node', TSC, '-p', '.']);
		await build(react);
		await expectVite('Vite, React, TanStack Query', react);
	});

	test('Vite and Vue', async () => {
		vue.write(VUE);
		const warnings = await vue.install({ vue: '^3', '@tanstack/vue-query': '^5', vite: '^8', '@vitejs/plugin-vue': '^6' });
		expect(peerWarnings(warnings)).toEqual([]);
		await vue.run(['node', TSC, '-p', '.']);
		await build(vue);
		await expectVite('Vite, Vue, TanStack Query', vue);
	});

	test('Next.js: the server reads the cursor, and nothing is fetched a second time', async () => {
		next.write(NEXT);
		const warnings = await next.install({ next: '^16', react: '^19', 'react-dom': '^19', '@tanstack/react-query': '^5' });
		expect(peerWarnings(warnings)).toEqual([]);
		const quiet = { NEXT_TELEMETRY_DISABLED: '1', STALECAST_URL: world.stalecastUrl, SITE_URL: world.siteUrl };
		await next.run(['npx', 'next', 'build'], quiet);
		const port = await freePort();
		nextServer = next.start(['node', 'node_modules/next/dist/bin/next', 'start', '--port', `${port}`], quiet);
		const url = `http://127.0.0.1:${port}`;
		await waitUntil('Next.js is ready', () => answers(`${url}/without`));

		const without = weigh(await scriptsOf(await openPage(world), `${url}/without`));
		const withIt = weigh(await scriptsOf(await openPage(world), `${url}/?topic=${world.topic}`));
		sizes.push({ app: 'Next.js, TanStack Query', without, with: withIt });

		world.fetches.length = 0;
		const page = await openPage(world);
		await page.goto(`${url}/?topic=${world.topic}`);
		await expectTold(page);
		expect(world.fetches.map(({ page: from }) => from)).toEqual(['server', 'app']);
	}, 240_000);
});
