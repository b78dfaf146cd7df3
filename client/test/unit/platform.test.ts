/** The browser's own events, on its own targets. */

import { afterEach, expect, test, vi } from 'vitest';
import { createTimer, listenToPage } from '../../src/core/platform.js';

afterEach(() => vi.useRealTimers());

const cases: [string, EventTarget, Event, boolean | undefined][] = [
	['shown or hidden', document, new Event('visibilitychange', { bubbles: true }), undefined],
	['online', window, new Event('online'), true],
	// These two do not bubble.
	['frozen', document, new Event('freeze'), false],
	['thawed', document, new Event('resume'), true],
	['left', window, new Event('pagehide'), false],
	['come back to', window, new Event('pageshow'), true],
];

test.each(cases)('a page that is %s', (_, target, event, expected) => {
	const told: (boolean | undefined)[] = [];
	const unlisten = listenToPage(globalThis, (isRunning) => told.push(isRunning));
	target.dispatchEvent(event);
	expect(told).toEqual([expected]);
	unlisten();
	target.dispatchEvent(event);
	expect(told).toHaveLength(1);
});

test('where there is no page, there is nothing to listen to', () => {
	const { fetch, setTimeout, clearTimeout, Date, Math, performance } = globalThis;
	const platform = { fetch, setTimeout, clearTimeout: (timer: unknown) => clearTimeout(timer as number), Date, Math, performance };
	expect(() => listenToPage(platform as never, () => {})()).not.toThrow();
});

test('a timer that is set anew replaces itself', () => {
	vi.useFakeTimers();
	const told: string[] = [];
	const timer = createTimer(globalThis);
	timer(() => told.push('one'), 10);
	timer(() => told.push('two'), 20);
	vi.advanceTimersByTime(100);
	expect(told).toEqual(['two']);
	timer(() => told.push('three'), 10);
	timer();
	vi.advanceTimersByTime(100);
	expect([told, vi.getTimerCount()]).toEqual([['two'], 0]);
});
