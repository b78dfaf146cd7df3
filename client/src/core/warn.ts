/** What a developer should know and a user need not. */

// Typed here: what is built for browsers has no types of Node's.
declare const process: { env: { NODE_ENV?: string } };

/**
 * Says it on the console, unless this is a production build. Bundlers put a string in place of `process.env.NODE_ENV`,
 * see that nothing is left to do, and drop the function with its calls. Only the whole expression is replaced:
 * to ask for the type of `process` first would leave every page with its warnings, since a browser has none.
 */
export function warn(message: string, ...more: unknown[]): void {
	try {
		if (process.env.NODE_ENV !== 'production') console.warn(`stalecast: ${message}`, ...more);
	} catch {
		console.warn(`stalecast: ${message}`, ...more); // no bundler, no `process`
	}
}
