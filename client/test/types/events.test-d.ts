import type { Persister } from '@tanstack/query-persist-client-core';
import type { QueryClient } from '@tanstack/react-query';
import { type ServerEvents, SSEClient } from 'stalecast-client';
import { type Binding, bindQueryClient, type CachePersister, withCursor } from 'stalecast-client/query';
import { useSSE } from 'stalecast-client/react';
import { zSseEnvelope } from 'stalecast-client/zod';
import { expectTypeOf, test } from 'vitest';
import type { z } from 'zod';
import type { SseEnvelope } from '../../src/generated/events.js';

interface Own {
	vote_cast: { id: number; reason: string };
}

test('events are typed by their name', () => {
	const sse = new SSEClient('/v1/sse/42');
	sse.on('argument_updated', (data) => expectTypeOf(data).toEqualTypeOf<ServerEvents['argument_updated']>());
	sse.on('reload_required', (data) => expectTypeOf(data).toEqualTypeOf<{ reason: string }>());
	// @ts-expect-error no such event
	sse.on('argument_update', () => {});
	sse.addEventListener('error', (error) => expectTypeOf(error.fatal).toBeBoolean());
	sse.addEventListener('message', ({ data: envelope }) => {
		if (envelope.event === 'argument_updated') expectTypeOf(envelope.data).toEqualTypeOf<ServerEvents['argument_updated']>();
		// @ts-expect-error no such event
		if (envelope.event === 'argument_update') return;
	});
	useSSE('argument_updated', (data) => expectTypeOf(data.id).toEqualTypeOf<string | number>());
	// @ts-expect-error no such event
	useSSE('argument_update', () => {});
});

test('an application has its own', () => {
	const sse = new SSEClient<Own>('/v1/sse/42');
	sse.on('vote_cast', (data) => expectTypeOf(data.id).toBeNumber());
	bindQueryClient(sse, {} as QueryClient, { keys: { vote_cast: ({ id }) => [['votes', id]] } });
	bindQueryClient(sse, {} as QueryClient, { keys: { vote_cast: [['votes', ({ id }) => id.toFixed()], ['all', { page: 1 }]] } });
	// @ts-expect-error no such member
	bindQueryClient(sse, {} as QueryClient, { keys: { vote_cast: [['votes', ({ di }) => di]] } });
	// @ts-expect-error a function within an object is not asked
	bindQueryClient(sse, {} as QueryClient, { keys: { vote_cast: [['votes', { id: () => 1 }]] } });
	// @ts-expect-error no such event
	bindQueryClient(sse, {} as QueryClient, { keys: { argument_updated: () => [] } });
});

test("TanStack's persisters fit", () => {
	expectTypeOf<Persister>().toExtend<CachePersister>();
	expectTypeOf(withCursor({} as Persister, {} as Binding)).toExtend<Persister>();
});

test('the schema and the types agree', () => {
	expectTypeOf<z.infer<typeof zSseEnvelope>>().toEqualTypeOf<SseEnvelope>();
});
