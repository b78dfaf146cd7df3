// @vitest-environment node
/** Node's EventTarget, since happy-dom's ends at the first listener that throws. */

import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { SSEClient } from '../../src/core/client.js';
import { Stream, testPlatform, updated } from './support.js';

let errors: unknown[] = [];
const hear = (error: unknown) => void errors.push(error);
const others = process.listeners('uncaughtException');

beforeEach(() => {
	errors = [];
	process.removeAllListeners('uncaughtException').on('uncaughtException', hear);
});
afterEach(() => {
	process.off('uncaughtException', hear);
	for (const each of others) process.on('uncaughtException', each);
});

const turn = () => new Promise((resolve) => setImmediate(() => setImmediate(resolve)));

test('handlers of one event are called in turn; one that throws or leaves keeps nothing from the others', async () => {
	let stream!: Stream;
	const platform = testPlatform((_, { signal }) => (stream = new Stream(signal)).response);
	const sse = new SSEClient('https://example.test/s', {}, platform);
	const told: string[] = [];
	sse.addEventListener('message', () => told.push('message'));
	const leaveFirst = sse.on('argument_updated', () => {
		told.push('first');
		leaveThird();
		throw new Error('oops');
	});
	sse.on('argument_updated', () => told.push('second'));
	const leaveThird = sse.on('argument_updated', () => told.push('third'));
	const other = vi.fn();
	sse.on('reload_required', other);
	sse.connect();
	await turn();
	stream.write(`id: 1-0\n\n${updated('2-0', 'a')}`);
	await turn();
	expect(told).toEqual(['message', 'first', 'second']);
	leaveFirst();
	sse.on('argument_updated', () => told.push('late'));
	stream.write(updated('3-0', 'a'));
	await turn();
	expect(told.slice(3)).toEqual(['message', 'second', 'late']);
	expect(errors).toEqual([new Error('oops')]);
	expect(other).not.toHaveBeenCalled();
	sse.close();
});
