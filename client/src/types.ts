/** Which events there are: the server's own, or those that an application registers. */

import type { ServerEvents } from './generated/events.js';

/**
 * To have your own events typed everywhere, have `npx stalecast-client types` write this for your server:
 *
 *     declare module 'stalecast-client' { interface Register { events: ServerEvents } }
 */
// oxlint-disable-next-line typescript/no-empty-object-type: there to be merged with
export interface Register {}

export type RegisteredEvents = Register extends { events: infer E extends object } ? E : ServerEvents;

/** Whichever events there are, this one may come: something was lost, and everything may be stale. */
export const RELOAD = 'reload_required';
