/** What a developer should know and a user need not. */

// Typed here: what is built for browsers has no types of Node's.
declare const process: { env: { NODE_ENV?: string } };

/**
 * Says it on the console, unless this is a production build; what is given as a function is asked only then, and may
 * find nothing to say. Bundlers put a string in place of `process.env.NODE_ENV`, see that nothing is left to do, and
 * drop the calls with what they would say. Only the whole expression is replaced: to ask for the type of `process`
 * first would leave every page with its warnings, since a browser has none. Rest parameters would keep the calls.
 */
export function warn(what: string | (() => string | undefined), cause: unknown = ''): void {
	try {
		if (process.env.NODE_ENV !== 'production') say(what, cause);
	} catch {
		say(what, cause); // no bundler, no `process`
	}
}

function say(what: string | (() => string | undefined), cause: unknown): void {
	const text = typeof what === 'string' ? what : what();
	if (text) console.warn(`stalecast: ${text}`, cause);
}
