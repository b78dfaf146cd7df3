import { createParser as createReference } from 'eventsource-parser';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Block, createParser } from '../../src/core/parser.js';

interface Parsed {
	blocks: Block[];
	retries: number[];
}

/** What has come after each piece. */
function parse(pieces: string[]): Parsed[] {
	const blocks: Block[] = [];
	const retries: number[] = [];
	const parser = createParser((ms) => retries.push(ms));
	return pieces.map((piece) => {
		blocks.push(...parser(piece));
		return { blocks: [...blocks], retries: [...retries] };
	});
}

/** By eventsource-parser, a parser of the same standard that is not ours. */
function reference(text: string): Parsed {
	const blocks: Block[] = [];
	const retries: number[] = [];
	const parser = createReference({
		onId: (id) => blocks.push({ id }),
		onEvent({ id, data, event }) {
			// Its id was told just before.
			if (event === 'position') return;
			if (id !== undefined) blocks.pop();
			const isNamed = event !== undefined && event !== 'message';
			blocks.push({ ...(id !== undefined && { id }), data, ...(isNamed && { event }) });
		},
		onRetry: (ms) => retries.push(ms),
	});
	// It drops a byte order mark, which here is the decoder's; so it gets one, and any other is text.
	parser.feed(`\uFEFF${text}`);
	return { blocks, retries };
}

const blocks = (...of: Block[]): Parsed => ({ blocks: of, retries: [] });

describe('text to blocks', () => {
	const cases: [string, string, Parsed][] = [
		['an id alone', 'id: 5-1\n\n', blocks({ id: '5-1' })],
		['one space is the colon\'s', 'data:  a\ndata:b\n\n', blocks({ data: ' a\nb' })],
		['a tab is not', 'data:\ta\n\n', blocks({ data: '\ta' })],
		['what follows the first colon is the value', 'data::a:b\nid: 1:2\n\n', blocks({ id: '1:2', data: ':a:b' })],
		['spaces at the end stay', 'data: a \nid: 1 \n\n', blocks({ id: '1 ', data: 'a ' })],
		['fields without a value', 'data\ndata:\nid\n\n', blocks({ id: '', data: '\n' })],
		['data of nothing is data', 'data\n\ndata:\n\n', blocks({ data: '' }, { data: '' })],
		['line separators of Unicode are no line ends', 'data: a\u2028b\u2029c\u0085d\v\f\n\n', blocks({ data: 'a\u2028b\u2029c\u0085d\v\f' })],
		['an id with NUL is none', 'id: 1\0\ndata: x\n\n', blocks({ data: 'x' })],
		['an id with NUL leaves the one before it', 'id: 1\nid: \x002\nid: 3\0\n\n', blocks({ id: '1' })],
		['NUL is text elsewhere', 'data: \0\nevent: a\0b\n\n', blocks({ data: '\0', event: 'a\0b' })],
		['a mark of byte order is the decoder\'s: here it is text', '\uFEFFdata: x\ndata: \uFEFFy\n\n', blocks({ data: '\uFEFFy' })],
		['comments and what is unknown', ':\n: data: x\ndata-x: y\nData: z\n data: z\ndata : z\ndatax\n\n', blocks()],
		['names of what every object has are unknown', '__proto__: x\nconstructor: x\ntoString\n\n', blocks()],
		['a name', 'event: greeting\ndata: x\n\n', blocks({ data: 'x', event: 'greeting' })],
		['a name is one block\'s', 'event: a\ndata: x\n\ndata: y\n\n', blocks({ data: 'x', event: 'a' }, { data: 'y' })],
		['the last name counts', 'event: a\ndata: x\nevent:  b\n\n', blocks({ data: 'x', event: ' b' })],
		['a name of nothing is none', 'event: a\nevent:\ndata: x\n\nevent\ndata: y\n\n', blocks({ data: 'x' }, { data: 'y' })],
		['message is what a block without a name is', 'event: message\ndata: x\n\n', blocks({ data: 'x' })],
		['a name without data is nothing', 'event: a\n\nid: 1\nevent: a\n\ndata: x\n\n', blocks({ id: '1' }, { data: 'x' })],
		['a position is an id alone', 'retry: 7\nevent: position\nid: 5-1\ndata: {}\n\n', { blocks: [{ id: '5-1' }], retries: [7] }],
		['a position without an id is nothing', 'event: position\ndata: {}\n\ndata: x\n\n', blocks({ data: 'x' })],
		['a position is one block', 'event: position\n\nid: 1\ndata: x\n\n', blocks({ id: '1', data: 'x' })],
		['a heartbeat needs no blank line', ':\n:\nid: 1\ndata: x\n\n:\n', blocks({ id: '1', data: 'x' })],
		['retry is digits', 'retry: 10\nretry: 1e3\nretry: -1\nretry: +1\nretry: 1.5\nretry:\nretry\nretry:  4\nretry: 4 \nretry: 0x4\nretry: ٣\nretry: 0\n\n', { blocks: [], retries: [10, 0] }],
		['retry is decimal, and told before its block ends', 'retry: 02000\n', { blocks: [], retries: [2000] }],
		['the last id of a block counts', 'id: 1\nid: 2\n\n', blocks({ id: '2' })],
		['what no blank line ended is nothing yet', 'id: 1\n\nid: 2\ndata: x\n', blocks({ id: '1' })],
		['blank lines are nothing', '\n\r\n\r\r\ndata: x\n\n\n\n', blocks({ data: 'x' })],
		['a CRLF cut in two is one end of a line', 'data: x\r\n\r\ndata: y\r\n\r\n', blocks({ data: 'x' }, { data: 'y' })],
		['CR alone ends a line, the last one at once', 'id: 1\rdata: x\rdata: y\r\r', blocks({ id: '1', data: 'x\ny' })],
		['a heartbeat that ends in CR holds nothing back', ':\rdata: x\r\r:\r', blocks({ data: 'x' })],
		['ends of all kinds', 'data: a\rdata: b\ndata: c\r\n\rdata: d\n\r\ndata: e\r\n\n', blocks({ data: 'a\nb\nc' }, { data: 'd' }, { data: 'e' })],
		['LF and then CR are two', 'data: a\n\rdata: b\n\r', blocks({ data: 'a' }, { data: 'b' })],
	];
	test.each(cases)('%s', (_, text, expected) => {
		expect(parse([text]).at(-1)).toEqual(expected);
		expect(parse([...text]).at(-1)).toEqual(expected);
		// A piece of which the decoder made nothing yet changes nothing.
		expect(parse([...text].flatMap((char) => [char, ''])).at(-1)).toEqual(expected);
	});

	test('a CR at the end of a piece ends the line; the LF that may follow is no other end', () => {
		const parser = createParser(() => {});
		expect(parser('data: x\r')).toEqual([]);
		expect(parser('\r')).toEqual([{ data: 'x' }]);
		expect(parser('\ndata: y\r')).toEqual([]);
		expect(parser('')).toEqual([]);
		expect(parser('\n')).toEqual([]);
		expect(parser('\n')).toEqual([{ data: 'y' }]);
	});

	const field = fc.oneof(
		fc.constantFrom('data: {"a":1}', 'data', 'data:', 'id: 7-1', 'id', 'id:8', 'id: \0', 'retry: 5', 'retry: x', ':', ':c', '', '', ''),
		fc.constantFrom('event: x', 'event:  x', 'event: position', 'event: message', 'event', 'event:'),
		fc.string({ maxLength: 6 }).map((text) => text.replace(/[\r\n]/g, '')),
		fc.tuple(fc.constantFrom('data:', 'id: ', 'event: ', 'retry: ', ': '), fc.string({ unit: 'grapheme', maxLength: 6 })).map(([name, text]) => name + text.replace(/[\r\n]/g, '')),
	);
	const line = fc.tuple(field, fc.constantFrom('\n', '\n', '\r\n', '\r')).map((parts) => parts.join(''));
	/** As text cut into pieces; some are empty. */
	const stream = fc.array(line, { maxLength: 30 }).chain((lines) => {
		const text = lines.join('');
		return fc.array(fc.nat(text.length), { maxLength: 12 }).map((cuts) => {
			const at = [0, ...cuts.sort((a, b) => a - b), text.length];
			return at.slice(1).map((end, index) => text.slice(at[index], end));
		});
	});

	test('any stream, cut anywhere, is what another parser of the standard makes of it, and as soon', () => {
		fc.assert(
			fc.property(stream, (pieces) => {
				let text = '';
				for (const [index, parsed] of parse(pieces).entries()) expect(parsed).toEqual(reference((text += pieces[index])));
			}),
			{ numRuns: 3000 },
		);
	});

	test.each([
		['in one piece', 1 << 22],
		['in pieces', 1 << 16],
		['in small pieces', 1000],
	])('a block, or a line, without end is refused: %s', (_, size) => {
		const feed = (text: string) => {
			const parser = createParser(() => {});
			const found: Block[] = [];
			for (let at = 0; at < text.length; at += size) found.push(...parser(text.slice(at, at + size)));
			return found;
		};
		const long = 'x'.repeat(1 << 20);
		expect(() => feed(`data: ${long}`)).toThrow('without end');
		expect(() => feed(`data: ${long}\n\n`)).toThrow('without end');
		expect(() => feed(`: ${long}`)).toThrow('without end');
		expect(() => feed(`data: ${'x'.repeat(1000)}\n`.repeat(2000))).toThrow('without end');
		// Small blocks, however many, are fine; so are heartbeats that no blank line ends.
		expect(feed('data: xxxxxxxxxxxxxxx\n\n'.repeat(100_000))).toHaveLength(100_000);
		expect(feed(':xxxxxxxxxxxxxxxxxxxxx\n'.repeat(100_000))).toHaveLength(0);
	});
});

/** How many characters the methods of strings and patterns are given while `work` runs. */
function countRead(work: () => void): number {
	let count = 0;
	let isInside = false;
	const restore: (() => void)[] = [];
	const meter = (owner: object, text: (self: unknown, given: unknown) => unknown) => {
		for (const name of Reflect.ownKeys(owner)) {
			const descriptor = Object.getOwnPropertyDescriptor(owner, name)!;
			const { value: original } = descriptor;
			if (typeof original !== 'function' || name === 'constructor') continue;
			const metered = function (this: unknown, ...given: unknown[]): unknown {
				// What one method does by another is its own matter.
				if (isInside) return Reflect.apply(original, this, given);
				isInside = true;
				try {
					count += (text(this, given[0]) as { length?: number }).length ?? 0;
					return Reflect.apply(original, this, given);
				} finally {
					isInside = false;
				}
			};
			Object.defineProperty(owner, name, { ...descriptor, value: metered });
			restore.push(() => Object.defineProperty(owner, name, descriptor));
		}
	};
	meter(String.prototype, (self) => self);
	meter(RegExp.prototype, (_, given) => given);
	try {
		work();
	} finally {
		for (const undo of restore) undo();
	}
	return count;
}

describe('the work grows with the text, however it is cut', () => {
	const feed = (text: string, size: number) => () => {
		const parser = createParser(() => {});
		for (let at = 0; at < text.length; at += size) parser(text.slice(at, at + size));
	};
	/** Cutting the pieces is the test's own: each time the whole text is given to `slice`. */
	const read = (text: string, size: number) => countRead(feed(text, size)) - text.length * Math.ceil(text.length / size);

	test('the meter sees what grows faster', () => {
		const quadratic = () => {
			let rest = '';
			for (let count = 0; count < 1000; count++) (rest += 'x').split('\n');
		};
		expect(countRead(quadratic)).toBeGreaterThan(400_000);
	});

	const LENGTH = 100_000;
	const texts: [string, string][] = [
		['a long line', `data: ${'x'.repeat(LENGTH)}\n\n`],
		['a long block', `data: ${'x'.repeat(10)}\n`.repeat(LENGTH / 17) + '\n'],
		['many lines of nothing', '\n'.repeat(LENGTH)],
		['many lines of nothing that end in CR', '\r'.repeat(LENGTH)],
		['a comment', `:${' '.repeat(LENGTH)}\n`],
		['a field of spaces', `data:${' '.repeat(LENGTH)}\n`],
		['a name without end', 'a'.repeat(LENGTH)],
		['a name that is none', `${'a'.repeat(LENGTH)} \n`],
	];
	test.each(texts)('%s', (_, text) => {
		for (const size of [1, 7, 1000, text.length]) expect(read(text, size)).toBeLessThan(6 * text.length);
	});
});
