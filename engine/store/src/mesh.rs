//! Messages between the stores of one node's reactors, and calls with an answer.
//!
//! Posting never waits: what does not fit the target's mailbox waits here, in order. It is bounded by what is in flight:
//! each request of a client and each epoch causes a small number of messages. Messages from one reactor to another
//! arrive in the order in which they were posted; the receiving side never waits while it takes them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use vellum_base::{
    Batch, BatchNo, BlockRange, Bucket, ChunkIndex, DmaSlice, Epoch, Ino, ItemOp, Key, KeyRange, ReactorId, Rid,
    SegmentId, ShardId,
};
use vellum_format::{ChunkUse, IndexKind, ManifestEdit, PartRef, Record, Value};
use vellum_rt::channel::{Receiver, Sender};
use vellum_rt::local::{OneshotReceiver, OneshotSender, SendError, oneshot};
use vellum_rt::{Class, spawn};

use crate::error::{CommitError, StoreError};
use crate::evacuate;
use crate::grow::Growth;
use crate::lsm::Load;
use crate::moves::Cargo;
use crate::neighbours::Writes;
use crate::scrub::{Cursor, LastScrub, ScrubCommand, ScrubStatus, Step};
use crate::space::SpaceChange;
use crate::status::{CentralStatus, ReactorStatus};

/// Messages that fit a reactor's mailbox.
pub(crate) const MAILBOX: usize = 1024;

pub(crate) struct MeshSeed {
    pub me: ReactorId,
    pub senders: Vec<Sender<Message>>,
    pub inbox: Receiver<Message>,
    /// See [`Store::names`](crate::Store::names).
    pub names: Arc<AtomicU64>,
    /// Counts shards that left a reactor and arrived at another: odd while one is on its way. Who asks all reactors one after
    /// the other, and finds it even and the same in the end, has asked each shard.
    pub handovers: Arc<AtomicU64>,
    pub writes: Arc<Writes>,
}

pub(crate) enum Message {
    Call {
        from: ReactorId,
        id: u64,
        request: Box<Request>,
    },
    Answer {
        id: u64,
        answer: Result<Answer, StoreError>,
    },
    /// Reservation `token` becomes part of `epoch`.
    Apply {
        token: u64,
        epoch: Epoch,
    },
    Abort {
        token: u64,
    },
    Dirty {
        epoch: Epoch,
    },
    Want {
        epoch: Epoch,
    },
    Close {
        epoch: Epoch,
    },
    Declared {
        epoch: Epoch,
        messages: u32,
    },
    PartReady {
        from: ReactorId,
        epoch: Epoch,
        part: Option<PartRef>,
        /// Where the data is that was written for it.
        new_data: Vec<BlockRange>,
        oldest_reader: Epoch,
        /// How far the reactor's compactions are behind.
        debt: f32,
    },
    PartWritten {
        epoch: Epoch,
    },
    Durable {
        epoch: Epoch,
        oldest_reader: Epoch,
        /// The greatest of all reactors.
        debt: f32,
    },
    FlushThrough {
        epoch: Epoch,
    },
    ReleaseSpace {
        space: Vec<BlockRange>,
    },
    /// A shard's segment is so no longer.
    ReleaseSegment {
        segment: SegmentId,
        space: Vec<BlockRange>,
    },
    Failed {
        reason: Arc<str>,
    },
    Stop,
}

pub(crate) enum Request {
    Get {
        keys: Vec<Key>,
        at: Epoch,
    },
    Scan {
        range: KeyRange,
        at: Epoch,
        max_items: usize,
        max_bytes: usize,
    },
    Walk {
        index: IndexKind,
        from: (u64, Ino),
        to: u64,
        max: usize,
        at: Epoch,
        /// Those that the reactor has, as far as who asks knows.
        buckets: Vec<Bucket>,
    },
    Commit {
        rid: Rid,
        batch: Batch,
    },
    Reserve {
        rid: Rid,
        ops: Vec<ItemOp>,
    },
    ReserveSpace {
        rid: Rid,
        change: SpaceChange,
    },
    /// Room for the number of the client's last batch.
    ReserveLast {
        rid: Rid,
        number: BatchNo,
    },
    /// Records of the engine's own, all in one bucket.
    CommitRecords {
        records: Vec<Record>,
    },
    AllocGroup {
        bucket: Bucket,
        root: Option<Ino>,
    },
    OpenRid {
        rid: Rid,
        identity: Bytes,
    },
    CloseRid {
        rid: Rid,
    },
    ForgetPending {
        rid: Rid,
    },
    Discard {
        rid: Rid,
        ranges: Vec<BlockRange>,
    },
    WriteData {
        rid: Rid,
        data: DmaSlice,
    },
    Quiesce,
    /// The filesystem has so many blocks from now on.
    Extend {
        blocks: u64,
    },
    Status,
    /// Take no more batches: the node shuts down.
    Stop,
    /// Put everything durable into segments.
    Drain,
    // To the coordinator:
    Edit {
        edits: Vec<ManifestEdit>,
    },
    AllocChunks {
        used_for: ChunkUse,
        count: usize,
    },
    ReturnChunks {
        chunks: Vec<ChunkIndex>,
    },
    ChunkUse {
        chunk: ChunkIndex,
    },
    AllocSegment {
        least: u64,
        most: u64,
    },
    /// Take in what the device has become larger by.
    Grow,
    /// Nobody writes outputs of an earlier leader's compactions any more.
    ReleaseWithheld,
    /// The superblock's slots, whole.
    ChangeSlots {
        slots: Vec<Vec<u8>>,
    },
    Scrub(ScrubCommand),
    ScrubStep {
        cursor: Cursor,
    },
    NoteScrub {
        last: LastScrub,
    },
    /// Give back empty chunks, and begin to empty sparse ones.
    DrainSparse {
        most: usize,
        /// One block in so many may be in use.
        sparse: u64,
    },
    /// Move data out of these chunks.
    EvacuationStep {
        cursor: evacuate::Cursor,
        chunks: Arc<BTreeSet<ChunkIndex>>,
    },
    /// The evacuation is over; `tried` when it saw all extents.
    CallOffDraining {
        tried: bool,
    },
    /// Merge everything, in every shard of the reactor.
    CompactAll,
    /// Split the reactor's shard that holds `bucket` there.
    SplitAt {
        bucket: Bucket,
    },
    /// Give the shard that holds `bucket` to another reactor.
    MoveAway {
        bucket: Bucket,
        to: ReactorId,
    },
    TakeOver(Box<Cargo>),
    /// Who has these buckets from now on.
    Route {
        first: Bucket,
        last: Bucket,
        to: ReactorId,
    },
    /// What the shards had to do since the last such question.
    Loads,
    /// One move at a time.
    MoveShard {
        bucket: Bucket,
        to: ReactorId,
    },
    /// The shard moves: reads that began before hold its segments, too.
    HoldSegments {
        shard: ShardId,
    },
    /// Make it durable that a shard is two; the new one's id.
    Split {
        shard: ShardId,
        at: Bucket,
    },
    Central,
    Shutdown,
}

pub(crate) enum Answer {
    Done,
    Values(Vec<Option<Value>>),
    Page {
        items: Vec<(Key, Value)>,
        next: Option<Key>,
    },
    Entries {
        entries: Vec<(u64, Ino)>,
        more: bool,
    },
    Committed(Result<Epoch, CommitError>),
    Reserved(Result<Reserved, Refused>),
    /// The token of a reservation without items of clients.
    Token(Result<u64, Refused>),
    Epoch(Epoch),
    Group(u64),
    Rid(BatchNo),
    Ranges(Vec<BlockRange>),
    Chunks(Vec<ChunkIndex>),
    Use(ChunkUse),
    Grown(Growth),
    NewShard(ShardId),
    /// Whether a shard was split, or has moved.
    Changed(bool),
    Loads(Vec<Load>),
    Scrub(Box<ScrubStatus>),
    Scrubbed(Box<Step>),
    /// Chunks that are being emptied, or could not be; blocks in use in them.
    Draining {
        chunks: Vec<ChunkIndex>,
        used_blocks: u64,
    },
    Evacuated(Box<evacuate::Step>),
    Status(Box<ReactorStatus>),
    Central(Box<CentralStatus>),
}

/// A part of a batch is reserved on a shard's owner.
pub(crate) struct Reserved {
    pub token: u64,
    /// The extents with blocks that it overwrites or deletes.
    pub released: Vec<Released>,
    /// The batch must not take an older epoch.
    pub least_epoch: Epoch,
}

/// An extent as it was before a batch, with its blocks.
pub(crate) struct Released {
    pub blocks: BlockRange,
    /// The item.
    pub value: Value,
}

/// Why a reservation was not made.
pub(crate) enum Refused {
    /// No room at the moment: give everything back and come again.
    Busy,
    /// This reactor does not own the chunk, or the shard (any more).
    NotMine,
    No(CommitError),
}

pub(crate) struct Mesh {
    pub me: ReactorId,
    senders: Vec<Sender<Message>>,
    overflow: Vec<RefCell<VecDeque<Message>>>,
    pumping: Vec<Cell<bool>>,
    calls: RefCell<HashMap<u64, OneshotSender<Result<Answer, StoreError>>>>,
    next_call: Cell<u64>,
}

impl Mesh {
    pub fn new(me: ReactorId, senders: Vec<Sender<Message>>) -> Rc<Mesh> {
        let n = senders.len();
        Rc::new(Mesh {
            me,
            senders,
            overflow: (0..n).map(|_| RefCell::default()).collect(),
            pumping: (0..n).map(|_| Cell::new(false)).collect(),
            calls: RefCell::default(),
            next_call: Cell::new(1),
        })
    }

    pub fn all(&self) -> impl Iterator<Item = ReactorId> + use<> {
        (0..self.senders.len()).map(|i| ReactorId(i as u16))
    }

    pub fn others(&self) -> impl Iterator<Item = ReactorId> + use<> {
        let me = self.me;
        self.all().filter(move |r| *r != me)
    }

    /// Puts a message on its way. A reactor that is gone gets none.
    pub fn post(self: &Rc<Self>, to: ReactorId, message: Message) {
        let i = usize::from(to.0);
        let (Some(sender), Some(overflow)) = (self.senders.get(i), self.overflow.get(i)) else { return };
        if !self.pumping[i].get() {
            match sender.try_send(message) {
                Ok(()) | Err(SendError::Closed(_)) => return,
                Err(SendError::Full(message)) => overflow.borrow_mut().push_back(message),
            }
            self.pumping[i].set(true);
            spawn(Class::Commit, "mesh overflow", self.clone().pump(i)).detach();
        } else {
            overflow.borrow_mut().push_back(message);
        }
    }

    async fn pump(self: Rc<Self>, i: usize) {
        loop {
            let Some(message) = self.overflow[i].borrow_mut().pop_front() else { break };
            if self.senders[i].send(message).await.is_err() {
                self.overflow[i].borrow_mut().clear();
                break;
            }
        }
        self.pumping[i].set(false);
    }

    /// Sends a request; it is on its way when this returns, in order with other messages.
    pub fn call(self: &Rc<Self>, to: ReactorId, request: Request) -> OneshotReceiver<Result<Answer, StoreError>> {
        let id = self.next_call.get();
        self.next_call.set(id + 1);
        let (send, receive) = oneshot();
        self.calls.borrow_mut().insert(id, send);
        self.post(to, Message::Call { from: self.me, id, request: Box::new(request) });
        receive
    }

    pub fn answered(&self, id: u64, answer: Result<Answer, StoreError>) {
        let waiter = self.calls.borrow_mut().remove(&id);
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer); // the asker may be gone
        }
    }

    /// Nobody will answer any more.
    pub fn close(&self) {
        let calls = self.calls.take();
        for (_, waiter) in calls {
            let _ = waiter.send(Err(StoreError::Closed));
        }
    }
}
