/**
 * Text to blocks: the event stream format, as far as it says anything here. Pure.
 *
 * Source: WHATWG HTML, section 9.2.6 (interpreting an event stream). Unlike a browser it tells of a block that has
 * only an `id`, which is how an older server says where a client stands. A newer one names such a block `position`
 * and gives it data, since some browsers pass over a block without; here it is the same. Any other `event` is
 * ignored: our envelopes make it needless.
 */

/** What a blank line ended: a position (`id`), an envelope as JSON text (`data`), or both. */
export interface Block {
	id?: string;
	data?: string;
}

/** Of one block, and of the line it arrives in: what is longer is no event stream of ours. */
const LIMIT_CHARS = 1 << 20;

/**
 * Returns what takes a stream's text piece by piece, cut anywhere, and gives the blocks that each piece
 * completed; it throws where a block grows beyond 1 Mi characters. `retry` is told of each `retry:`, in
 * milliseconds. A byte order mark is the decoder's to drop.
 */
export function createParser(retry: (ms: number) => void): (text: string) => Block[] {
	let rest = '';
	let block: Block = {};
	let name = '';
	return (text) => {
		const blocks: Block[] = [];
		// A CR at the end may be half of a CRLF: it waits for what follows.
		const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
		rest = lines.pop()!;
		for (const line of lines) {
			const [, field, value = ''] = /^(\w+)(?:: ?(.*))?$/s.exec(line) ?? [];
			if (field === 'data') block.data = block.data === undefined ? value : `${block.data}\n${value}`;
			if (field === 'id' && !value.includes('\0')) block.id = value;
			if (field === 'retry' && /^\d+$/.test(value)) retry(+value);
			if (field === 'event') name = value;
			if (!line) {
				if (name === 'position') delete block.data;
				if ((block.id ?? block.data) !== undefined) blocks.push(block);
				block = {};
				name = '';
			}
		}
		if ((rest + block.data).length > LIMIT_CHARS) throw new Error('a block without end');
		return blocks;
	};
}
