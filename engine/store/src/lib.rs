//! Shards, logs, segments, compaction, manifest, epochs, space.

pub mod lsm;
