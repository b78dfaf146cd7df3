/**
 * TypeScript of a JSON Schema (2020-12, and what pydantic and OpenAPI have beside it).
 *
 * A type is as wide as its schema where TypeScript has no word for it: a length, a pattern, `not`. Names are those of
 * the definitions, in the order in which they are met; so the same schema always gives the same text. Pure.
 */

/** The schema is what cannot be read; `message` says where. */
export class InvalidSchema extends Error {}

type Members = Record<string, unknown>;

const isMembers = (value: unknown): value is Members => typeof value === 'object' && value !== null && !Array.isArray(value);
const listOf = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const unique = (types: string[]): string[] => [...new Set(types)];

// TypeScript's names of types, and the words that can name none.
const TAKEN = new Set(
	(
		'any unknown never void null undefined string number boolean bigint symbol object true false type ' +
		'await break case catch class const continue debugger default delete do else enum export extends finally for ' +
		'function if import in instanceof new return super switch this throw try typeof var while with yield let ' +
		'static implements interface package private protected public'
	).split(' '),
);

const IDENTIFIER = /^[\p{ID_Start}$_][\p{ID_Continue}$]*$/u;

/** A literal in single quotes, on one line. */
function quoted(text: string): string {
	return `'${JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll("'", "\\'")}'`;
}

function comment(schema: Members, indent: string): string {
	const lines = typeof schema.description === 'string' ? schema.description.trim().split(/\r\n|[\r\n\u2028\u2029]/) : [];
	if (schema.deprecated === true) lines.push('@deprecated');
	const [first, ...more] = lines.map((line) => line.replaceAll('*/', '*\\/').trimEnd());
	if (!first && !more.length) return '';
	if (!more.length) return `${indent}/** ${first} */\n`;
	return `${indent}/**\n${[first, ...more].map((line) => `${indent} * ${line}`.trimEnd()).join('\n')}\n${indent} */\n`;
}

function literal(value: unknown): string {
	if (typeof value === 'string') return quoted(value);
	if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`;
	if (!isMembers(value)) return String(value);
	const members = Object.entries(value).map(([name, member]) => `${property(name)}: ${literal(member)}`);
	return members.length ? `{ ${members.join('; ')} }` : '{ [x: string]: never }';
}

const property = (name: string): string => (IDENTIFIER.test(name) ? name : quoted(name));

function union(types: string[]): string {
	const parts = unique(types).filter((type) => type !== 'never');
	if (parts.includes('unknown')) return 'unknown';
	return parts.length ? parts.join(' | ') : 'never';
}

/** Whether an operator stands outside of every bracket and quote. */
function isCompound(type: string): boolean {
	const bare = type.replace(/\/\*[^]*?\*\/|'(?:[^'\\]|\\.)*'/g, '');
	let depth = 0;
	for (const letter of bare) {
		if ('{[('.includes(letter)) depth++;
		else if ('}])'.includes(letter)) depth--;
		else if (depth === 0 && '|&'.includes(letter)) return true;
	}
	return false;
}

const grouped = (type: string): string => (isCompound(type) ? `(${type})` : type);

function intersection(types: string[]): string {
	const parts = unique(types).filter((type) => type !== 'unknown');
	if (parts.length < 2) return parts[0] ?? 'unknown';
	return parts.map(grouped).join(' & ');
}

/**
 * The types of `root`, a schema in `document`, to which its references point; `rootName` is what it is called, and
 * `reserved` are names that no definition gets. Throws InvalidSchema.
 */
export function typesOf(document: unknown, root: unknown, rootName: string, reserved: readonly string[] = []): string {
	const names = new Map<unknown, string>([[root, rootName]]);
	const used = new Set([rootName, ...reserved, ...TAKEN]);
	const texts: string[] = [];
	define(root, rootName);
	return texts.join('\n');

	function define(schema: unknown, name: string): void {
		const place = texts.push('') - 1;
		const type = typeOf(schema, '');
		const about = isMembers(schema) ? comment(schema, '') : '';
		// Only an object's own braces, and none that is joined with something.
		const isInterface = type.startsWith('{\n') && !isCompound(type) && type.endsWith('\n}');
		texts[place] = `${about}export ${isInterface ? `interface ${name} ${type}` : `type ${name} = ${type};`}\n`;
	}

	function nameOf(reference: string): string {
		const schema = resolve(document, reference);
		const known = names.get(schema);
		if (known !== undefined) return known;
		if (typeof schema === 'boolean') return schema ? 'unknown' : 'never';
		const stem = decoded(reference.split('/').at(-1)!).replace(/[^\p{ID_Continue}$]/gu, '_').replace(/^(?![\p{ID_Start}$_])/u, '_');
		let name = stem;
		for (let count = 2; used.has(name); count++) name = `${stem}_${count}`;
		used.add(name);
		names.set(schema, name);
		define(schema, name);
		return name;
	}

	function typeOf(schema: unknown, indent: string): string {
		if (schema === true) return 'unknown';
		if (schema === false) return 'never';
		if (!isMembers(schema)) throw new InvalidSchema(`${JSON.stringify(schema)} stands where a schema should`);
		const parts: string[] = [];
		if (typeof schema.$ref === 'string') parts.push(nameOf(schema.$ref));
		for (const choice of ['anyOf', 'oneOf']) {
			if (Array.isArray(schema[choice])) parts.push(union(schema[choice].map((member) => typeOf(member, indent))));
		}
		for (const member of listOf(schema.allOf)) parts.push(typeOf(member, indent));
		parts.push(ownType(schema, indent));
		const type = intersection(parts);
		return schema.nullable === true ? union([type, 'null']) : type;
	}

	/** What a schema says by itself, without what it refers to. */
	function ownType(schema: Members, indent: string): string {
		if ('const' in schema) return literal(schema.const);
		if (Array.isArray(schema.enum)) return union(schema.enum.map(literal));
		const isObject = ['properties', 'additionalProperties', 'patternProperties', 'required'].some((word) => word in schema);
		const isArray = 'items' in schema || 'prefixItems' in schema;
		const given = typeof schema.type === 'string' ? [schema.type] : listOf(schema.type);
		const types = given.length ? given : isObject ? ['object'] : isArray ? ['array'] : [];
		if (!types.length) return 'unknown';
		return union(types.map((type) => basicType(type, schema, indent)));
	}

	function basicType(type: unknown, schema: Members, indent: string): string {
		switch (type) {
			case 'string':
			case 'number':
			case 'boolean':
			case 'null':
				return type;
			case 'integer':
				return 'number';
			case 'array':
				return arrayType(schema, indent);
			case 'object':
				return objectType(schema, indent);
			default:
				throw new InvalidSchema(`there is no type ${JSON.stringify(type)} in JSON Schema`);
		}
	}

	function arrayType(schema: Members, indent: string): string {
		// An array in `items`, and `additionalItems`, are what `prefixItems` and `items` were called before 2020.
		const isOld = Array.isArray(schema.items);
		const prefix = isOld ? listOf(schema.items) : listOf(schema.prefixItems);
		const rest = isOld ? schema.additionalItems : schema.items;
		const least = Number(schema.minItems ?? 0);
		const most = Number(schema.maxItems ?? Infinity);
		if (!prefix.length) {
			if (most === 0) return '[]';
			return `${grouped(typeOf(rest ?? true, indent))}[]`;
		}
		const items = prefix.slice(0, most).map((item, index) => {
			const type = typeOf(item, indent);
			return index < least ? type : `${grouped(type)}?`;
		});
		if (rest !== false && most > prefix.length) items.push(`...${grouped(typeOf(rest ?? true, indent))}[]`);
		return `[${items.join(', ')}]`;
	}

	function objectType(schema: Members, indent: string): string {
		const inner = `${indent}\t`;
		const properties = isMembers(schema.properties) ? schema.properties : {};
		const required = new Set(listOf(schema.required));
		const members = new Map<string, { type: string; about: string }>();
		for (const [name, member] of Object.entries(properties)) {
			members.set(name, { type: typeOf(member, inner), about: isMembers(member) ? comment(member, inner) : '' });
		}
		for (const name of required) if (!members.has(String(name))) members.set(String(name), { type: 'unknown', about: '' });
		const lines = [...members].map(
			([name, { type, about }]) => `${about}${inner}${property(name)}${required.has(name) ? '' : '?'}: ${type};\n`,
		);
		const others = isMembers(schema.patternProperties)
			? Object.values(schema.patternProperties).map((member) => typeOf(member, inner))
			: [];
		const more = schema.additionalProperties;
		if (more !== undefined && more !== false) others.push(typeOf(more, inner));
		else if (!members.size && !others.length) return `{ [x: string]: ${more === false ? 'never' : 'unknown'} }`;
		if (others.length) {
			// To TypeScript it holds for every member, those with names included.
			const all = [...others, ...[...members.values()].map(({ type }) => type)];
			if ([...members.keys()].some((name) => !required.has(name))) all.push('undefined');
			const index = `[x: string]: ${union(all)}`;
			if (!members.size) return `{ ${index} }`;
			lines.push(`${inner}${index};\n`);
		}
		return `{\n${lines.join('')}${indent}}`;
	}
}

/** One step of a JSON Pointer in a fragment: RFC 6901, sections 4 and 6. */
function decoded(step: string): string {
	let key = step;
	try {
		key = decodeURIComponent(step);
	} catch {
		// Taken as it stands.
	}
	return key.replaceAll('~1', '/').replaceAll('~0', '~');
}

/** What a reference of `document` points at. Throws InvalidSchema. */
export function resolve(document: unknown, reference: string): unknown {
	if (!/^#(\/|$)/.test(reference)) throw new InvalidSchema(`${reference} is outside of the schema: put it in, under $defs`);
	let at = document;
	for (const step of reference.split('/').slice(1).map(decoded)) {
		const isThere = typeof at === 'object' && at !== null && Object.hasOwn(at, step);
		if (!isThere) throw new InvalidSchema(`${reference} is not in the schema`);
		at = (at as Members)[step];
	}
	return at;
}
