//! Every durable struct of Vellum, and nothing else: no IO, no policy.
//!
//! `item` holds the keys and values that clients and the engine exchange; the other modules hold what only the store
//! writes (superblock, manifest, logs, seals, segments). Integers inside keys are big-endian so that keys compare as
//! bytes; everything else is little-endian. All decoding returns errors, never panics: bytes from a device or a peer
//! are not ours.

pub mod item;
pub mod segment;

pub use item::{
    Dirent, Extent, ExtentHeader, FileKind, IndexKind, Inode, ItemError, ItemKind, Timestamp, Value, name_hash,
};
pub use segment::{Place, SegmentError, SegmentMeta};
