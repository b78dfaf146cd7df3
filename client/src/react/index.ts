'use client';

export { useSSE, useSSEStatus } from './hooks.js';
export { SSEProvider, useSSEClient } from './provider.js';
