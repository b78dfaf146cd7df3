// Writes src/generated/: the types and the zod schema of everything that the server may send, from its own
// `stalecast schema`. With --check it writes nothing, and fails where what is there differs.
//
//     npm run generate
//
// The schema is read from the command in STALECAST (default: the server in this repository).
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { jsonSchemaToZod } from 'json-schema-to-zod';
import { runnerImport } from 'vite';

const NOTICE = '// Generated from `stalecast schema` by `npm run generate`: change app/contracts.py, not this file.\n';
const root = new URL('../../', import.meta.url);
const folder = new URL('../src/generated/', import.meta.url);

function readSchema() {
	const command = process.env.STALECAST?.split(' ') ?? ['.venv/bin/python', '-m', 'app'];
	// Nothing of the surrounding shell may add event types.
	const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('STALECAST_')));
	return JSON.parse(execFileSync(command[0], [...command.slice(1), 'schema'], { cwd: root, env, encoding: 'utf8' }));
}

/** Each `$ref` replaced by what it names; the generator of zod knows no references. */
function resolve(node, definitions) {
	if (Array.isArray(node)) return node.map((item) => resolve(item, definitions));
	if (node === null || typeof node !== 'object') return node;
	if (node.$ref) return resolve(definitions[node.$ref.replace('#/$defs/', '')], definitions);
	return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, resolve(value, definitions)]));
}

function writeZod(schema) {
	const { $defs, oneOf, ...rest } = schema;
	const members = oneOf.map((member) => `\t${jsonSchemaToZod(resolve(member, $defs), { zodVersion: 4 })},\n`).join('');
	return `${NOTICE}
import { z } from 'zod';

/** ${rest.description} */
export const zSseEnvelope = z.discriminatedUnion('${rest.discriminator.propertyName}', [
${members}]);
`;
}

const schema = readSchema();
// As the package's own command does it.
const { eventTypes } = (await runnerImport(new URL('../src/cli/events.ts', import.meta.url).pathname)).module;
const files = { 'events.ts': eventTypes(schema, { notice: NOTICE, isRegistered: false }), 'zod.ts': writeZod(schema) };
let stale = false;
for (const [name, text] of Object.entries(files)) {
	const file = new URL(name, folder);
	if (!process.argv.includes('--check')) {
		writeFileSync(file, text);
	} else if (readFileSync(file, 'utf8') !== text) {
		console.error(`client/src/generated/${name} is not what the server sends: run npm run generate in client/`);
		stale = true;
	}
}
process.exit(stale ? 1 : 0);
