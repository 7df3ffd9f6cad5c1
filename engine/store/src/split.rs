//! Splitting shards while they are served.
//!
//! ```text
//!  choose -> compactions held -> those that run end -> manifest (durable) -> two shards in memory
//!               \-> patience is over, or there is no space: given up, nothing has changed
//! ```
//! All of it is in the maintenance task, so no flush and no other edit of the shard comes between; writes and reads go on
//! throughout. The halves share the memtable and flush it, each its own keys, into segments of their own; its records are in
//! the log as they are, and a replay gives each to the shard that owns its key by then. The halves stay on their reactor until
//! one [moves](crate::moves). A move waits in the same way, and for the memtable to be flushed: one shard of a reactor
//! changes at a time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Bucket, KeyRange, ReactorId, ShardId};
use vellum_format::ManifestEdit;
use vellum_format::superblock::SPLIT_SHARDS;
use vellum_rt::local::{OneshotSender, oneshot};
use vellum_rt::{Instant, now, sleep};

use crate::central::Central;
use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::lsm::Shard;
use crate::mesh::{Answer, Request};
use crate::store::{Store, lsm_config};

/// After a split, and after one that was given up, a reactor splits nothing of itself for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// Shards are looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// A compaction of a shard that wants to be split may run so long; then the split is given up for now.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the memtable of a shard that moves may hold when the pause begins: some milliseconds' work.
const MOVED_BYTES: usize = 512 << 10;
/// Flushes that are tried to come below that.
const FLUSHES: u32 = 3;

/// What a shard is to become.
#[derive(Clone, Copy)]
enum Change {
    /// Two, the upper one from this bucket on.
    Halves(Bucket),
    /// That reactor's.
    Moved(ReactorId),
}

struct Wanted {
    shard: ShardId,
    change: Change,
    since: Instant,
    /// Before a move.
    flushes: u32,
    /// Who asked is told how it ended.
    asked: Option<OneshotSender<bool>>,
}

#[derive(Default)]
pub(crate) struct Splits {
    wanted: RefCell<Option<Wanted>>,
    /// The manifest says it, or is about to, and memory does not yet.
    running: Cell<bool>,
    forbidden: Cell<usize>,
    not_before: Cell<Option<Instant>>,
    done: Cell<u64>,
}

/// No split begins while it lives.
pub(crate) struct Whole<'a>(&'a Splits);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.0.forbidden.set(self.0.forbidden.get() - 1);
    }
}

impl Splits {
    pub fn forbid(&self) -> Whole<'_> {
        self.forbidden.set(self.forbidden.get() + 1);
        Whole(self)
    }

    pub fn done(&self) -> u64 {
        self.done.get()
    }
}

impl Store {
    /// Splits the shard that holds `bucket` so that it becomes the first of the upper half. False when it is the first of its
    /// shard already, when the filesystem is of a version without splits, or when compactions of the shard or a full device
    /// stood in the way for a minute.
    pub async fn split_shard(self: &Rc<Self>, bucket: Bucket) -> Result<bool, StoreError> {
        loop {
            match self.ask(self.reactor_of(bucket), Request::SplitAt { bucket }).await {
                Ok(Answer::Changed(done)) => return Ok(done),
                Err(StoreError::Moved) => self.until_moved().await,
                Err(e) => return Err(e),
                Ok(_) => return Err(StoreError::Closed),
            }
        }
    }

    pub(crate) async fn split_here(self: &Rc<Self>, bucket: Bucket) -> Result<bool, StoreError> {
        self.check_writable()?;
        while self.splits.wanted.borrow().is_some() {
            sleep(Duration::from_millis(1)).await;
            self.check_writable()?;
        }
        let shard = self.shard(&KeyRange::of_buckets(bucket, bucket).first)?;
        if !self.may_split() || shard.range().first.bucket() == bucket {
            return Ok(false);
        }
        let (send, receive) = oneshot();
        self.want_change(&shard, Change::Halves(bucket), Some(send));
        self.maintain.notify_one();
        let done = receive.await;
        self.check_failed()?;
        Ok(done.unwrap_or(false))
    }

    /// Gives a shard of this reactor to another one; false when it is not here, or could not be had for a moment.
    pub(crate) async fn move_away(self: &Rc<Self>, bucket: Bucket, to: ReactorId) -> Result<bool, StoreError> {
        self.check_writable()?;
        let shard = self.shard(&KeyRange::of_buckets(bucket, bucket).first);
        let Ok(shard) = shard else { return Ok(false) };
        if to == self.me || self.stopping.get() || self.splits.wanted.borrow().is_some() {
            return Ok(false);
        }
        let (send, receive) = oneshot();
        self.want_change(&shard, Change::Moved(to), Some(send));
        self.maintain.notify_one();
        let done = receive.await;
        self.check_failed()?;
        Ok(done.unwrap_or(false))
    }

    /// Takes one step of a split; begins one when a shard is too long. True when there is more to do at once.
    pub(crate) async fn split_if_wanted(self: &Rc<Self>) -> Result<bool, StoreError> {
        if self.splits.wanted.borrow().is_none() {
            self.choose_split();
        }
        let wanted = self.splits.wanted.borrow().as_ref().map(|w| (w.shard, w.change, w.since.elapsed(), w.flushes));
        let Some((id, change, waited, flushes)) = wanted else { return Ok(false) };
        let shard = self.shards().iter().find(|shard| shard.id() == id).cloned();
        let Some(shard) = shard.filter(|_| self.splits.forbidden.get() == 0 && waited < PATIENCE) else {
            self.give_up_split();
            return Ok(true); // its compactions may begin
        };
        if !shard.is_idle() {
            return Ok(false); // whatever runs ends with a notification
        }
        if matches!(change, Change::Moved(_)) {
            if shard.frozen_tables() > 0 {
                return Ok(false); // a flush is next
            }
            if flushes < FLUSHES && shard.active_bytes() > MOVED_BYTES && shard.freeze(self.durable.get()) {
                self.splits.wanted.borrow_mut().iter_mut().for_each(|wanted| wanted.flushes += 1);
                return Ok(true);
            }
        }
        self.splits.running.set(true);
        let done = match change {
            Change::Halves(at) => self.split_now(&shard, at).await.map(|()| true),
            Change::Moved(to) => self.move_now(&shard, to).await,
        };
        self.splits.running.set(false);
        match (change, &done) {
            (Change::Halves(_), Ok(_)) => self.splits.done.set(self.splits.done.get() + 1),
            (Change::Moved(_), Ok(false) | Err(_)) => shard.hold_compactions(false),
            _ => {}
        }
        self.end_wanted(matches!(done, Ok(true)));
        done.map(|_| true)
    }

    /// The longest shard that is over the bound and can be split.
    fn choose_split(&self) {
        let early = self.splits.not_before.get().is_some_and(|at| now() < at);
        if early || self.splits.forbidden.get() > 0 || !self.may_split() {
            return;
        }
        self.splits.not_before.set(Some(now() + LOOK));
        let shards = self.shards();
        let long = shards.iter().filter_map(|shard| {
            let extent = shard.extent();
            // Clipped segments count for more than there is; soon they are rewritten.
            let too_long = extent.bytes > self.options.shard_bytes && extent.clipped == 0;
            let at = if too_long { shard.middle() } else { None }?;
            Some((extent.bytes, shard, at))
        });
        if let Some((_, shard, at)) = long.max_by_key(|(bytes, ..)| *bytes) {
            self.want_change(shard, Change::Halves(at), None);
        }
    }

    fn may_split(&self) -> bool {
        self.superblock.features.incompatible & SPLIT_SHARDS != 0 && !self.stopping.get()
    }

    fn want_change(&self, shard: &Shard, change: Change, asked: Option<OneshotSender<bool>>) {
        shard.hold_compactions(true);
        let wanted = Wanted { shard: shard.id(), change, since: now(), flushes: 0, asked };
        *self.splits.wanted.borrow_mut() = Some(wanted);
    }

    async fn split_now(self: &Rc<Self>, shard: &Rc<Shard>, at: Bucket) -> Result<(), StoreError> {
        let new = match self.ask(COORDINATOR, Request::Split { shard: shard.id(), at }).await? {
            Answer::NewShard(new) => new,
            _ => return Err(StoreError::Closed),
        };
        let before = self.shards();
        let config = lsm_config(&self.options, &self.superblock, before.len() + 1);
        let (memtable_bytes, began) = (shard.active_bytes(), now());
        let halves = shard.split(at, new, &config, self.epochs.borrow().closed());
        let stalled_us = began.elapsed().as_micros() as u64;
        let is_whole = |other: &Rc<Shard>| other.id() == shard.id();
        let all: Vec<Rc<Shard>> = before
            .iter()
            .flat_map(|other| if is_whole(other) { halves.to_vec() } else { vec![other.clone()] })
            .collect();
        all.iter().for_each(|shard| shard.bound_memtable(config.memtable_bytes));
        *self.shards.borrow_mut() = all.into();
        let (reactor, shard, at) = (self.me.0, shard.id().0, at.0);
        tracing::info!(reactor, shard, new = new.0, at, memtable_bytes, stalled_us, "a shard was split");
        Ok(())
    }

    /// Nothing has changed.
    pub(crate) fn give_up_split(&self) {
        if let Some(wanted) = &*self.splits.wanted.borrow()
            && let Some(shard) = self.shards().iter().find(|shard| shard.id() == wanted.shard)
        {
            shard.hold_compactions(false);
        }
        self.end_wanted(false);
    }

    fn end_wanted(&self, done: bool) {
        let wanted = self.splits.wanted.take();
        self.splits.not_before.set(Some(now() + PAUSE));
        if let Some(asked) = wanted.and_then(|wanted| wanted.asked) {
            let _ = asked.send(done); // it may have gone
        }
    }

    /// A shard is being divided or handed over at this moment.
    pub(crate) fn is_changing_shards(&self) -> bool {
        self.splits.running.get()
    }

    /// Waits for a split that the manifest knows of already, and gives up one that is only wanted.
    pub(crate) async fn end_split(&self) -> Result<(), StoreError> {
        while self.splits.running.get() {
            self.check_failed()?;
            sleep(Duration::from_micros(200)).await;
        }
        if self.splits.wanted.borrow().is_some() {
            self.give_up_split();
        }
        Ok(())
    }

    /// On the coordinator. The halves' segments are counted before anybody can let go of one.
    pub(crate) async fn split_central(
        self: &Rc<Self>,
        central: &Central,
        shard: ShardId,
        at: Bucket,
    ) -> Result<ShardId, StoreError> {
        let upper = KeyRange::of_buckets(at, at).first;
        let (new, crossing) = {
            let state = central.manifest.state();
            let whole = state.shards.get(&shard).filter(|whole| whole.range().contains(&upper));
            let Some(whole) = whole else { return Err(StoreError::Closed) };
            let crossing = whole.segments().filter(|meta| meta.first < upper && meta.last >= upper);
            (state.next_shard(), crossing.map(|meta| meta.id).collect::<Vec<_>>())
        };
        crossing.into_iter().for_each(|segment| central.holders.borrow_mut().split(segment));
        self.edit_manifest(vec![ManifestEdit::Split { shard, at: at.0, new }]).await?;
        Ok(new)
    }
}
