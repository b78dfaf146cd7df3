export { type EnvelopeOf, type EventMap, SSEClient, type SSEClientOptions } from './core/client.js';
export type { Envelope } from './core/feed.js';
export type { LastError, SSEErrorEvent, Status } from './core/status.js';
export type { HeadersSource, Outcome } from './core/transport.js';
export type { ServerEvents } from './generated/events.js';
export type { Mode } from './polling.js';
export type { Role } from './tabs/leader.js';
export type { Register, RegisteredEvents } from './types.js';
