import ts from 'typescript';
import { describe, expect, test } from 'vitest';
import { eventTypes } from '../../src/cli/events.js';
import { InvalidSchema, typesOf } from '../../src/cli/typescript.js';

/** What the compiler says of each text, alone in a file. */
function complaints(texts: string[]): string[] {
	const sources = new Map(texts.map((text, index) => [`/${index}.ts`, ts.createSourceFile(`/${index}.ts`, text, ts.ScriptTarget.ES2022)]));
	const options: ts.CompilerOptions = {
		strict: true,
		noEmit: true,
		skipLibCheck: true,
		types: [],
		target: ts.ScriptTarget.ES2022,
		lib: ['lib.es2022.d.ts'],
	};
	const host = ts.createCompilerHost(options);
	const { getSourceFile } = host;
	host.getSourceFile = (name, ...rest) => sources.get(name) ?? getSourceFile(name, ...rest);
	const program = ts.createProgram([...sources.keys()], options, host);
	return ts.getPreEmitDiagnostics(program).map(({ file, messageText }) => {
		return `${ts.flattenDiagnosticMessageText(messageText, '\n')} in\n${file?.text}`;
	});
}

const object = (properties: object, more: object = {}) => ({ type: 'object', properties, required: Object.keys(properties), ...more });
const ref = (name: string) => ({ $ref: `#/$defs/${name}` });

/** What is said, its schema, and the type. */
const INLINE: [what: string, schema: unknown, type: string][] = [
	['anything', {}, 'unknown'],
	['anything, by a boolean', true, 'unknown'],
	['nothing', false, 'never'],
	['whole numbers', { type: 'integer', maximum: 3 }, 'number'],
	['several types', { type: ['string', 'null'] }, 'string | null'],
	['null beside it, as OpenAPI 3.0 has it', { type: 'string', nullable: true }, 'string | null'],
	['Optional', { anyOf: [{ type: 'integer' }, { type: 'null' }], default: null }, 'number | null'],
	['the same twice', { anyOf: [{ type: 'string', minLength: 1 }, { type: 'string', format: 'uuid' }] }, 'string'],
	['anything or a string', { oneOf: [{}, { type: 'string' }] }, 'unknown'],
	['an enum', { enum: ['a', 1, true, null], type: 'string' }, `'a' | 1 | true | null`],
	['const', { const: 'it\'s "so" \\ \n' }, `'it\\'s "so" \\\\ \\n'`],
	['const of more', { const: { a: [1, 'b'], 'c-d': {} } }, `{ a: [1, 'b']; 'c-d': { [x: string]: never } }`],
	['a text that would end a string', { const: `'; export type Evil = '` }, `'\\'; export type Evil = \\''`],
	['list', { type: 'array' }, 'unknown[]'],
	['list of a union', { type: 'array', items: { anyOf: [{ type: 'string' }, { type: 'null' }] } }, '(string | null)[]'],
	['list of a literal with an operator', { type: 'array', items: { const: 'a|b' } }, `'a|b'[]`],
	['tuple', { type: 'array', prefixItems: [{ type: 'string' }, { type: 'integer' }], minItems: 2, maxItems: 2 }, '[string, number]'],
	['tuple that ends early', { prefixItems: [{ type: 'string' }, { type: ['string', 'null'] }], minItems: 1, items: false }, '[string, (string | null)?]'],
	['tuple with more', { type: 'array', prefixItems: [{ type: 'string' }], items: { type: 'number' }, minItems: 1 }, '[string, ...number[]]'],
	['tuple of before 2020', { type: 'array', items: [{ type: 'string' }], additionalItems: false, minItems: 1 }, '[string]'],
	['empty tuple', { type: 'array', minItems: 0, maxItems: 0 }, '[]'],
	['dict', { type: 'object', additionalProperties: { type: 'number' } }, '{ [x: string]: number }'],
	['dict of anything', { type: 'object', additionalProperties: true }, '{ [x: string]: unknown }'],
	['dict by pattern', { type: 'object', patternProperties: { '^a': { type: 'number' } } }, '{ [x: string]: number }'],
	['object', { type: 'object' }, '{ [x: string]: unknown }'],
	['object without members', { type: 'object', properties: {}, additionalProperties: false }, '{ [x: string]: never }'],
	['allOf', { allOf: [{ type: 'string' }, { enum: ['a', 'b'] }] }, `string & ('a' | 'b')`],
];

test.each(INLINE)('%s', (_, schema, type) => {
	expect(typesOf(schema, schema, 'It')).toBe(`export type It = ${type};\n`);
});

const WHOLE: [what: string, schema: Record<string, unknown>, text: string][] = [
	[
		'members: those that may be missing, names that are no identifiers, what is only required',
		{ type: 'object', properties: { a: {}, 'b-c': { type: 'string' }, class: { type: 'null' }, '1': {} }, required: ['a', 'z'] },
		`export interface It {\n\t'1'?: unknown;\n\ta: unknown;\n\t'b-c'?: string;\n\tclass?: null;\n\tz: unknown;\n}\n`,
	],
	[
		'members that must agree with those that have no name',
		{ type: 'object', properties: { a: { type: 'string' } }, additionalProperties: { type: 'number' } },
		'export interface It {\n\ta?: string;\n\t[x: string]: number | string | undefined;\n}\n',
	],
	[
		'descriptions, which cannot end their comment',
		{ ...object({ a: { description: 'Of a.\n\n  More: */ evil', type: 'string' } }), description: 'It.', deprecated: true },
		'/**\n * It.\n * @deprecated\n */\nexport interface It {\n\t/**\n\t * Of a.\n\t *\n\t *   More: *\\/ evil\n\t */\n\ta: string;\n}\n',
	],
	[
		'objects in objects',
		object({ a: object({ b: { type: 'array', items: object({ c: {} }) } }) }),
		'export interface It {\n\ta: {\n\t\tb: {\n\t\t\tc: unknown;\n\t\t}[];\n\t};\n}\n',
	],
	[
		'what refers to itself',
		{ ...object({ next: { anyOf: [ref('Node'), { type: 'null' }] } }), $defs: { Node: object({ next: ref('Node'), up: { $ref: '#' } }) } },
		'export interface It {\n\tnext: Node | null;\n}\n\nexport interface Node {\n\tnext: Node;\n\tup: It;\n}\n',
	],
	[
		'JSON itself',
		{ anyOf: [{ type: 'string' }, { type: 'array', items: { $ref: '#' } }, { type: 'object', additionalProperties: { $ref: '#' } }] },
		'export type It = string | It[] | { [x: string]: It };\n',
	],
	[
		'a reference and more beside it',
		{ ...object({ a: { ...ref('A'), description: 'Which.', default: 1 } }), $defs: { A: { enum: [1, 2], title: 'B' } } },
		'export interface It {\n\t/** Which. */\n\ta: A;\n}\n\nexport type A = 1 | 2;\n',
	],
	[
		'allOf of references',
		{ allOf: [ref('A'), object({ b: {} })], $defs: { A: object({ a: {} }) } },
		'export type It = A & {\n\tb: unknown;\n};\n\nexport interface A {\n\ta: unknown;\n}\n',
	],
	[
		'names that are taken, that are none, and titles that are the same',
		{
			...object({ a: ref('It'), b: ref('string'), c: ref('p.Q[int]'), d: ref('p~1Q%5Bint%5D'), e: ref('1st') }),
			$defs: {
				It: object({ a: {} }, { title: 'T' }),
				string: object({ b: {} }, { title: 'T' }),
				'p.Q[int]': { type: 'integer' },
				'p/Q[int]': { type: 'string' },
				'1st': true,
			},
		},
		'export interface It {\n\ta: It_2;\n\tb: string_2;\n\tc: p_Q_int_;\n\td: p_Q_int__2;\n\te: unknown;\n}\n\n' +
			'export interface It_2 {\n\ta: unknown;\n}\n\nexport interface string_2 {\n\tb: unknown;\n}\n\n' +
			'export type p_Q_int_ = number;\n\nexport type p_Q_int__2 = string;\n',
	],
	[
		'a union of objects told apart by a member',
		{ oneOf: [ref('A'), ref('B')], discriminator: { propertyName: 'k' }, $defs: { A: object({ k: { const: 'a' } }), B: object({ k: { const: 'b' } }) } },
		`export type It = A | B;\n\nexport interface A {\n\tk: 'a';\n}\n\nexport interface B {\n\tk: 'b';\n}\n`,
	],
];

test.each(WHOLE)('%s', (_, schema, text) => {
	expect(typesOf(schema, schema, 'It')).toBe(text);
});

test('the compiler takes all of it', () => {
	const schemas = [...INLINE.map(([, schema]) => schema), ...WHOLE.map(([, schema]) => schema)];
	expect(complaints(schemas.map((schema) => typesOf(schema, schema, 'It')))).toEqual([]);
}, 30_000);

test.each([
	['a reference that leads nowhere', ref('A'), '#/$defs/A is not in the schema'],
	['one to what every object has', { ...ref('constructor'), $defs: {} }, '#/$defs/constructor is not in the schema'],
	['one to elsewhere', { $ref: 'http://example.com/a.json' }, 'outside of the schema'],
	['no schema', { anyOf: ['string'] }, '"string" stands where'],
	['no type', { type: 'text' }, 'no type "text"'],
])('%s is said', (_, schema, message) => {
	expect(() => typesOf(schema, schema, 'It')).toThrow(InvalidSchema);
	expect(() => typesOf(schema, schema, 'It')).toThrow(message);
});

describe('events', () => {
	const envelope = (event: string, data: object = object({ id: {} })) => object({ event: { const: event, type: 'string' }, data });
	const options = { notice: '// A notice.\n', isRegistered: true };
	const schema = { title: 'SseEnvelope', oneOf: [ref('A'), envelope('position')], $defs: { A: envelope('it.moved', ref('ServerEvents')), ServerEvents: object({ id: {} }) } };

	test('those of a schema', () => {
		expect(eventTypes(schema, options)).toBe(`// A notice.

export type SseEnvelope = A | {
	event: 'position';
	data: {
		id: unknown;
	};
};

export interface A {
	event: 'it.moved';
	data: ServerEvents_2;
}

export interface ServerEvents_2 {
	id: unknown;
}

/** The data of each event that an application hears of, by its name: a position is told to nobody. */
export type ServerEvents = { [E in SseEnvelope as Exclude<E['event'], 'position'>]: E['data'] };

declare module 'stalecast-client' {
	interface Register {
		events: ServerEvents;
	}
}
`);
	});

	test('those of an API that has it are the same', () => {
		const inside = JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"#/components/schemas/SseEnvelope/'));
		const api = { openapi: '3.1.0', components: { schemas: { Health: {}, SseEnvelope: inside } } };
		expect(eventTypes(api, options)).toBe(eventTypes(schema, options));
	});

	test('they are not registered where that would be wrong', () => {
		expect(eventTypes(schema, { ...options, isRegistered: false })).not.toContain('declare module');
	});

	test.each([
		['no schema', 1, 'no JSON Schema'],
		['another API', { openapi: '3.1.0', components: { schemas: {} } }, 'without the schema SseEnvelope'],
		['the schema of something else', object({ id: {} }), 'no schema of events'],
		['an event without a name', { oneOf: [object({ event: { type: 'string' }, data: {} })] }, 'no schema of events'],
		['an event without data', { oneOf: [object({ event: { const: 'a' } })] }, 'no schema of events'],
		['no event', { oneOf: [] }, 'no schema of events'],
	])('%s is said', (_, document, message) => {
		expect(() => eventTypes(document, options)).toThrow(message);
	});
});
