//! Items of [`vellum_base::Zone::System`]: client records, batch numbers, counters. Kept by the engine alone.
//!
//! | kind   | first  | value                                                    |
//! |--------|--------|----------------------------------------------------------|
//! | Client | rid    | [`crate::ClientIdentity`]: who brought the rid            |
//! | Batch  | rid    | last batch number u64, its epoch u64                      |
//! | Group  | 0      | group counters below this number are taken, u64          |
//! | Root   | group  | directory that the client is confined to which got it, u64 |
//! | Scrub  | 0      | [`LastScrub`]: when the last scrub ended, and what it found |

use bytes::Bytes;
use vellum_base::{BatchNo, Bucket, Epoch, Ino, Key, KeyRange, Rid, Zone};

use crate::item::ItemError;

const KIND_CLIENT: u8 = 1;
const KIND_BATCH: u8 = 2;
const KIND_GROUP: u8 = 3;
const KIND_ROOT: u8 = 4;
const KIND_SCRUB: u8 = 5;

/// The bucket, and so the reactor, that keeps a client's records.
pub fn bucket_of_rid(rid: Rid) -> Bucket {
    Bucket((rid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
}

pub fn client_key(rid: Rid) -> Key {
    Key::new(bucket_of_rid(rid), Zone::System, rid.0, KIND_CLIENT, 0, 0, 0)
}

pub fn batch_key(rid: Rid) -> Key {
    Key::new(bucket_of_rid(rid), Zone::System, rid.0, KIND_BATCH, 0, 0, 0)
}

pub fn group_key(bucket: Bucket) -> Key {
    Key::new(bucket, Zone::System, 0, KIND_GROUP, 0, 0, 0)
}

/// Whose inode group it is, when a client that is confined to a directory got it: only such clients make inodes in it.
pub fn root_key(group: u64) -> Key {
    Key::new(Bucket(Ino::first_of_group(group).bucket()), Zone::System, group, KIND_ROOT, 0, 0, 0)
}

/// The one record of the last scrub.
pub fn scrub_key() -> Key {
    Key::new(Bucket(0), Zone::System, 0, KIND_SCRUB, 0, 0, 0)
}

/// The rid that a client record's key names.
pub fn rid_of_client_key(key: &Key) -> Option<Rid> {
    (key.zone() == Some(Zone::System) && key.kind() == KIND_CLIENT).then(|| Rid(key.first()))
}

/// All system items of one bucket.
pub fn range(bucket: Bucket) -> KeyRange {
    KeyRange {
        first: Key::new(bucket, Zone::System, 0, 0, 0, 0, 0),
        last: Key::new(bucket, Zone::System, u64::MAX, u8::MAX, u64::MAX, u64::MAX, u8::MAX),
    }
}

/// What the engine remembers of a client's batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastBatch {
    pub number: BatchNo,
    pub epoch: Epoch,
}

impl LastBatch {
    pub fn encode(&self) -> Bytes {
        [self.number.0.to_le_bytes(), self.epoch.0.to_le_bytes()].concat().into()
    }

    pub fn decode(value: &[u8]) -> Result<LastBatch, ItemError> {
        match value.as_chunks::<8>() {
            ([number, epoch], []) => {
                Ok(LastBatch { number: BatchNo(u64::from_le_bytes(*number)), epoch: Epoch(u64::from_le_bytes(*epoch)) })
            }
            _ => Err(ItemError::Length { what: "last batch", expected: 16, found: value.len() }),
        }
    }
}

/// The last scrub that saw everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastScrub {
    /// Seconds since 1970.
    pub ended_at_s: u64,
    pub problems: u64,
    /// Of these.
    pub repaired: u64,
}

impl LastScrub {
    pub fn encode(&self) -> Bytes {
        [self.ended_at_s, self.problems, self.repaired].map(u64::to_le_bytes).concat().into()
    }

    pub fn decode(value: &[u8]) -> Result<LastScrub, ItemError> {
        let words = value.as_chunks::<8>();
        let ([ended_at_s, problems, repaired], []) = words else {
            return Err(ItemError::Length { what: "last scrub", expected: 24, found: value.len() });
        };
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        Ok(LastScrub { ended_at_s: word(ended_at_s), problems: word(problems), repaired: word(repaired) })
    }
}

pub fn encode_counter(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

pub fn decode_counter(value: &[u8]) -> Result<u64, ItemError> {
    match value.as_chunks::<8>() {
        ([counter], []) => Ok(u64::from_le_bytes(*counter)),
        _ => Err(ItemError::Length { what: "counter", expected: 8, found: value.len() }),
    }
}
