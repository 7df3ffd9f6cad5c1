//! A client's atomic change.

use bytes::Bytes;

use crate::id::{BatchNo, Ino};
use crate::key::Key;

/// Most operations in one batch, and most bytes of keys and values in one batch: what a request may carry.
pub const MAX_BATCH_OPS: usize = 16_384;
pub const MAX_BATCH_BYTES: usize = 2 << 20;

/// One change of one item, or the death of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ItemOp {
    Put {
        key: Key,
        value: Bytes,
    },
    Delete {
        key: Key,
    },
    /// All items of the inode in `Zone::Fs` die with one range marker; its index entries go too. The client has freed
    /// its extents in earlier operations: the engine refuses the batch when extents are left.
    DeleteInode {
        ino: Ino,
    },
}

impl ItemOp {
    /// Bytes it takes in a request and, about, in a log.
    pub fn len_bytes(&self) -> usize {
        Key::LEN + if let ItemOp::Put { value, .. } = self { value.len() } else { 0 } + 4
    }
}

/// Applied whole or not at all; a client's batches are applied in the order of their numbers, each once.
/// A key stands in a batch at most once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub number: BatchNo,
    pub ops: Vec<ItemOp>,
}

/// Which state a reader sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum View {
    /// The newest applied state: what the holder of a lock works on.
    #[default]
    Applied,
    /// The last durable epoch: what can't be undone by a crash.
    Durable,
}
