import { defineConfig } from 'vite';

// The declarations come from tsc: see the script `build`.
export default defineConfig({
	// Whatever NODE_ENV is where it is packed: React's development runtime has no place in an application.
	oxc: { jsx: { runtime: 'automatic', development: false } },
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
				cli: 'src/cli/main.ts',
			},
		},
		rolldownOptions: {
			external: [/^[^./]/],
			// It doubts that 'use client' stays the first line of react.js. test/package sees to it.
			onLog(level, log, pass) {
				if (log.code !== 'MODULE_LEVEL_DIRECTIVE') pass(level, log);
			},
			output: [
				{ format: 'es', entryFileNames: '[name].js', chunkFileNames: '[name].js' },
				// For Jest, and for TypeScript that writes `require`. Beside the files lies a package.json which calls
				// them CommonJS, and the declarations with them: so both builds have the same names inside.
				{ format: 'cjs', entryFileNames: 'cjs/[name].js', chunkFileNames: 'cjs/[name].js', exports: 'named', sourcemap: false },
			],
		},
	},
	plugins: [
		{
			name: 'stalecast:commonjs',
			generateBundle({ format }, bundle) {
				if (format !== 'cjs') return;
				delete bundle['cjs/cli.js']; // a command, which nobody requires
				this.emitFile({ type: 'asset', fileName: 'cjs/package.json', source: '{ "type": "commonjs" }\n' });
			},
		},
	],
});
