/**
 * Changes the source, one small thing at a time, and tells of each change that no test noticed, unless it is explained
 * in `mutate.explained.mjs`. `npm run mutate -- src/polling.ts ...`; without files it takes all, and an hour or two.
 *
 * First only the tests of the client, of the files themselves and of their directories run; what they let pass meets
 * all units, the cases of web-platform-tests and the model too, which are slow.
 */

import { readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { Stryker } from '@stryker-mutator/core';
import { explained } from './mutate.explained.mjs';

const ALL = ['src/**/*.{ts,tsx}', '!src/generated/**', '!src/**/index.ts'];

process.env.MODEL_RUNS ??= '100';

/** Each mutant of `mutate`, as it fared with the unit tests of these names; without names, with all tests. */
function run(mutate, names = []) {
	process.env.MUTATE_TESTS = names.join();
	return new Stryker({
		mutate,
		testRunner: 'vitest',
		// `related`: by imports nearly every test is, to every file.
		vitest: { configFile: 'scripts/mutate.vitest.ts', related: false },
		plugins: ['@stryker-mutator/vitest-runner'],
		reporters: ['progress-append-only'],
		concurrency: Number(process.env.MUTATE_PROCESSES ?? 1),
		// Long: a machine that is busy with something else is no test that noticed.
		timeoutMS: 20_000,
		ignorePatterns: ['dist', 'example'],
		tempDirName: 'node_modules/.cache/stryker',
		// What neither the source nor its tests have changed is not tried again.
		incremental: true,
		incrementalFile: `node_modules/.cache/mutate-${names.length ? 'first' : 'all'}.json`,
		warnings: { slow: false },
	}).runMutationTest();
}

const isAlive = ({ status }) => status === 'Survived' || status === 'NoCoverage';
const rangeOf = ({ fileName, location: { start, end } }) =>
	`${fileName}:${start.line}:${start.column - 1}-${end.line}:${end.column - 1}`;
const keyOf = (mutant) => `${rangeOf(mutant)} ${mutant.replacement}`;

/** By its name and its directory's: `tabs.test.ts` is for all of `tabs/`. */
const testsOf = (file) => [basename(file).replace(/\..*/, ''), basename(dirname(file))];

const asked = process.argv.slice(2);
// What is not tried again is among the results all the same, also of files that nobody asked for this time.
const isAsked = ({ fileName }) => !asked.length || asked.some((file) => fileName.endsWith(file.replace(/:.*/, '')));
const all = (await (asked.length ? run(asked, ['client', ...asked.flatMap(testsOf)]) : run(ALL, ['*']))).filter(isAsked);
let alive = all.filter(isAlive);
if (alive.length) {
	const later = new Map((await run([...new Set(alive.map(rangeOf))])).map((mutant) => [keyOf(mutant), mutant]));
	alive = alive.filter((mutant) => isAlive(later.get(keyOf(mutant)) ?? mutant));
}

const used = new Set();
const open = [];
for (const mutant of alive) {
	const line = readFileSync(mutant.fileName, 'utf8').split('\n')[mutant.location.start.line - 1].trim();
	const entry = explained.find(
		({ file, line: of, to }) => mutant.fileName.endsWith(file) && line.includes(of) && (!to || mutant.replacement.includes(to)),
	);
	if (entry) used.add(entry);
	else open.push(`${mutant.fileName}:${mutant.location.start.line} ${mutant.mutatorName}\n\t- ${line}\n\t+ ${mutant.replacement}`);
}
for (const file of new Set(all.map(({ fileName }) => fileName))) {
	const count = (of) => of.filter(({ fileName }) => fileName === file).length;
	console.log(`${file}: ${count(all)} mutants, ${count(all) - count(alive)} noticed, ${count(alive)} not`);
	for (const entry of explained) if (file.endsWith(entry.file) && !used.has(entry)) console.log(`\tneedless: ${entry.line} ${entry.to ?? ''}`);
}
if (open.length) {
	console.log(`\nNo test noticed, and nothing explains:\n${open.join('\n')}`);
	process.exitCode = 1;
}
