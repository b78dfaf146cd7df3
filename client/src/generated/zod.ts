// Generated from `stalecast schema` by `npm run generate`: change app/contracts.py, not this file.

import { z } from 'zod';

/** The JSON in the data field of each Server-Sent Event. */
export const zSseEnvelope = z.discriminatedUnion('event', [
	z.object({ "event": z.literal("argument_updated"), "data": z.object({ "id": z.union([z.string().min(1).max(256), z.number().int().gte(-9007199254740991).lte(9007199254740991)]).describe("Which resource went stale."), "reason": z.string().min(1).max(256).describe("Why, as a short word the client may branch on.") }).strict().describe("The data of an event: which thing is stale and why. Never the thing itself.") }).strict(),
	z.object({ "event": z.literal("reload_required"), "data": z.object({ "reason": z.string().min(1).max(256).describe("`trimmed`, `overflow`, `invalid_id`, `unreadable`, or a producer's own word.") }).strict().describe("The data of `reload_required`: no id, because everything of the topic may be stale.") }).strict(),
	z.object({ "event": z.literal("position"), "data": z.object({}).strict().describe("The data of `position`: nothing. What counts is the `id:` of its block, from where a client resumes.") }).strict(),
]);
