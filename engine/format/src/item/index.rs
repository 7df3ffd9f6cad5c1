//! Index entries: what changed since when. Kept by the engine alone, one bucket's entries beside its inodes.

use vellum_base::{Bucket, Ino, Key, Zone};

/// Which index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum IndexKind {
    /// Any change of an inode.
    MetaSeq = 1,
    /// A change of its content.
    DataSeq = 2,
}

impl IndexKind {
    pub fn from_u8(value: u8) -> Option<IndexKind> {
        match value {
            1 => Some(IndexKind::MetaSeq),
            2 => Some(IndexKind::DataSeq),
            _ => None,
        }
    }

    /// Entry of `ino` at `seq`, in the inode's own bucket. `first` is the kind so that each index is one range.
    pub fn key(self, seq: u64, ino: Ino) -> Key {
        self.key_in(Bucket(ino.bucket()), seq, ino)
    }

    /// The place of (seq, ino) in any bucket: where a walk begins in it.
    pub fn key_in(self, bucket: Bucket, seq: u64, ino: Ino) -> Key {
        Key::new(bucket, Zone::Index, self as u64, 0, seq, ino.0, 0)
    }

    /// (seq, ino) of an entry's key.
    pub fn entry(key: &Key) -> (u64, Ino) {
        (key.second(), Ino(key.third()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_sort_by_sequence_then_ino() {
        let key = |seq, ino| IndexKind::MetaSeq.key(seq, Ino(ino));
        assert!(key(1, 9) < key(2, 1) && key(2, 1) < key(2, 2));
        assert_eq!(IndexKind::entry(&key(2, 1)), (2, Ino(1)));
        assert!(IndexKind::MetaSeq.key(u64::MAX, Ino(1)) < IndexKind::DataSeq.key(0, Ino(1)));
    }
}
