import { act, cleanup, render, screen } from '@testing-library/react';
import { StrictMode } from 'react';
import { renderToString } from 'react-dom/server';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { SSEClient } from '../../src/core/client.js';
import { SSEProvider, useSSE, useSSEStatus } from '../../src/react/index.js';
import { Stream, testPlatform, updated } from './support.js';

function makeClient() {
	const streams: Stream[] = [];
	const answer = vi.fn((_: string, { signal }: RequestInit) => {
		const stream = new Stream(signal);
		streams.push(stream);
		return stream.response;
	});
	return { sse: new SSEClient('https://example.test/s', {}, testPlatform(answer)), streams, answer };
}

const told: [string, string][] = [];

function Page({ label }: { label: string }) {
	useSSE('argument_updated', ({ id }) => told.push([label, String(id)]));
	return <p role="status">{useSSEStatus()}</p>;
}

const settle = () => act(() => new Promise((resolve) => setTimeout(resolve, 5)));

afterEach(() => {
	cleanup();
	told.length = 0;
});

describe('the provider', () => {
	test('connects once in StrictMode, tells events once and to the newest handler, and ends', async () => {
		const { sse, streams, answer } = makeClient();
		const tree = (label: string) => (
			<StrictMode>
				<SSEProvider client={sse}>
					<Page label={label} />
				</SSEProvider>
			</StrictMode>
		);
		const view = render(tree('first'));
		expect(screen.getByRole('status').textContent).toBe('connecting');
		await settle();
		expect(answer).toHaveBeenCalledTimes(1);
		streams[0]!.write('id: 1-0\n\n');
		await settle();
		expect(screen.getByRole('status').textContent).toBe('live');
		view.rerender(tree('second'));
		streams[0]!.write(updated('2-0', 'a'));
		await settle();
		expect(told).toEqual([['second', 'a']]);
		view.unmount();
		await settle();
		expect(streams[0]!.isAborted).toBe(true);
	});

	test('two of them share a stream, which ends with the last', async () => {
		const { sse, streams, answer } = makeClient();
		const one = render(<SSEProvider client={sse} />);
		const two = render(<SSEProvider client={sse} />);
		await settle();
		one.unmount();
		await settle();
		expect([answer.mock.calls.length, streams[0]!.isAborted]).toEqual([1, false]);
		two.unmount();
		await settle();
		expect(streams[0]!.isAborted).toBe(true);
	});

	test('on a server nothing is asked for', () => {
		const { sse, answer } = makeClient();
		expect(renderToString(<SSEProvider client={sse}><Page label="server" /></SSEProvider>)).toContain('connecting');
		expect(answer).not.toHaveBeenCalled();
	});

	test('without one, the hooks say what is missing', () => {
		vi.spyOn(console, 'error').mockImplementation(() => {});
		expect(() => render(<Page label="alone" />)).toThrow('need an <SSEProvider client={...}>');
		vi.restoreAllMocks();
	});
});
