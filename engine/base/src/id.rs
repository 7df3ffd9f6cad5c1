//! Newtypes for the identities that travel through every layer, so that none is taken for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// The unit of atomic durability, densely numbered from 1. Epoch 0 means "none yet".
    Epoch(u64)
}
id! {
    /// A leadership period. 0 in a client's greeting means that it has never met a leader.
    Term(u64)
}
id! {
    /// Number of a batch within one rid: gapless from 1 over sockets and terms; 0 means "none yet".
    BatchNo(u64)
}
id! {
    /// Index of a reactor within its node, from 0.
    ReactorId(u16)
}
id! {
    /// A shard: a key range with its own LSM, owned by one reactor.
    ShardId(u32)
}
id! {
    /// An immutable sorted table on the device. Never reused.
    SegmentId(u64)
}
id! {
    /// One append-only log (of one reactor, in one run of the engine). Never reused.
    LogId(u64)
}

id! {
    /// A quorum member's place in the superblock, below [`Slot::COUNT`].
    Slot(u8)
}

impl Slot {
    /// Quorum members that a filesystem can have.
    pub const COUNT: usize = 15;

    pub fn all() -> impl Iterator<Item = Slot> {
        (0..Self::COUNT as u8).map(Slot)
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Terms of a cluster are unique per slot, so that two members are never elected in one: `round * 16 + slot`.
impl Term {
    pub const NONE: Term = Term(0);
    /// No election reaches it: a damaged or forged number must not use up the terms that are left.
    pub const LIMIT: Term = Term(1 << 60);
    const SLOTS: u64 = 16;

    pub fn of_round(round: u64, slot: Slot) -> Term {
        Term(round.saturating_mul(Self::SLOTS).saturating_add(u64::from(slot.0)))
    }

    pub fn round(self) -> u64 {
        self.0 / Self::SLOTS
    }

    /// Whose term it is. Slot 15 has no terms, so not every number is one.
    pub fn slot(self) -> Slot {
        Slot((self.0 % Self::SLOTS) as u8)
    }

    /// The term of `slot` in the round after this one: greater than this, whatever the slots.
    pub fn next_for(self, slot: Slot) -> Term {
        Term::of_round(self.round().saturating_add(1), slot)
    }
}
const _: () = assert!(Slot::COUNT < Term::SLOTS as usize);

impl Epoch {
    pub const NONE: Epoch = Epoch(0);

    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl BatchNo {
    pub fn next(self) -> BatchNo {
        BatchNo(self.0 + 1)
    }
}

/// A client: a gateway or a library user. Random, chosen once by the client; it is an identity and no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Rid(pub u64);

impl Rid {
    /// The engine itself, where it takes locks and blocks as a client does. No client is let in under it.
    pub const ENGINE: Rid = Rid(u64::MAX);
}

impl fmt::Display for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Rid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rid({self})")
    }
}

/// The filesystem's identity, random, written once by mkfs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Fsid(pub [u8; 16]);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, b) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fsid({self})")
    }
}

/// Inode number: 8 bits of bucket, 46 bits of group counter, 10 bits of slot within the group. Never reused; 0 is none.
///
/// ```text
///   63      56 55                                   10 9        0
///  +----------+---------------------------------------+----------+
///  |  bucket  |            group counter              |   slot   |
///  +----------+---------------------------------------+----------+
/// ```
/// A group (bucket and counter together) is the unit of locking and of directory locality; the bucket decides the
/// shard, so consecutive groups are handed out over different buckets and spread over the reactors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Ino(pub u64);

impl Ino {
    pub const NONE: Ino = Ino(0);
    /// The root directory: slot 1 of group 0.
    pub const ROOT: Ino = Ino(1);
    pub const SLOT_BITS: u32 = 10;
    pub const SLOTS_PER_GROUP: u64 = 1 << Self::SLOT_BITS;

    pub fn bucket(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The group's number, bucket included.
    pub fn group(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    pub fn first_of_group(group: u64) -> Ino {
        Ino(group << Self::SLOT_BITS)
    }

    pub fn last_of_group(group: u64) -> Ino {
        Ino((group << Self::SLOT_BITS) | (Self::SLOTS_PER_GROUP - 1))
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ino({}:{}:{})", self.bucket(), (self.0 << 8) >> 18, self.0 & (Self::SLOTS_PER_GROUP - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_of_a_round_are_told_apart_and_the_next_round_is_greater() {
        let (a, b) = (Term::of_round(3, Slot(0)), Term::of_round(3, Slot(14)));
        assert!(a < b && a.slot() == Slot(0) && b.slot() == Slot(14) && b.round() == 3);
        assert!(b.next_for(Slot(0)) > b && b.next_for(Slot(0)).slot() == Slot(0));
        assert_eq!(Term::NONE.next_for(Slot(2)), Term(18));
    }

    #[test]
    fn an_ino_splits_into_bucket_group_and_slot() {
        let ino = Ino((7 << 56) | (5 << 10) | 3);
        assert_eq!(ino.bucket(), 7);
        assert_eq!(Ino::first_of_group(ino.group()).0, (7 << 56) | (5 << 10));
        assert_eq!(Ino::last_of_group(ino.group()).0, (7 << 56) | (5 << 10) | 1023);
        assert_eq!(format!("{ino:?}"), "Ino(7:5:3)");
    }
}
