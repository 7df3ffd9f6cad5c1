//! Every durable struct of Vellum, and nothing else: no IO, no policy.
//!
//! `item` holds the keys and values that clients and the engine exchange; the other modules hold what only the store
//! writes (superblock, manifest, logs, seals, segments). Integers inside keys are big-endian so that keys compare as
//! bytes; everything else is little-endian. All decoding returns errors, never panics: bytes from a device or a peer
//! are not ours.

pub mod bitmap;
pub mod block;
pub mod codec;
pub mod identity;
pub mod item;
pub mod log;
pub mod manifest;
pub mod owners;
pub mod quorum;
pub mod seal;
pub mod segment;
pub mod superblock;
pub mod system;

pub use bitmap::{BITMAP_BLOCKS, Bitmap};
pub use block::BlockError;
pub use codec::CodecError;
pub use identity::{ClientIdentity, Origin, Principal, ProcessId, WorkerMark};
pub use item::{
    Dirent, Extent, ExtentHeader, FileKind, IndexKind, Inode, ItemError, ItemKind, Orphan, Timestamp, Value, name_hash,
};
pub use log::{PartBuilder, PartPlace, Record};
pub use manifest::{ChunkUse, LogMeta, ManifestEdit, ManifestRecord, RecordBody, Run};
pub use owners::{OWNERS_BLOCKS, Owners};
pub use quorum::{ProcessIdentity, SlotBlock, SlotEvent, SlotState};
pub use seal::{MAX_NEW_DATA, PartRef, Seal};
pub use segment::{Place, SegmentError, SegmentMeta};
pub use superblock::Superblock;
