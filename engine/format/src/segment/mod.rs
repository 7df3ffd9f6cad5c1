//! Segments: immutable sorted tables of one shard.
//!
//! ```text
//!  0                                                                    len_bytes
//!  +------------------+-------------------+--------------+-------+-----------+--------+
//!  | data blocks      | tombstone blocks  | filter pages | index | tombstone | footer |   all in whole 4 KiB blocks
//!  | (points by key)  | (ranges by last)  | (4 KiB each) |       | index     | (4 KiB)|
//!  +------------------+-------------------+--------------+-------+-----------+--------+
//! ```
//! Offsets are relative to the segment, whose bytes lie in a list of block runs ([`SegmentMeta::ranges`]). Every block
//! carries a crc32c seeded with the segment's id and its own offset ([`block`]): segment ids are never used twice, so a
//! block of another segment, of another place or of an earlier life of the device space does not verify.
//!
//! An entry's epoch is kept only while a reader may exist that is older than it; epoch 0 means "visible to everyone".

pub mod block;
pub mod entry;
pub mod filter;
mod meta;

pub use block::{BlockError, BlockKind};
pub use meta::{META_VERSION, Place, SegmentError, SegmentMeta};
