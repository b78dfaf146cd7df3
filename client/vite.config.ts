import { defineConfig } from 'vite';

// The declarations come from tsc: see the script `build`.
export default defineConfig({
	build: {
		target: 'es2022',
		sourcemap: true,
		// An application's own build does that; here it would only hide names from whoever debugs.
		minify: false,
		lib: {
			entry: {
				index: 'src/index.ts',
				react: 'src/react/index.ts',
				query: 'src/query/index.ts',
				zod: 'src/generated/zod.ts',
			},
			formats: ['es'],
		},
		rolldownOptions: { external: [/^[^./]/] },
	},
});
