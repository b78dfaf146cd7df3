/**
 * As much of TanStack Query as is used, by its shape: React's, Vue's, Svelte's and Solid's all fit, in whichever version
 * of the core each brings along.
 */

export type QueryKey = readonly unknown[];

export interface Query {
	readonly queryKey: QueryKey;
	readonly queryHash: string;
	readonly state: { readonly fetchStatus: string; readonly isInvalidated: boolean };
	/** Of the fetch that is under way. */
	readonly promise?: Promise<unknown> | undefined;
	/** Somebody looks at it who wants it fetched. */
	isActive(): boolean;
	/** Never to be fetched again; since 5.80. */
	isStatic?(): boolean;
	invalidate(): void;
	fetch(options: undefined, fetchOptions: { cancelRefetch: boolean }): Promise<unknown>;
}

export interface QueryCache {
	getAll(): Query[];
	get(queryHash: string): Query | undefined;
}

export interface QueryClient {
	getQueryCache(): QueryCache;
	invalidateQueries(filters: { predicate: (query: any) => boolean; refetchType: 'none' }): Promise<void>;
}
