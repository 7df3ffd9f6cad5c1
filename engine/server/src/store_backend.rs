//! The store as the server's backend, and its errors as clients hear them.

use std::any::Any;
use std::rc::Rc;

use bytes::Bytes;
use serde_json::Value;
use vellum_base::{
    Batch, BatchNo, BlockRange, Bucket, DmaSlice, Epoch, Fsid, Ino, Key, KeyRange, ReactorId, Rid, Term, View,
};
use vellum_format::IndexKind;
use vellum_store::{Authority, CommitError, HandOver, Helpers, Judge, LocalFuture, Prefer, Store, StoreError};
use vellum_wire::{AdminRequest, ErrorCode, StatFs, WireError};

use crate::authority::TableAuthority;
use crate::backend::{Backend, BackendFuture, BatchJudge, Scanned, Walked};
use crate::store_json;

impl Authority for TableAuthority {
    fn may_write(&self, rid: Rid, key: &Key) -> bool {
        TableAuthority::may_write(self, rid, key)
    }

    fn hold(&self, group: u64) -> LocalFuture<'static, Option<Box<dyn Any>>> {
        TableAuthority::hold(self, group)
    }

    fn hand_over(&self, buckets: (Bucket, Bucket), to: ReactorId) -> LocalFuture<'static, Option<Box<dyn HandOver>>> {
        TableAuthority::hand_over(self, buckets, to)
    }
}

pub struct StoreBackend {
    store: Rc<Store>,
    /// Others may lead: what cannot be answered any more is left to them.
    may_be_succeeded: bool,
}

impl StoreBackend {
    pub fn new(store: Rc<Store>, may_be_succeeded: bool) -> StoreBackend {
        StoreBackend { store, may_be_succeeded }
    }

    /// What the client is told. Of a member's engine that has lost its store, or the device, it hears nothing: the engine
    /// ends, and the client asks the next leader.
    fn tell<T: 'static>(&self, work: impl Future<Output = Result<T, StoreError>> + 'static) -> BackendFuture<T> {
        let may_be_succeeded = self.may_be_succeeded;
        Box::pin(async move {
            match work.await {
                Err(error) if may_be_succeeded && is_the_end(&error) => std::future::pending().await,
                done => done.map_err(wire),
            }
        })
    }
}

fn is_the_end(error: &StoreError) -> bool {
    match error {
        StoreError::Failed(_) | StoreError::Closed => true,
        StoreError::Device(error) => error.is_failed() || error.is_taken_away(),
        _ => false,
    }
}

fn code_of(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::NoSpace => ErrorCode::NoSpace,
        damage if damage.is_damage() => ErrorCode::Corrupt,
        StoreError::Options(_) => ErrorCode::Malformed,
        StoreError::Closed => ErrorCode::Stopping,
        StoreError::ReadOnly => ErrorCode::Unsupported,
        _ => ErrorCode::Io,
    }
}

fn wire(error: StoreError) -> WireError {
    WireError { code: code_of(&error), message: error.to_string() }
}

fn wire_commit(error: CommitError) -> WireError {
    let code = match &error {
        CommitError::Store(error) => code_of(error),
        CommitError::TooLarge { .. } | CommitError::Malformed { .. } => ErrorCode::Malformed,
        CommitError::OutOfOrder { .. }
        | CommitError::UnknownClient { .. }
        | CommitError::Denied { .. }
        | CommitError::Blocks { .. }
        | CommitError::NotShared { .. } => ErrorCode::NotPermitted,
        CommitError::Outside { .. } => ErrorCode::Outside,
    };
    WireError { code, message: error.to_string() }
}

fn store_judge(judge: BatchJudge) -> Judge {
    Rc::new(move || {
        let verdict = judge();
        Box::pin(async move {
            verdict.await.map_err(|error| match error.code {
                ErrorCode::Outside => CommitError::Outside { reason: error.message },
                _ => StoreError::Options(error.message).into(),
            })
        })
    })
}

impl Backend for StoreBackend {
    fn fsid(&self) -> Fsid {
        self.store.fsid()
    }

    fn term(&self) -> Term {
        self.store.term()
    }

    fn format(&self) -> u32 {
        self.store.superblock().format_version
    }

    fn durable_epoch(&self) -> Epoch {
        self.store.durable_epoch()
    }

    fn on_durable(&self, f: Box<dyn Fn(Epoch)>) {
        self.store.on_durable(f);
    }

    fn reactor_of(&self, bucket: Bucket) -> ReactorId {
        self.store.reactor_of(bucket)
    }

    fn home_of(&self, rid: Rid) -> ReactorId {
        self.store.home_of(rid)
    }

    fn get(&self, keys: Vec<Key>, view: View) -> BackendFuture<Vec<Option<Bytes>>> {
        let store = self.store.clone();
        self.tell(async move { store.get(&keys, view).await })
    }

    fn scan(&self, range: KeyRange, max_items: usize, max_bytes: usize, view: View) -> BackendFuture<Scanned> {
        let store = self.store.clone();
        self.tell(async move {
            let page = store.scan(range, max_items, max_bytes, view).await?;
            Ok((page.items, page.next))
        })
    }

    fn walk(&self, index: u8, from: (u64, Ino), to: u64, max: usize) -> BackendFuture<Walked> {
        let store = self.store.clone();
        self.tell(async move {
            let known = IndexKind::from_u8(index);
            let index = known.ok_or_else(|| StoreError::Options(format!("there is no index {index}")))?;
            let page = store.walk(index, from, to, max).await?;
            Ok((page.entries, page.next, page.through))
        })
    }

    fn commit(&self, rid: Rid, batch: Batch, judge: Option<BatchJudge>) -> BackendFuture<Epoch> {
        // Called here and not in the future: the store takes its place in the order at the call.
        let committed = self.store.commit_judged(rid, batch, judge.map(store_judge));
        let may_be_succeeded = self.may_be_succeeded;
        Box::pin(async move {
            match committed.await {
                Err(CommitError::Store(error)) if may_be_succeeded && is_the_end(&error) => {
                    std::future::pending().await
                }
                done => done.map_err(wire_commit),
            }
        })
    }

    fn wait_durable(&self, epoch: Epoch) -> BackendFuture<()> {
        let store = self.store.clone();
        self.tell(async move { store.wait_durable(epoch).await })
    }

    fn write_data(&self, rid: Rid, data: DmaSlice) -> BackendFuture<Vec<BlockRange>> {
        let store = self.store.clone();
        self.tell(async move { store.write_data(rid, data).await })
    }

    fn read_data(&self, ranges: Vec<BlockRange>) -> BackendFuture<DmaSlice> {
        let store = self.store.clone();
        self.tell(async move { store.read_data(&ranges).await })
    }

    fn names(&self) -> u64 {
        self.store.names()
    }

    fn hold_blocks(&self) -> Box<dyn Any> {
        Box::new(self.store.hold_blocks())
    }

    fn alloc_group(&self, near: Option<Ino>, root: Option<Ino>) -> BackendFuture<u64> {
        let store = self.store.clone();
        self.tell(async move { store.alloc_group(near, root).await })
    }

    fn statfs(&self) -> BackendFuture<StatFs> {
        let store = self.store.clone();
        self.tell(async move {
            let space = store.statfs().await?;
            Ok(StatFs {
                total_blocks: space.total_blocks,
                free_blocks: space.free_blocks,
                available_blocks: space.free_blocks,
                inodes: 0,
            })
        })
    }

    fn status(&self) -> BackendFuture<Value> {
        let store = self.store.clone();
        self.tell(async move { Ok(store_json::status(&store.status().await?)) })
    }

    fn open_rid(&self, rid: Rid, identity: Bytes) -> BackendFuture<BatchNo> {
        let store = self.store.clone();
        self.tell(async move { store.open_rid(rid, &identity).await.map(|state| state.last_batch) })
    }

    fn close_rid(&self, rid: Rid) -> BackendFuture<()> {
        let store = self.store.clone();
        self.tell(async move { store.close_rid(rid).await })
    }

    fn rids(&self) -> BackendFuture<Vec<(Rid, Bytes)>> {
        let store = self.store.clone();
        self.tell(async move { store.rids().await })
    }

    fn shutdown(&self) -> BackendFuture<()> {
        let store = self.store.clone();
        Box::pin(async move { store.shutdown().await.map_err(wire) })
    }

    fn set_helpers(&self, helpers: Rc<dyn Helpers>, prefer: Prefer) {
        self.store.set_helpers(helpers, prefer);
    }

    fn helpers_have_room(&self) {
        self.store.helpers_have_room();
    }

    fn release_withheld(&self) -> BackendFuture<()> {
        let store = self.store.clone();
        Box::pin(async move { store.release_withheld().await.map_err(wire) })
    }

    fn change_slots(&self, slots: Vec<String>) -> BackendFuture<()> {
        let store = self.store.clone();
        Box::pin(async move { store.change_slots(slots).await.map_err(wire) })
    }

    fn admin(&self, what: AdminRequest) -> BackendFuture<Value> {
        let store = self.store.clone();
        self.tell(async move {
            Ok(match what {
                AdminRequest::Grow => store_json::growth(&store.grow().await?),
                AdminRequest::Scrub { rate_bytes_per_s } => {
                    store_json::scrub(&store.start_scrub(rate_bytes_per_s).await?)
                }
                AdminRequest::StopScrub => store_json::scrub(&store.stop_scrub().await?),
                AdminRequest::MoveShard { bucket, reactor } => {
                    let moved = store.move_shard(Bucket(bucket), ReactorId(reactor)).await?;
                    serde_json::json!({ "moved": moved, "reactor": store.reactor_of(Bucket(bucket)).0 })
                }
                _ => store_json::scrub(&store.scrub_status().await?),
            })
        })
    }

    fn compact_all(&self) -> BackendFuture<()> {
        let store = self.store.clone();
        Box::pin(async move { store.compact_all().await.map_err(wire) })
    }
}
