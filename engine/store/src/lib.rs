//! Shards, logs, segments, compaction, manifest, epochs, space.
