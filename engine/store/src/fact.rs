//! What a store does, in words for the simulation's checkers: see [`vellum_base::probe`].

use vellum_base::{BatchNo, Epoch, Rid, SegmentId, ShardId, Term};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// A run begins; what the log held ends at `recovered`.
    Opened {
        term: Term,
        first_epoch: Epoch,
        recovered: Epoch,
    },
    /// The client's record is part of this epoch.
    RecordMade {
        term: Term,
        rid: Rid,
        epoch: Epoch,
    },
    /// The client's record is durably gone.
    RecordGone {
        term: Term,
        rid: Rid,
    },
    /// A batch is part of this epoch.
    Applied {
        term: Term,
        rid: Rid,
        number: BatchNo,
        epoch: Epoch,
    },
    /// A part of a batch writes items of these inode groups.
    Wrote {
        term: Term,
        rid: Rid,
        groups: Vec<u64>,
    },
    /// Everything through this epoch is called durable.
    Durable {
        term: Term,
        epoch: Epoch,
    },
    /// Inode numbers of this group may be used by one client.
    GroupGiven {
        term: Term,
        group: u64,
    },
    /// Blocks are taken for a client's data.
    Taken {
        term: Term,
        start: u64,
        len: u64,
    },
    /// Blocks are freed by an epoch.
    Freed {
        term: Term,
        epoch: Epoch,
        start: u64,
        len: u64,
    },
    /// File data of a group are moved, as clients' items say from this epoch on.
    Moved {
        term: Term,
        group: u64,
        blocks: u64,
        epoch: Epoch,
    },
    /// A compaction begins, and ends whatever came of it.
    Compacts {
        term: Term,
        shard: ShardId,
        inputs: Vec<SegmentId>,
    },
    Compacted {
        term: Term,
        shard: ShardId,
        inputs: Vec<SegmentId>,
    },
}
