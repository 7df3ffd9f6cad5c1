//! Everything between the device and the items: superblock, manifest, logs, epochs, space, recovery, shards.
//!
//! [`mkfs`] makes a filesystem, [`open`] recovers one and gives each reactor its seed, [`Store::start`] runs on each
//! reactor. The stores of one node find each other over a mesh of bounded channels; any of them may be asked for
//! anything.
//!
//! ```text
//!  commit -> admission (home: order, duplicates; owners: rights, structure, old values, room) -> memtables and parts
//!  close -> parts and seal written in parallel -> one flush -> durable -> memtables to segments -> manifest -> log floor
//! ```

mod admission;
mod beyond;
mod bitmaps;
mod central;
mod change_slots;
mod check;
mod clients;
mod compactions;
mod data;
pub mod dump;
mod env;
mod epoch;
mod error;
mod evacuate;
mod fact;
mod fold_hash;
mod gate;
mod grow;
mod holders;
mod layout;
pub mod lsm;
mod maintain;
mod manifest;
mod memory;
mod mesh;
mod mkfs;
mod moves;
mod neighbours;
mod open;
mod options;
mod parts;
mod polled;
mod query;
mod reads;
mod recovery;
mod repair;
mod scrub;
mod serve;
mod space;
mod split;
mod status;
mod store;
mod superblock;

pub use admission::Judge;
pub use change_slots::{SlotChange, change_slots};
pub use check::{CheckOptions, CheckReport, Problem, check, check_alone};
pub use clients::RidState;
pub use compactions::{Helped, Helpers, Prefer};
pub use data::MAX_WRITE_BYTES;
pub use error::{CommitError, StoreError};
pub use evacuate::{DEFAULT_EVACUATION_RATE, EvacuationStatus};
pub use fact::Fact;
pub use gate::{Deposed, Gate, GateFuture};
pub use grow::Growth;
pub use layout::MIN_BYTES;
pub use lsm::{LocalFuture, ScanPage};
pub use memory::MemoryStatus;
pub use mkfs::mkfs;
pub use moves::{HandOver, MoveStatus};
pub use open::{Opened, ReactorSeed, RecoveryReport, newest_term, open};
pub use options::{MkfsOptions, OpenOptions, Rebalance};
pub use polled::PolledQueue;
pub use query::WalkPage;
pub use reads::HeldBlocks;
pub use repair::{RepairReport, repair};
pub use scrub::{DEFAULT_SCRUB_RATE, Finding, LastScrub, MAX_FINDINGS, ScrubStatus};
pub use status::{CompactionStatus, ReactorStatus, ShardStatus, StatFs, StoreStatus};
pub use store::{Authority, Everyone, Store};
pub use superblock::fsid;
pub use superblock::look as read_superblock;
