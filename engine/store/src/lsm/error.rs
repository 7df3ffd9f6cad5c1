//! What can go wrong in a shard's LSM.

use thiserror::Error;
use vellum_base::SegmentId;
use vellum_format::segment::{BlockError, BlockKind};
use vellum_nvme::DeviceError;

#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum LsmError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// `reason` says what was expected and found.
    #[error(
        "segment {segment}: {kind:?} block of {len_bytes} bytes at byte {at_bytes} (device byte {device_bytes}): {reason}"
    )]
    Corrupt {
        segment: SegmentId,
        kind: BlockKind,
        at_bytes: u64,
        len_bytes: usize,
        device_bytes: u64,
        reason: BlockError,
    },
    #[error("no space for a segment of {wanted_bytes} bytes")]
    NoSpace { wanted_bytes: u64 },
    /// A job has used up the segments, or the space, that it was given.
    #[error("the job's outputs do not fit what was set aside for them")]
    Ids,
    /// Nothing of it is used.
    #[error("the outcome of a compaction does not fit its job: {0}")]
    Misfit(String),
    #[error("the job was cancelled")]
    Cancelled,
    /// For the environment: whatever stopped it from giving space.
    #[error("segment space: {0}")]
    Space(String),
}
