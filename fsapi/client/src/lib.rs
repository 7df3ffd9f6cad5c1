//! Connection, locks, item cache, batches.
