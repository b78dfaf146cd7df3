/**
 * Text to blocks: the event stream format, as far as it says anything here. Pure.
 *
 * Source: WHATWG HTML, section 9.2.6 (interpreting an event stream). Unlike a browser it tells of a block that has
 * only an `id`, which is how an older server says where a client stands. A newer one names such a block `position`
 * and gives it data, since some browsers pass over a block without; here it is the same.
 *
 * A line that is not whole yet is only added to, never read again: the work grows with the text, however it is cut.
 */

/** What a blank line ended: a position (`id`), something to dispatch (`data`), or both. */
export interface Block {
	id?: string;
	/** An envelope as JSON text; or anything, where `event` says what. */
	data?: string;
	/** What the block is named, unless that is `message`, as a block without a name is. Only beside `data`. */
	event?: string;
}

/** Of one block's data, and of the line it arrives in: what is longer is no event stream of ours. */
const LIMIT_CHARS = 1 << 20;

/**
 * Returns what takes a stream's text piece by piece, cut anywhere, and gives the blocks that each piece
 * completed; it throws where a block grows beyond 1 Mi characters. `retry` is told of each `retry:`, in
 * milliseconds. A byte order mark is the decoder's to drop.
 */
export function createParser(retry: (ms: number) => void): (text: string) => Block[] {
	let rest = '';
	/** The text so far ends in CR. It has ended a line; an LF that comes next is only its other half. */
	let endsInCR = false;
	let block: Block = {};
	let name = '';
	const bound = (line: string) => {
		if (line.length + (block.data ?? '').length > LIMIT_CHARS) throw new Error('a block without end');
	};
	return (text) => {
		const blocks: Block[] = [];
		const lines = text.slice(+(endsInCR && text[0] === '\n')).split(/\r\n?|\n/);
		if (text) endsInCR = text.endsWith('\r');
		lines[0] = rest + lines[0];
		rest = lines.pop()!;
		for (const line of lines) {
			bound(line);
			const [, field, value = ''] = /^(\w+)(?:: ?(.*))?$/s.exec(line) ?? [];
			if (field === 'data') block.data = block.data === undefined ? value : `${block.data}\n${value}`;
			if (field === 'id' && !value.includes('\0')) block.id = value;
			if (field === 'retry' && /^\d+$/.test(value)) retry(+value);
			if (field === 'event') name = value;
			if (!line) {
				if (name === 'position') delete block.data;
				else if (name && name !== 'message' && block.data !== undefined) block.event = name;
				if ((block.id ?? block.data) !== undefined) blocks.push(block);
				block = {};
				name = '';
			}
		}
		bound(rest);
		return blocks;
	};
}
