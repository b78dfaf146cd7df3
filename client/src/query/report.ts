/** Says an error of the application's as if nobody had caught it, where there is a way to; Node 20 has none. */
export const report = (error: unknown): void => (globalThis.reportError ?? console.error)(error);
