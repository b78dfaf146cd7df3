/** The types of a server's events, from what it says of them: the output of `stalecast schema`, or /openapi.json. */

import { InvalidSchema, resolve, typesOf } from './typescript.js';

const ENVELOPE = 'SseEnvelope';
const EVENTS = 'ServerEvents';

export interface EventTypesOptions {
	/** What stands at the top. */
	notice: string;
	/** Whether the events become those of every `SSEClient` that is given no others. */
	isRegistered: boolean;
}

/** Throws InvalidSchema: there is no schema of envelopes in `document`, or it cannot be read. */
export function eventTypes(document: unknown, { notice, isRegistered }: EventTypesOptions): string {
	const schema = envelopeIn(document);
	const types = typesOf(document, schema, ENVELOPE, [EVENTS, 'Exclude']);
	const registered = `
declare module 'stalecast-client' {
	interface Register {
		events: ${EVENTS};
	}
}
`;
	return `${notice}
${types}
/** The data of each event that an application hears of, by its name: a position is told to nobody. */
export type ${EVENTS} = { [E in ${ENVELOPE} as Exclude<E['event'], 'position'>]: E['data'] };
${isRegistered ? registered : ''}`;
}

interface Schema {
	[keyword: string]: unknown;
}

const isSchema = (value: unknown): value is Schema => typeof value === 'object' && value !== null && !Array.isArray(value);
const at = (value: unknown, ...path: string[]): unknown =>
	path.reduce<unknown>((inner, name) => (isSchema(inner) && Object.hasOwn(inner, name) ? inner[name] : undefined), value);

function envelopeIn(document: unknown): Schema {
	if (at(document, 'openapi') !== undefined) {
		const schema = at(document, 'components', 'schemas', ENVELOPE);
		if (isSchema(schema)) return checked(document, schema);
		throw new InvalidSchema(`it describes an API without the schema ${ENVELOPE}: no Stalecast, or one before 0.1`);
	}
	if (isSchema(document)) return checked(document, document);
	throw new InvalidSchema('it is no JSON Schema');
}

/** Every member names its event, and has data. */
function checked(document: unknown, schema: Schema): Schema {
	const choices = schema.oneOf ?? schema.anyOf ?? [schema];
	const isEnvelope = (member: unknown): boolean => {
		const inner = typeof at(member, '$ref') === 'string' ? resolve(document, at(member, '$ref') as string) : member;
		const name = at(inner, 'properties', 'event', 'const');
		return typeof name === 'string' && at(inner, 'properties', 'data') !== undefined;
	};
	if (Array.isArray(choices) && choices.length && choices.every(isEnvelope)) return schema;
	throw new InvalidSchema('it is no schema of events, each with a constant `event` and `data`');
}
