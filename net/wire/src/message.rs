//! The messages of the RPC. Both peers send requests; each request gets one response of the matching kind or
//! [`Response::Error`]. File data is never inside a message: it is the frame's payload, so that it is received straight
//! into aligned memory.

use crate::admin::AdminRequest;
use crate::files::{FileLock, FileLockOutcome, HeldFileLock};
use bytes::Bytes;
use vellum_base::{Batch, BatchNo, BlockRange, Epoch, Fsid, Ino, Key, KeyRange, Rid, Term, View};

/// The version of frames and messages. Peers that differ don't talk (N7).
pub const PROTOCOL: u32 = 4;

/// Most locks in one `Lock`, `Unlock` or `Reassert`.
pub const MAX_WANTS: usize = 4096;
/// Most keys or items in one message.
pub const MAX_ITEMS: usize = 65_536;
/// Most block ranges in one message.
pub const MAX_RANGES: usize = 1024;
/// Most index entries in one page of a walk.
pub const MAX_ENTRIES: usize = 65_536;

/// Longest compaction job, and longest outcome of one. They are opaque here: the store's own form.
pub const MAX_JOB_BYTES: usize = 2 << 20;

/// In [`Greeting::flags`]: the client has the device and runs compactions. It takes no locks and sends no batches.
const WORKER: u32 = 1;
/// Of a worker that is a quorum member: its slot plus one.
const SLOT_SHIFT: u32 = 8;
const SLOT_MASK: u32 = 0xf;

/// First message of a client on a socket. Nothing else is legal before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// All zeros: whatever filesystem is served (the answer says which).
    pub fsid: Fsid,
    pub protocol: u32,
    /// Leader's term as last seen; 0 for a new client.
    pub term: Term,
    pub rid: Rid,
    pub flags: u32,
}

impl Greeting {
    /// Flags of a worker.
    pub fn worker_flags(slot: Option<u8>) -> u32 {
        WORKER | (slot.map_or(0, |slot| u32::from(slot) + 1) & SLOT_MASK) << SLOT_SHIFT
    }

    pub fn is_worker(&self) -> bool {
        self.flags & WORKER != 0
    }

    /// The slot that a worker says it has.
    pub fn slot(&self) -> Option<u8> {
        ((self.flags >> SLOT_SHIFT & SLOT_MASK) as u8).checked_sub(1).filter(|_| self.is_worker())
    }
}

/// Answer to a [`Greeting`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeted {
    pub fsid: Fsid,
    pub term: Term,
    pub protocol: u32,
    pub format: u32,
    /// Newest batch of this rid that the engine has applied (and, after a restart, kept).
    pub last_batch: BatchNo,
    pub durable: Epoch,
    /// What locks cover may be used this long after the sending of the last answered keepalive, in milliseconds.
    pub lease_ms: u32,
    pub keepalive_ms: u32,
    /// Requests that may be unanswered at a time, and bytes of data frames among them.
    pub max_requests: u32,
    pub max_data_bytes: u32,
    /// The certificate allows nothing that changes: such requests get `NotPermitted`.
    pub read_only: bool,
    /// What this client's paths begin at: [`Ino::ROOT`], or the directory that its certificate names. What is not below
    /// it gets `Outside`.
    pub root: Ino,
}

/// Why a greeting is not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    OtherFilesystem {
        served: Fsid,
    },
    OtherProtocol {
        served: u32,
    },
    /// The rid was fenced and reclaimed: take a new one, what was cached is lost.
    Fenced,
    /// The engine is starting or stopping: try again.
    NotServing,
    TooManyClients {
        limit: u32,
    },
    /// This identity may not run compactions.
    NoWorker,
    /// The path that the certificate names leads to no directory: to something else, or nowhere. A long one is cut off.
    NoDirectory {
        path: String,
        exists: bool,
    },
}

/// Blocks of a file, and where they are on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilePart {
    /// First block within the file.
    pub block: u64,
    pub range: BlockRange,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LockName {
    /// Cross-directory renames of directories take this one first, in WRITE.
    Rename,
    /// The items of one inode group ([`Ino::group`]).
    Group(u64),
}

impl LockName {
    pub fn of(ino: Ino) -> LockName {
        LockName::Group(ino.group())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum LockMode {
    #[default]
    Null = 0,
    Read = 1,
    Write = 2,
}

impl LockMode {
    /// A holder of `self` may do what `wanted` needs.
    pub fn covers(self, wanted: LockMode) -> bool {
        self >= wanted
    }

    /// Two clients may hold these modes at once.
    pub fn compatible(self, other: LockMode) -> bool {
        self == LockMode::Null || other == LockMode::Null || (self == LockMode::Read && other == LockMode::Read)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockWant {
    pub name: LockName,
    pub mode: LockMode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockGrant {
    pub name: LockName,
    pub mode: LockMode,
    /// Greater than that of any grant before, across terms.
    pub write_seq: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    // ---- from a client
    /// Ascending names. Answered by [`Response::Granted`] when all are granted.
    Lock {
        wants: Vec<LockWant>,
    },
    /// The client weakens its own grants (Null gives back). Not while a `Lock` for the same name is unanswered: the two
    /// would cross, and the engine would believe less than the client (L2).
    Unlock {
        to: Vec<LockWant>,
    },
    /// Lock recovery: after a greeting that was answered with another term than the client's own, the client says what
    /// it holds, in pages of at most [`MAX_WANTS`] ascending names, the last one with `last` set (a client without
    /// locks sends one empty page). It is the first thing that it sends in the new term; nothing else of this rid is
    /// served before the last page. A lock under invalidation, or under an `Unlock` that was not answered, is reported
    /// with its OLD mode (L6); a `Lock` that was not answered is not reported, but asked for again. Such an invalidation is
    /// void from then on: the client abandons it (its answer goes nowhere, and the lock may be granted to a waiting `Lock`
    /// of this client again), and the new leader asks anew if somebody wants the lock.
    /// Then, in this order: `WriteData` for all data that is not durable (the engine forgot what was pending), and
    /// the batches after [`Greeted::last_batch`] with the new places of that data. Answered by
    /// [`Response::Reasserted`]; `NotPermitted` says that somebody else holds one of them: the client was fenced.
    Reassert {
        locks: Vec<LockGrant>,
        last: bool,
    },
    /// The rest of lock recovery: file locks and open inodes, before the last page of [`Request::Reassert`]. What may
    /// have been weakened by an unanswered request is reported as the weaker; a lock that is asked for is not reported.
    /// Inodes are those that the engine was told of ([`Request::Opened`]). At most [`MAX_WANTS`] of each.
    ReassertFiles {
        locks: Vec<HeldFileLock>,
        opens: Vec<Ino>,
    },
    /// Sets or removes a lock of a file, as fcntl(2) and flock(2) do. With a ticket it waits: the answer is then
    /// [`FileLockOutcome::Queued`], and [`Request::FileLockDone`] follows.
    FileLock {
        ino: Ino,
        lock: FileLock,
        ticket: Option<u64>,
    },
    /// What is in the way of this lock?
    FileLockTest {
        ino: Ino,
        lock: FileLock,
    },
    /// The waiter is not interested any more. Answered by [`Response::FileLocked`].
    FileLockCancel {
        ino: Ino,
        ticket: u64,
    },
    /// Inodes that this client has open and whose lease it is about to give away: while it has them open, their content
    /// outlives their last name. Sent before the lease goes.
    Opened {
        inos: Vec<Ino>,
    },
    /// Some of those are open no more.
    Closed {
        inos: Vec<Ino>,
    },
    /// Which of these have other clients open? Right for a client that holds WRITE on their groups; while the engine
    /// waits for the clients of the term before, every inode counts as open.
    Openers {
        inos: Vec<Ino>,
    },
    Get {
        keys: Vec<Key>,
        view: View,
    },
    Scan {
        range: KeyRange,
        max_items: u32,
        max_bytes: u32,
        view: View,
    },
    /// Payload: whole blocks. Answered by [`Response::Written`], pending for this rid until a batch refers to them.
    WriteData,
    /// Answered by [`Response::Data`] with the blocks of all ranges in order as payload.
    ReadData {
        ranges: Vec<BlockRange>,
    },
    /// As `ReadData`, of a client that says whose blocks it reads: for one that is confined to a directory the engine
    /// looks whether the file has them there. Parts ascend by block, and do not overlap.
    ReadFile {
        ino: Ino,
        parts: Vec<FilePart>,
    },
    Commit {
        batch: Batch,
    },
    /// Answered when every batch of this rid up to `through` is durable.
    Sync {
        through: BatchNo,
    },
    /// A fresh inode group, spread over the buckets.
    AllocGroup {
        near: Option<Ino>,
    },
    /// Entries of an index with `from <= (seq, ino)` and `seq <= to`, durable ones only. `index` is an `IndexKind`.
    Walk {
        index: u8,
        from_seq: u64,
        from_ino: Ino,
        to_seq: u64,
        max: u32,
    },
    StatFs,
    /// JSON for people and tools: what the engine is doing and every bound it keeps.
    Status,
    /// Of an operator. Answered by [`Response::Status`].
    Admin {
        what: AdminRequest,
    },
    /// The last request of a client: all it held is given up.
    Farewell,
    /// Merge everything, and answer when that is done. For operators; the engine keeps itself in order without.
    CompactAll,
    /// From a worker, once in each term: it takes up to so many jobs at a time from now on, and whatever it did for earlier
    /// terms, or under earlier rids, has ended with its last write.
    Work {
        jobs: u32,
    },
    // ---- from either side
    Keepalive,
    // ---- from the engine
    /// Weaken the grant to `mode` once everything under it is durable; then answer.
    Invalidate {
        name: LockName,
        mode: LockMode,
    },
    /// To a worker: a compaction to run. Answered, well or badly, when the last of its writes is on the medium.
    Compact {
        job: Bytes,
    },
    /// A waiting [`Request::FileLock`] has come to its end. Answered by [`Response::Noted`].
    FileLockDone {
        ticket: u64,
        outcome: FileLockOutcome,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// `opens`: inodes of the groups granted for WRITE that other clients have open; [`Ino::NONE`] among them says that
    /// there are too many to tell.
    Granted {
        grants: Vec<LockGrant>,
        opens: Vec<Ino>,
    },
    FileLocked {
        outcome: FileLockOutcome,
    },
    /// What was found in the way; `own` when it belongs to this client.
    FileLockFound {
        found: Option<FileLock>,
        own: bool,
    },
    /// In the order of the question.
    Openers {
        open: Vec<bool>,
    },
    Noted,
    Unlocked,
    Reasserted,
    Items {
        values: Vec<Option<Bytes>>,
    },
    /// `next` is where a following scan begins when the limits cut this one.
    Scanned {
        items: Vec<(Key, Bytes)>,
        next: Option<Key>,
    },
    Written {
        ranges: Vec<BlockRange>,
    },
    Data,
    /// Applied in `epoch`; durable when the epoch is.
    Committed {
        number: BatchNo,
        epoch: Epoch,
    },
    Synced {
        durable: Epoch,
    },
    Group {
        group: u64,
    },
    /// `through` is the durable epoch of this walk: everything at or below it was seen.
    Walked {
        entries: Vec<(u64, Ino)>,
        next: Option<(u64, Ino)>,
        through: Epoch,
    },
    StatFs(StatFs),
    Status {
        json: String,
    },
    Farewelled,
    Alive,
    Invalidated,
    CompactedAll,
    /// The engine counts on the worker now.
    Working,
    Compacted {
        outcome: Bytes,
    },
    Error(WireError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    pub total_blocks: u64,
    pub free_blocks: u64,
    /// Without the reserve that keeps deletion working.
    pub available_blocks: u64,
    /// Inodes in use; 0 while the engine does not count them.
    pub inodes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireError {
    pub code: ErrorCode,
    /// For people: what happened and what to do.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    NoSpace = 1,
    /// The device or a checksum failed.
    Io = 2,
    Corrupt = 3,
    /// The batch breaks a rule: no lock, a foreign extent, a malformed item. It was not applied.
    NotPermitted = 4,
    Malformed = 5,
    /// A limit was passed; slower, please.
    Busy = 6,
    Stopping = 7,
    NotFound = 8,
    Unsupported = 9,
    Interrupted = 10,
    /// Not below the directory to which this client's certificate confines it, or not there at all.
    Outside = 11,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for WireError {}
