export { bindQueryClient, type Binding, type BindOptions, type KeysOf } from './bind.js';
export { type CachePersister, type PersistedCache, withCursor } from './persist.js';
