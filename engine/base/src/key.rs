//! The item key: fixed size, compared as bytes.
//!
//! ```text
//!  byte 0      1     2..10    10     11..19   19..27   27
//!  +--------+------+--------+------+--------+--------+--------+
//!  | bucket | zone | first  | type | second | third  | fourth |   integers big-endian
//!  +--------+------+--------+------+--------+--------+--------+
//! ```
//! The bucket leads so that a shard (a range of whole buckets) holds all zones of its inodes: an inode's items, its
//! index entries and its orphan record are always in one shard, and the engine's own read-modify-writes stay local.

use std::cmp::Ordering;
use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::id::Ino;

/// The leading byte of every key; for keys of an inode it is the inode number's top byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Bucket(pub u8);

/// What kind of item a key names, and who may write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Zone {
    /// Items of inodes: written by clients under the lock of the inode's group.
    Fs = 1,
    /// Inodes without a name: written by clients under the lock of the inode's group.
    Orphan = 2,
    /// `meta_seq` and `data_seq` entries: kept by the engine alone.
    Index = 3,
    /// Allocation bitmaps of data chunks: kept by the engine alone.
    Space = 4,
    /// Client records, counters: kept by the engine alone.
    System = 5,
}

impl Zone {
    pub fn from_u8(value: u8) -> Option<Zone> {
        Some(match value {
            1 => Zone::Fs,
            2 => Zone::Orphan,
            3 => Zone::Index,
            4 => Zone::Space,
            5 => Zone::System,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(transparent)]
pub struct Key(pub [u8; Key::LEN]);

impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Key) -> Ordering {
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    pub const LEN: usize = 28;
    pub const MIN: Key = Key([0; Key::LEN]);
    pub const MAX: Key = Key([0xff; Key::LEN]);

    pub fn new(bucket: Bucket, zone: Zone, first: u64, kind: u8, second: u64, third: u64, fourth: u8) -> Key {
        let mut k = [0u8; Key::LEN];
        k[0] = bucket.0;
        k[1] = zone as u8;
        k[2..10].copy_from_slice(&first.to_be_bytes());
        k[10] = kind;
        k[11..19].copy_from_slice(&second.to_be_bytes());
        k[19..27].copy_from_slice(&third.to_be_bytes());
        k[27] = fourth;
        Key(k)
    }

    /// A key of an inode in [`Zone::Fs`].
    pub fn fs(ino: Ino, kind: u8, second: u64, third: u64, fourth: u8) -> Key {
        Key::new(Bucket(ino.bucket()), Zone::Fs, ino.0, kind, second, third, fourth)
    }

    pub fn bucket(&self) -> Bucket {
        Bucket(self.0[0])
    }

    /// `None` when the byte names no zone (possible in keys that came from outside).
    pub fn zone(&self) -> Option<Zone> {
        Zone::from_u8(self.0[1])
    }

    pub fn first(&self) -> u64 {
        self.u64_at(2)
    }

    pub fn kind(&self) -> u8 {
        self.0[10]
    }

    pub fn second(&self) -> u64 {
        self.u64_at(11)
    }

    pub fn third(&self) -> u64 {
        self.u64_at(19)
    }

    pub fn fourth(&self) -> u8 {
        self.0[27]
    }

    /// Numbers that compare like the key's bytes, without a call to memcmp: keys are compared all the time.
    #[inline]
    pub fn words(&self) -> (u64, u64, u64, u32) {
        let k = &self.0;
        let last = u32::from_be_bytes([k[24], k[25], k[26], k[27]]);
        (self.u64_at(0), self.u64_at(8), self.u64_at(16), last)
    }

    #[inline]
    fn u64_at(&self, at: usize) -> u64 {
        let mut b = [0u8; 8];
        b.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(b)
    }

    /// The greatest key less than this one; `None` for [`Key::MIN`].
    pub fn predecessor(&self) -> Option<Key> {
        let mut key = *self;
        for byte in key.0.iter_mut().rev() {
            let (less, borrow) = byte.overflowing_sub(1);
            *byte = less;
            if !borrow {
                return Some(key);
            }
        }
        None
    }

    /// The least key greater than this one; `None` for [`Key::MAX`].
    pub fn successor(&self) -> Option<Key> {
        let mut k = *self;
        for byte in k.0.iter_mut().rev() {
            let (next, carry) = byte.overflowing_add(1);
            *byte = next;
            if !carry {
                return Some(k);
            }
        }
        None
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.zone() {
            Some(zone) => write!(f, "{:?}", zone)?,
            None => write!(f, "zone?{}", self.0[1])?,
        }
        write!(
            f,
            "[{} {} t{} {:x} {:x} {}]",
            self.0[0],
            self.first(),
            self.kind(),
            self.second(),
            self.third(),
            self.fourth()
        )
    }
}

/// An inclusive range of keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyRange {
    pub first: Key,
    pub last: Key,
}

impl KeyRange {
    pub const ALL: KeyRange = KeyRange { first: Key::MIN, last: Key::MAX };

    pub fn contains(&self, key: &Key) -> bool {
        self.first <= *key && *key <= self.last
    }

    pub fn overlaps(&self, other: &KeyRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// All items of one inode in [`Zone::Fs`].
    pub fn of_inode(ino: Ino) -> KeyRange {
        KeyRange { first: Key::fs(ino, 0, 0, 0, 0), last: Key::fs(ino, u8::MAX, u64::MAX, u64::MAX, u8::MAX) }
    }

    /// All keys of a run of buckets: what a shard covers.
    pub fn of_buckets(first: Bucket, last: Bucket) -> KeyRange {
        let mut range = KeyRange::ALL;
        range.first.0[0] = first.0;
        range.last.0[0] = last.0;
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_compare_like_their_fields() {
        let a = Key::fs(Ino(1), 2, 3, 4, 5);
        assert!(a < Key::fs(Ino(1), 2, 3, 4, 6));
        assert!(Key::fs(Ino(1), 2, u64::MAX, 0, 0) < Key::fs(Ino(1), 3, 0, 0, 0));
        assert!(Key::fs(Ino(256), 0, 0, 0, 0) > Key::fs(Ino(255), 255, 0, 0, 0));
        assert_eq!((a.first(), a.kind(), a.second(), a.third(), a.fourth()), (1, 2, 3, 4, 5));
        assert_eq!(a.zone(), Some(Zone::Fs));
    }

    #[test]
    fn keys_compare_like_their_bytes() {
        let mut random = crate::prng::Prng::new(4);
        for _ in 0..10_000 {
            let (mut a, mut b) = (Key::MIN, Key::MIN);
            random.fill(&mut a.0);
            b.0 = a.0;
            b.0[random.below(28) as usize] = random.next_u64() as u8;
            assert_eq!(a.cmp(&b), a.0.cmp(&b.0));
        }
    }

    #[test]
    fn a_successor_is_the_next_key() {
        assert_eq!((Key::MAX.successor(), Key::MIN.predecessor()), (None, None));
        let k = Key::fs(Ino(1), 1, 0, 0, 255);
        assert_eq!(k.successor(), Some(Key::fs(Ino(1), 1, 0, 1, 0)));
    }

    #[test]
    fn a_bucket_range_holds_all_zones_of_its_inodes() {
        let range = KeyRange::of_buckets(Bucket(3), Bucket(4));
        let ino = Ino(3 << 56 | 77);
        assert!(range.contains(&Key::fs(ino, 1, 0, 0, 0)));
        assert!(range.contains(&Key::new(Bucket(4), Zone::System, u64::MAX, 255, 0, 0, 0)));
        assert!(!range.contains(&Key::fs(Ino(5 << 56), 1, 0, 0, 0)));
    }
}
