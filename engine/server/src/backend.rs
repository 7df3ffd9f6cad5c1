//! What the server needs of a store, on one reactor.

use std::any::Any;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{
    Batch, BatchNo, BlockRange, Bucket, DmaSlice, Epoch, Fsid, Ino, Key, KeyRange, ReactorId, Rid, Term, View,
};
use vellum_store::{Helpers, Prefer};
use vellum_wire::{AdminRequest, ErrorCode, StatFs, WireError};

pub type BackendFuture<T> = Pin<Box<dyn Future<Output = Result<T, WireError>>>>;

/// Items, and where the next page begins.
pub type Scanned = (Vec<(Key, Bytes)>, Option<Key>);

/// Entries, where the next page begins, and the durable epoch that this one is as of.
pub type Walked = (Vec<(u64, Ino)>, Option<(u64, Ino)>, Epoch);

/// Has the last word on a batch, when everything that it needs is reserved: see [`vellum_store::Judge`].
pub type BatchJudge = Rc<dyn Fn() -> BackendFuture<()>>;

/// Errors are those that the client is told.
pub trait Backend {
    fn fsid(&self) -> Fsid;
    fn term(&self) -> Term;
    fn format(&self) -> u32;
    fn durable_epoch(&self) -> Epoch;
    /// `f` is called on this reactor whenever more is durable.
    fn on_durable(&self, f: Box<dyn Fn(Epoch)>);
    fn reactor_of(&self, bucket: Bucket) -> ReactorId;
    /// The reactor where a client's batches are admitted best: its sessions live there.
    fn home_of(&self, rid: Rid) -> ReactorId;

    fn get(&self, keys: Vec<Key>, view: View) -> BackendFuture<Vec<Option<Bytes>>>;
    fn scan(&self, range: KeyRange, max_items: usize, max_bytes: usize, view: View) -> BackendFuture<Scanned>;
    fn walk(&self, index: u8, from: (u64, Ino), to: u64, max: usize) -> BackendFuture<Walked>;
    /// Called in the order of the batch numbers; may be called again before the one before is done. The futures are
    /// polled for the first time in that order.
    /// A batch with a judge is of a client whose home is here.
    fn commit(&self, rid: Rid, batch: Batch, judge: Option<BatchJudge>) -> BackendFuture<Epoch>;
    /// Grows no later than a read shows another name of an inode that was there.
    fn names(&self) -> u64;
    fn wait_durable(&self, epoch: Epoch) -> BackendFuture<()>;
    fn write_data(&self, rid: Rid, data: DmaSlice) -> BackendFuture<Vec<BlockRange>>;
    fn read_data(&self, ranges: Vec<BlockRange>) -> BackendFuture<DmaSlice>;
    /// Until it is dropped no block that is freed is used again.
    fn hold_blocks(&self) -> Box<dyn Any>;
    /// With a root: a group of clients that are confined to it, which [`vellum_format::system::root_key`] says.
    fn alloc_group(&self, near: Option<Ino>, root: Option<Ino>) -> BackendFuture<u64>;
    fn statfs(&self) -> BackendFuture<StatFs>;
    /// JSON.
    fn status(&self) -> BackendFuture<serde_json::Value>;

    /// Makes the client's record, durably, if it is not there; its newest batch.
    fn open_rid(&self, rid: Rid, identity: Bytes) -> BackendFuture<BatchNo>;
    /// Frees what is pending for it; its record goes last. One that is gone is a success.
    fn close_rid(&self, rid: Rid) -> BackendFuture<()>;
    /// Every client record, with its identity.
    fn rids(&self) -> BackendFuture<Vec<(Rid, Bytes)>>;
    fn shutdown(&self) -> BackendFuture<()>;

    /// Where compactions may run besides here.
    fn set_helpers(&self, _: Rc<dyn Helpers>, _: Prefer) {}
    fn helpers_have_room(&self) {}
    /// Nobody of a term before writes outputs of compactions any more.
    fn release_withheld(&self) -> BackendFuture<()> {
        Box::pin(async { Ok(()) })
    }
    /// Other slots in the superblock; the quorum has judged them.
    fn change_slots(&self, _: Vec<String>) -> BackendFuture<()> {
        let message = "there is no quorum".into();
        Box::pin(async { Err(WireError { code: ErrorCode::Unsupported, message }) })
    }
    /// What an operator asks of the store itself: to grow, to scrub. JSON.
    fn admin(&self, _: AdminRequest) -> BackendFuture<serde_json::Value> {
        let message = "this engine has no store".into();
        Box::pin(async { Err(WireError { code: ErrorCode::Unsupported, message }) })
    }
    /// Merges everything.
    fn compact_all(&self) -> BackendFuture<()> {
        let message = "nothing to compact".into();
        Box::pin(async { Err(WireError { code: ErrorCode::Unsupported, message }) })
    }
}
