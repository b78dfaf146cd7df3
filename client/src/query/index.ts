export { bindQueryClient, type Binding, type BindOptions } from './bind.js';
export { type CachePersister, type PersistedCache, withCursor } from './persist.js';
