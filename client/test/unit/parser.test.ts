import { createParser as createReference } from 'eventsource-parser';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Block, createParser } from '../../src/core/parser.js';

interface Parsed {
	blocks: Block[];
	retries: number[];
}

function parse(pieces: string[]): Parsed {
	const retries: number[] = [];
	const parser = createParser((ms) => retries.push(ms));
	return { blocks: pieces.flatMap((piece) => parser(piece)), retries };
}

/** By eventsource-parser, a parser of the same standard that is not ours. */
function reference(pieces: string[]): Parsed {
	const blocks: Block[] = [];
	const retries: number[] = [];
	const parser = createReference({
		onId: (id) => blocks.push({ id }),
		onEvent({ id, data, event }) {
			// Its id was told just before.
			if (event === 'position') return;
			if (id !== undefined) blocks.pop();
			blocks.push(id === undefined ? { data } : { id, data });
		},
		onRetry: (ms) => retries.push(ms),
	});
	for (const piece of pieces) parser.feed(piece);
	return { blocks, retries };
}

describe('text to blocks', () => {
	const cases: [string, string, Parsed][] = [
		['an id alone', 'id: 5-1\n\n', { blocks: [{ id: '5-1' }], retries: [] }],
		['one space is the colon\'s', 'data:  a\ndata:b\n\n', { blocks: [{ data: ' a\nb' }], retries: [] }],
		['fields without a value', 'data\ndata:\nid\n\n', { blocks: [{ id: '', data: '\n' }], retries: [] }],
		['line separators of Unicode are no line ends', 'data: a\u2028b\u2029c\u0085d\n\n', { blocks: [{ data: 'a\u2028b\u2029c\u0085d' }], retries: [] }],
		['an id with NUL is none', 'id: 1\0\ndata: x\n\n', { blocks: [{ data: 'x' }], retries: [] }],
		['comments and what is unknown', ':\n: data: x\nevent: x\ndata-x: y\nData: z\n data: z\n\n', { blocks: [], retries: [] }],
		['a position is an id alone', 'retry: 7\nevent: position\nid: 5-1\ndata: {}\n\n', { blocks: [{ id: '5-1' }], retries: [7] }],
		['a position without an id is nothing', 'event: position\ndata: {}\n\ndata: x\n\n', { blocks: [{ data: 'x' }], retries: [] }],
		['a position is one block', 'event: position\n\nid: 1\ndata: x\n\n', { blocks: [{ id: '1', data: 'x' }], retries: [] }],
		['a heartbeat needs no blank line', ':\n:\nid: 1\ndata: x\n\n:\n', { blocks: [{ id: '1', data: 'x' }], retries: [] }],
		['retry is digits', 'retry: 10\nretry: 1e3\nretry: -1\nretry:\nretry: 0\n\n', { blocks: [], retries: [10, 0] }],
		['the last id of a block counts', 'id: 1\nid: 2\n\n', { blocks: [{ id: '2' }], retries: [] }],
		['what no blank line ended is nothing yet', 'id: 1\n\nid: 2\ndata: x\n', { blocks: [{ id: '1' }], retries: [] }],
		['a CRLF cut in two is one end of a line', 'data: x\r\n\r\ndata: y\r\n\r\n', { blocks: [{ data: 'x' }, { data: 'y' }], retries: [] }],
	];
	test.each(cases)('%s', (_, text, expected) => {
		expect(parse([text])).toEqual(expected);
		expect(parse([...text])).toEqual(expected);
	});

	const field = fc.oneof(
		fc.constantFrom('data: {"a":1}', 'data', 'data:', 'id: 7-1', 'id', 'id:8', 'id: \0', 'retry: 5', 'retry: x', ':', ':c', 'event: x', 'event: position', 'event', '', '', ''),
		fc.string({ maxLength: 6 }).map((text) => text.replace(/[\r\n]/g, '')),
		fc.string({ unit: 'grapheme', maxLength: 6 }).map((text) => 'data: ' + text.replace(/[\r\n]/g, '')),
	);
	const line = fc.tuple(field, fc.constantFrom('\n', '\n', '\r\n', '\r')).map((parts) => parts.join(''));
	/** As text, and the same cut into pieces. */
	const stream = fc.array(line, { maxLength: 30 }).chain((lines) => {
		// Our parser waits for what may follow a CR, so something does.
		const text = `${lines.join('')}\n`;
		return fc.array(fc.nat(text.length), { maxLength: 8 }).map((cuts) => {
			const at = [0, ...cuts.sort((a, b) => a - b), text.length];
			return at.slice(1).map((end, index) => text.slice(at[index], end));
		});
	});

	test('any stream, cut anywhere, is what another parser of the standard makes of it', () => {
		fc.assert(
			fc.property(stream, (pieces) => {
				expect(parse(pieces)).toEqual(reference([pieces.join('')]));
			}),
			{ numRuns: 3000 },
		);
	});

	test('a block, or a line, without end is refused', () => {
		const parser = createParser(() => {});
		expect(() => parser('data: ' + 'x'.repeat(1 << 20))).toThrow('without end');
		const other = createParser(() => {});
		const feed = () => {
			for (let count = 0; count < 2000; count++) other(`data: ${'x'.repeat(1000)}\n`);
		};
		expect(feed).toThrow('without end');
		// Small blocks, however many, are fine; also in one piece.
		expect(createParser(() => {})('data: xxxxxxxxxxxxxxx\n\n'.repeat(100_000))).toHaveLength(100_000);
	});
});
