import { zSseEnvelope } from 'stalecast-client/zod';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Block } from '../../src/core/parser.js';
import { attempt } from '../../src/core/transport.js';
import { isLacking, waitUntil, World } from './harness.js';

describe.skipIf(isLacking())('frames of a running server', () => {
	const world = new World();
	beforeAll(() => world.start());
	afterAll(() => world.stop());

	test('are envelopes by the generated schema', async () => {
		world.topic = 'contract';
		const blocks: Block[] = [];
		const stop = new AbortController();
		const piece = (completed: Block[]) => void blocks.push(...completed);
		const url = `${world.stalecastUrl}/v1/sse/${world.topic}`;
		const options = { muteAfterMs: 8000, silenceMs: 45_000 };
		// A cursor that no stream has: the first frame is a reload_required.
		const outcome = attempt({ platform: globalThis, url, lastEventId: '1-1', options, controller: stop, piece, retry: () => {} });
		await waitUntil('the stream stands', () => blocks.length > 0);
		for (const id of ['seven', 'sieben ☃', 7, -(2 ** 53 - 1)]) {
			await world.publish({ event: 'argument_updated', data: { id, reason: 'edited "so"\n' } });
		}
		await waitUntil('all have come', () => blocks.filter(({ data }) => data !== undefined).length === 5);
		stop.abort({ kind: 'cut' });
		expect((await outcome).kind).toBe('cut');
		const envelopes = blocks.flatMap(({ data }) => (data === undefined ? [] : [zSseEnvelope.parse(JSON.parse(data))]));
		expect(envelopes.map(({ event }) => event)).toEqual(['reload_required', ...Array(4).fill('argument_updated')]);
		expect(envelopes.slice(1).map(({ data }) => 'id' in data && data.id)).toEqual(['seven', 'sieben ☃', 7, -(2 ** 53 - 1)]);
		// The schema refuses what must not travel.
		expect(zSseEnvelope.safeParse({ event: 'argument_updated', data: { id: 1, reason: 'x', title: 'private' } }).success).toBe(false);
		expect(zSseEnvelope.safeParse({ event: 'unheard_of', data: { reason: 'x' } }).success).toBe(false);
	});

	test('a question with live=false ends by itself', async () => {
		const answer = await fetch(`${world.stalecastUrl}/v1/sse/ended?live=false`);
		expect(await answer.text()).toMatch(
			/^retry: \d+\nevent: position\nid: \d+-\d+\ndata: {"event":"position","data":{}}\n\n$/,
		);
	});
});
