//! What a caller may choose.

use std::sync::Arc;
use std::time::Duration;

use vellum_base::Term;

use crate::evacuate::{DEFAULT_EVACUATION_RATE, SHORT};
use crate::gate::Gate;

#[derive(Clone, Debug)]
pub struct MkfsOptions {
    /// Bytes of the device to use; all of it when `None`.
    pub size: Option<u64>,
    /// Overwrite a filesystem that is there.
    pub force: bool,
    /// Shards to begin with: a power of two up to 256.
    pub shards: u32,
    /// Copies of every segment, 1 or 2. Superblock and manifest always have two.
    pub metadata_copies: u8,
    /// Addresses of quorum members.
    pub slots: Vec<String>,
}

impl Default for MkfsOptions {
    fn default() -> Self {
        MkfsOptions { size: None, force: false, shards: 8, metadata_copies: 1, slots: Vec::new() }
    }
}

/// When shards move from one reactor to another by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Rebalance {
    /// When one reactor has clearly more to do than another for half a minute.
    #[default]
    ByLoad,
    Never,
    /// About so often, any shard to any reactor. For tests.
    AtRandom(Duration),
}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Reactors that will run a [`crate::Store`], 1 to 64.
    pub reactors: usize,
    /// Block cache of all reactors together.
    pub cache_bytes: usize,
    /// Memtables of all reactors together.
    pub memtable_bytes: usize,
    /// Log of one reactor; scaled down on small devices.
    pub log_bytes: u64,
    /// A shard whose segments are longer is split, while it has more than one bucket.
    pub shard_bytes: u64,
    pub read_only: bool,
    /// The term that the quorum gave; one more than the last when `None`.
    pub term: Option<Term>,
    /// Operations in flight at the device per reactor.
    pub queue_depth: u32,
    /// Asked before an epoch is acknowledged; none where nobody else could lead.
    pub gate: Option<Arc<dyn Gate>>,
    /// Other processes may still be writing outputs of compactions that an earlier leader handed to them: what no segment
    /// holds of the segments' chunks stays out of use until [`crate::Store::release_withheld`].
    pub withhold: bool,
    /// Bytes of file data per second that are moved at most so that sparse chunks become free, when free chunks run short;
    /// 0 for no bound, `None` for never.
    pub evacuation_bytes_per_s: Option<u64>,
    /// Free chunks are short below so many times the reserve. Tests say more, so that data are moved all the time.
    pub evacuation_short_of: usize,
    /// A scrub begins by itself so long after the last one; `None` for never.
    pub scrub_every: Option<Duration>,
    pub rebalance: Rebalance,
    /// Bitmaps that cannot be read are found out from the extents. For a single reactor that serves nobody.
    pub rebuild_bitmaps: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            reactors: 1,
            cache_bytes: 256 << 20,
            memtable_bytes: 128 << 20,
            log_bytes: 64 << 20,
            shard_bytes: 1 << 30,
            read_only: false,
            term: None,
            queue_depth: 256,
            gate: None,
            withhold: false,
            evacuation_bytes_per_s: Some(DEFAULT_EVACUATION_RATE),
            evacuation_short_of: SHORT,
            scrub_every: None,
            rebalance: Rebalance::default(),
            rebuild_bitmaps: false,
        }
    }
}
