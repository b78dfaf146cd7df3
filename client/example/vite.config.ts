import { fileURLToPath } from 'node:url';
import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';
import { api } from './api.js';

const stalecastUrl = process.env.STALECAST_URL || 'http://127.0.0.1:8000';
const fromHere = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
	root: fromHere('.'),
	plugins: [react(), api({ stalecastUrl, publishToken: process.env.STALECAST_PUBLISH_TOKEN ?? '' })],
	resolve: {
		// The package as it stands beside the example, so nothing has to be built first.
		alias: [
			{ find: /^stalecast-client$/, replacement: fromHere('../src/index.ts') },
			{ find: /^stalecast-client\/(.*)$/, replacement: fromHere('../src/$1/index.ts') },
		],
	},
	server: {
		host: '127.0.0.1',
		port: 5173,
		strictPort: true,
		proxy: {
			'/v1': {
				target: stalecastUrl,
				// A stream that breaks off must do so in the browser, too: of itself, the proxy would leave it open there.
				configure: (proxy) =>
					proxy.on('proxyRes', (from, _request, to) => from.once('close', () => from.complete || to.destroy())),
			},
		},
	},
	preview: { host: '127.0.0.1', port: 5173, strictPort: true },
});
