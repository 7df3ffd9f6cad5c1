//! What can go wrong in the store. Cloned to everybody who waits for the same thing.

use std::sync::Arc;

use thiserror::Error;
use vellum_base::{BatchNo, Epoch, Key, Rid};
use vellum_format::{BlockError, CodecError, ItemError};
use vellum_nvme::DeviceError;

use crate::lsm::LsmError;

#[derive(Error, Debug, Clone)]
pub enum StoreError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("corrupt: {0}")]
    Block(BlockError),
    #[error(transparent)]
    Lsm(LsmError),
    #[error("corrupt: {place}: {detail}")]
    Corrupt { place: String, detail: String },
    #[error("corrupt: item {key:?}: {error}")]
    Item { key: Key, error: ItemError },
    #[error(
        "which blocks of bucket {bucket} are free cannot be read ({reason}). The files tell: stop the node and run \
         `vellum check --repair DEVICE`"
    )]
    Bitmaps { bucket: u8, reason: String },
    /// Repair would give them to others.
    #[error(
        "bitmaps of bucket {bucket} are lost, and these extents cannot be read either: {reason}. Their blocks would be \
         taken for free: keep an image of the device, and restore what it holds from the archive"
    )]
    Extents { bucket: u8, reason: String },
    #[error("no superblock on {device}: {detail} (mkfs makes one)")]
    NotVellum { device: String, detail: String },
    #[error("{device} is smaller than its filesystem: {found} bytes of {needed}; give it back its size to use it")]
    Truncated { device: String, found: u64, needed: u64 },
    #[error("{device} holds a filesystem already (fsid {fsid}); --force overwrites it")]
    Exists { device: String, fsid: String },
    #[error("format version {found} is not the {known} that this vellum knows: use a newer one")]
    FormatVersion { found: u32, known: u32 },
    #[error("unknown features {bits:#x} that forbid {forbid}: use a newer vellum")]
    Features { bits: u64, forbid: &'static str },
    #[error("{found} bytes are too small for a filesystem: at least {least} are needed")]
    TooSmall { found: u64, least: u64 },
    #[error("{0}")]
    Options(String),
    #[error("no space left on the device")]
    NoSpace,
    #[error("the manifest is full: {needed} bytes do not fit its {area} bytes")]
    ManifestFull { needed: usize, area: usize },
    /// A write or a flush failed earlier: nothing is acknowledged any more until the device is opened anew.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    /// Not for callers: whoever asked asks again.
    #[error("the shard is on another reactor")]
    Moved,
    #[error("the store is closed")]
    Closed,
    #[error("the store is open for reading only")]
    ReadOnly,
}

impl From<BlockError> for StoreError {
    fn from(error: BlockError) -> StoreError {
        StoreError::Block(error)
    }
}

impl From<LsmError> for StoreError {
    fn from(e: LsmError) -> StoreError {
        match e {
            LsmError::Device(e) => StoreError::Device(e),
            LsmError::NoSpace { .. } => StoreError::NoSpace,
            e => StoreError::Lsm(e),
        }
    }
}

impl StoreError {
    /// Damage of a filesystem of ours, as opposed to a device that has none, or one that cannot be read.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            StoreError::Block(_)
                | StoreError::Lsm(_)
                | StoreError::Corrupt { .. }
                | StoreError::Item { .. }
                | StoreError::Bitmaps { .. }
                | StoreError::Extents { .. }
        )
    }

    pub fn corrupt(place: impl Into<String>, detail: impl ToString) -> StoreError {
        StoreError::Corrupt { place: place.into(), detail: detail.to_string() }
    }

    pub(crate) fn record(place: &str, error: &CodecError) -> StoreError {
        StoreError::corrupt(place, error)
    }
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Error, Debug, Clone)]
pub enum CommitError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("batch {found} of client {rid} came where {expected} was expected")]
    OutOfOrder { rid: Rid, expected: BatchNo, found: BatchNo },
    #[error("client {rid} has no record")]
    UnknownClient { rid: Rid },
    #[error("the batch is too large: {what} {found} of at most {most}")]
    TooLarge { what: &'static str, found: usize, most: usize },
    #[error("client {rid} may not write {key:?}")]
    Denied { rid: Rid, key: Key },
    #[error("{key:?}: {reason}")]
    Malformed { key: Key, reason: String },
    /// The judge that came with the batch says no.
    #[error("{reason}")]
    Outside { reason: String },
    #[error("blocks {start}+{len} are neither pending for client {rid} nor freed by the batch")]
    Blocks { rid: Rid, start: u64, len: u64 },
    #[error("client {rid} cannot share blocks {start}+{len}: {reason}")]
    NotShared { rid: Rid, start: u64, len: u64, reason: &'static str },
}

/// A clear refusal for what recovery found: a hole among what was acknowledged.
pub(crate) fn lost_seal(number: u64, epoch: Epoch, detail: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt(format!("seal {number} (epoch {epoch}), which was durable"), detail)
}
