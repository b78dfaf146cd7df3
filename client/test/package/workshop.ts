/** Fresh folders with the tarball in them, as a developer has it after `npm install`. */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inject } from 'vitest';

export const TSC = fileURLToPath(new URL('../../node_modules/typescript/bin/tsc', import.meta.url));

/** As a shell has it: nothing of vitest, and nothing of the `npm run` that has started it. */
const ENV = Object.fromEntries(
	Object.entries(process.env).filter(
		([name]) => !/^(NODE_ENV|VITEST.*|TEST|DEV|PROD|MODE|SSR|BASE_URL|npm_(package|lifecycle)_.*|npm_config_local_prefix)$/.test(name),
	),
);

export interface Outcome {
	code: number | null;
	stdout: string;
	stderr: string;
}

export class App {
	readonly folder: string;

	constructor(name: string) {
		this.folder = mkdtempSync(join(tmpdir(), `stalecast-app-${name}-`));
	}

	write(files: Record<string, string>): void {
		for (const [name, text] of Object.entries(files)) {
			mkdirSync(dirname(join(this.folder, name)), { recursive: true });
			writeFileSync(join(this.folder, name), text);
		}
	}

	/** The tarball, and more by names and ranges of versions. What npm warns of is returned. */
	async install(dependencies: Record<string, string> = {}, manifest: object = {}): Promise<string> {
		const all = { 'stalecast-client': `file:${inject('tarball')}`, ...dependencies };
		this.write({ 'package.json': JSON.stringify({ name: 'app', private: true, ...manifest, dependencies: all }) });
		const { stderr } = await this.run(['npm', 'install', '--prefer-offline', '--no-audit', '--no-fund']);
		return stderr;
	}

	/** Throws with what it said, where it fails. */
	async run(command: string[], env: Record<string, string> = {}): Promise<Outcome> {
		const outcome = await this.try(command, { env });
		if (outcome.code !== 0) throw new Error(`${command.join(' ')}: ${outcome.code}\n${outcome.stdout}${outcome.stderr}`);
		return outcome;
	}

	try(command: string[], { env = {}, input = '' }: { env?: Record<string, string>; input?: string } = {}): Promise<Outcome> {
		return new Promise((resolve, reject) => {
			const child = this.start(command, env);
			const outcome: Outcome = { code: null, stdout: '', stderr: '' };
			child.stdout!.setEncoding('utf8').on('data', (text: string) => (outcome.stdout += text));
			child.stderr!.setEncoding('utf8').on('data', (text: string) => (outcome.stderr += text));
			child.on('error', reject).on('close', (code) => resolve({ ...outcome, code }));
			child.stdin!.on('error', () => {}).end(input); // it may end without reading
		});
	}

	/** Something that goes on until it is ended. */
	start([program, ...given]: string[], env: Record<string, string> = {}): ChildProcess {
		return spawn(program!, given, { cwd: this.folder, env: { ...ENV, ...env }, stdio: 'pipe' });
	}

	remove(): void {
		rmSync(this.folder, { recursive: true, force: true });
	}
}
