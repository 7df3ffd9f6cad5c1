//! Empties sparse chunks of file data, so that fragmentation never is a lack of space.
//!
//! Chunks belong to segments, to logs, or to a bucket's file data. After a long life free blocks are scattered over many
//! chunks of data, and no whole one is left for segments. When free chunks fall below [`SHORT`] times the reserve, the
//! coordinator has the emptiest chunks drained (they give no blocks any more), and what they hold moved to other blocks:
//!
//! ```text
//!  coordinator: short of chunks? -> each reactor chooses chunks -> one pass over all extents, step by step -> call off
//!  step, on the shard's reactor: a page of items -> extents in those chunks, by inode group
//!  move: hold the group (nobody has it in a cache) -> read, verify -> write elsewhere -> commit -> durable -> let go
//! ```
//! - Who has a block is written nowhere but in its extent, and extents of any inode may be in any chunk: so one pass over
//!   the extents of all shards serves all chunks that are being emptied.
//! - A move changes an extent's place and nothing else: the same checksums, no inode item, no sequence number, so nobody
//!   who looks for changes sees one. It is a commit like others, whole or not there after a crash, and what it frees is
//!   free when it is durable and no read runs.
//! - It takes no chunk: data go to free blocks of chunks that stay. When a client finds no other block, draining ends and
//!   the client gets those.
//! - Clients leave it a part of the log and of the memtables ([`crate::admission`]), and are slowed while the reserve is
//!   used: it can always move.
//! - What does not verify stays where it is and is reported as the scrub does.

mod central;
mod relocate;
mod step;

use std::cell::{Cell, RefCell};

use vellum_rt::Instant;
use vellum_rt::local::Notify;

pub(crate) use step::{Cursor, Step};

/// Bytes of file data per second that are moved at most when nobody says otherwise.
pub const DEFAULT_EVACUATION_RATE: u64 = 32 << 20;

/// Free chunks are short below this many times the reserve when nobody says otherwise.
pub(crate) const SHORT: usize = 2;

/// What has been done since the node's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvacuationStatus {
    /// Data are being moved.
    pub running: bool,
    /// Passes over the extents.
    pub passes: u64,
    pub moved_bytes: u64,
    pub moved_extents: u64,
    /// Blocks that did not verify; the scrub's findings name them.
    pub problems: u64,
    /// Why the last pass ended early.
    pub last_error: Option<String>,
}

/// The coordinator's side.
pub(crate) struct Evacuation {
    /// Woken when somebody found no free chunk, and when the store stops.
    pub wake: Notify,
    /// The task that goes on while chunks are short.
    pub awake: Cell<bool>,
    looked: Cell<Option<Instant>>,
    /// See [`crate::OpenOptions::evacuation_short_of`].
    short_of: usize,
    status: RefCell<EvacuationStatus>,
}

impl Evacuation {
    pub fn new(short_of: usize) -> Evacuation {
        let (wake, awake) = (Notify::new(), Cell::new(false));
        Evacuation { wake, awake, looked: Cell::new(None), short_of, status: RefCell::default() }
    }

    pub fn status(&self) -> EvacuationStatus {
        self.status.borrow().clone()
    }

    fn is_moving(&self) -> bool {
        self.status.borrow().running
    }
}
