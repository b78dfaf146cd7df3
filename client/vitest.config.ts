import { defineConfig } from 'vitest/config';

const alias = [{ find: 'stalecast-client/zod', replacement: new URL('src/generated/zod.ts', import.meta.url).pathname }];

export default defineConfig({
	resolve: { alias },
	test: {
		projects: [
			{ test: { name: 'unit', include: ['test/unit/**/*.test.{ts,tsx}'], environment: 'happy-dom' } },
			// As in production: what a developer is warned of holds every client that was never released.
			{ test: { name: 'model', include: ['test/model/**/*.test.ts'], env: { NODE_ENV: 'production' } } },
			{ test: { name: 'wpt', include: ['test/contract/wpt.test.ts'] } },
			// Needs Go, and takes a minute.
			{ test: { name: 'contract', include: ['test/contract/launchdarkly.test.ts'] } },
			{ test: { name: 'types', include: ['test/types/**/*.test-d.ts'], typecheck: { enabled: true, only: true } } },
			{
				test: {
					name: 'package',
					include: ['test/package/*.test.ts'],
					globalSetup: 'test/package/pack.ts',
					testTimeout: 120_000,
					hookTimeout: 120_000,
				},
			},
			{
				extends: true,
				test: {
					name: 'browser',
					include: ['test/browser/**/*.test.ts'],
					testTimeout: 45_000,
					hookTimeout: 60_000,
					fileParallelism: false,
				},
			},
		],
	},
});
