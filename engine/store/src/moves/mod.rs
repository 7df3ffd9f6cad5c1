//! Moving shards between reactors while they are served.
//!
//! ```text
//!  prepared as for a split: compactions held, memtable small
//!  -> the old owner A admits nothing (callers come again) -> what it promised is applied -> that epoch is durable
//!  -> the rest of the memtable flushed -> lock tables held back on all reactors
//!  -> shard and chunks to B by one message -> lock tables to B -> routes swapped everywhere -> all goes on
//! ```
//! Nothing durable changes: which reactor has a shard is said nowhere, so a crash at any point recovers to shards that are
//! dealt out anew. Until the first message to B a move can be given up, and is when it takes longer than [`PATIENCE`].
//!
//! Invariants
//! - the shard leaves with nothing in memory and everything up to an epoch E in segments; A's log is not needed for it, and
//!   B's log gets only later epochs: a replay, which goes by epoch over all logs, finds two writes of one key in order;
//! - the table of locks is on the reactor that has the shard whenever a batch is checked there;
//! - a request that comes to a reactor which does not have the shard (any more, or yet) is refused with
//!   [`StoreError::Moved`], or [`Refused::NotMine`](crate::mesh::Refused), and asked again where the routes say then;
//! - the reads that began at A hold its segments: they count as one more holder, as after a split.

mod central;
mod policy;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vellum_base::{Bucket, Mutant, ReactorId, mutant};
use vellum_rt::{Instant, now, sleep, timeout};

pub(crate) use central::Balance;

use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::lsm::Shard;
use crate::mesh::Request;
use crate::open::ShardSeed;
use crate::space::SpaceCargo;
use crate::store::{Store, lsm_config};

/// Batches and new data wait no longer for a move that does not get on.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often it is looked whether something has ended that takes so long.
const LOOK: Duration = Duration::from_micros(100);

/// What one reactor knows of moves from it.
#[derive(Default)]
pub(crate) struct Moves {
    /// Nothing is admitted here.
    pub paused: Cell<bool>,
    /// What must end before a shard goes: reservations being made, chunks being asked for.
    busy: Cell<usize>,
    done: Cell<u64>,
    given_up: Cell<u64>,
    last: Cell<Duration>,
    longest: Cell<Duration>,
}

/// Figures of one reactor.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoveStatus {
    /// Shards that went to another reactor, and attempts that were given up while nothing was admitted.
    pub done: u64,
    pub given_up: u64,
    /// For how long the reactor admitted nothing because of the last one, and at most.
    pub last: Duration,
    pub longest: Duration,
}

/// A shard with what belongs to it.
pub(crate) struct Cargo {
    pub shard: ShardSeed,
    pub space: SpaceCargo,
}

/// No shard goes while it lives.
pub(crate) struct Busy<'a>(&'a Cell<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Moves {
    pub fn busy(&self) -> Busy<'_> {
        self.busy.set(self.busy.get() + 1);
        Busy(&self.busy)
    }

    pub fn status(&self) -> MoveStatus {
        MoveStatus {
            done: self.done.get(),
            given_up: self.given_up.get(),
            last: self.last.get(),
            longest: self.longest.get(),
        }
    }
}

/// The server's part of a move: the lock tables of some buckets, held back on every reactor until it goes on.
pub trait HandOver {
    /// Their tables are with the new owner, and whatever this reactor has said about them has arrived.
    fn tables(&self) -> crate::LocalFuture<'_, ()>;

    /// The routes say so everywhere: what was held back goes on its way.
    fn go_on(&self) -> crate::LocalFuture<'_, ()>;
}

/// Where there are no locks.
impl HandOver for () {
    fn tables(&self) -> crate::LocalFuture<'_, ()> {
        Box::pin(async {})
    }

    fn go_on(&self) -> crate::LocalFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Store {
    /// A request came to a reactor that did not have the shard: soon everybody knows who has it.
    pub(crate) async fn until_moved(&self) {
        sleep(LOOK).await;
    }

    /// New data wait here while a shard goes.
    pub(crate) async fn until_admitting(&self) {
        while self.moves.paused.get() && self.check_failed().is_ok() {
            sleep(LOOK).await;
        }
    }

    /// A step of the maintenance: the shard is quiet, and compactions of it are held. False when it was given up.
    pub(crate) async fn move_now(self: &Rc<Self>, shard: &Rc<Shard>, to: ReactorId) -> Result<bool, StoreError> {
        let began = now();
        self.moves.paused.set(true);
        let moved = self.move_paused(shard, to).await;
        self.moves.paused.set(false);
        self.room.notify_all();
        let stall = began.elapsed();
        self.moves.last.set(stall);
        self.moves.longest.set(self.moves.longest.get().max(stall));
        let counter = if matches!(moved, Ok(true)) { &self.moves.done } else { &self.moves.given_up };
        counter.set(counter.get() + 1);
        let stall_us = stall.as_micros() as u64;
        match &moved {
            Ok(true) => {
                tracing::info!(from = self.me.0, to = to.0, shard = shard.id().0, stall_us, "a shard has moved")
            }
            _ => tracing::info!(from = self.me.0, to = to.0, shard = shard.id().0, stall_us, "a move was given up"),
        }
        moved
    }

    async fn move_paused(self: &Rc<Self>, shard: &Rc<Shard>, to: ReactorId) -> Result<bool, StoreError> {
        if !self.settle(shard).await? || self.stopping.get() {
            return Ok(false);
        }
        let (first, last) = (shard.range().first.bucket(), shard.range().last.bucket());
        let Some(tables) = self.authority.hand_over((first, last), to).await else { return Ok(false) };
        let done = self.hand_over(shard, to, (first, last), &*tables).await;
        tables.go_on().await;
        done.map(|()| true)
    }

    /// Ends when nothing that was promised here is open and the shard has nothing in memory; false when that takes too long.
    async fn settle(self: &Rc<Self>, shard: &Rc<Shard>) -> Result<bool, StoreError> {
        let late = now() + PATIENCE;
        let promised =
            || self.reservations.len() > 0 || self.moves.busy.get() > 0 || self.space.borrow().is_being_written();
        if !self.wait_while(promised, late).await? {
            return Ok(false);
        }
        let through = self.epochs.borrow().newest();
        match timeout(PATIENCE, self.wait_durable(through)).await {
            Ok(durable) => durable?,
            Err(_) => return Ok(false),
        }
        if !mutant::active(Mutant::MoveUnflushed) {
            shard.freeze(through);
            while let Some(edit) = shard.flush(self.durable.get()).await? {
                self.commit_edit(shard, edit).await?;
            }
            if shard.unflushed_from().is_some() {
                return Ok(false);
            }
        }
        // What was freed waits for the reads that began before, and then comes back here.
        self.wait_while(|| self.cooling.get() || !self.space.borrow().is_still(), late).await
    }

    /// False when it is so still at that time.
    async fn wait_while(&self, open: impl Fn() -> bool, until: Instant) -> Result<bool, StoreError> {
        while open() {
            self.check_failed()?;
            if now() >= until {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
        Ok(true)
    }

    async fn hand_over(
        self: &Rc<Self>,
        shard: &Rc<Shard>,
        to: ReactorId,
        (first, last): (Bucket, Bucket),
        tables: &dyn HandOver,
    ) -> Result<(), StoreError> {
        self.ask(COORDINATOR, Request::HoldSegments { shard: shard.id() }).await?;
        self.handovers.fetch_add(1, Ordering::SeqCst); // odd: on its way
        let kept = self.shards().iter().filter(|other| other.id() != shard.id()).cloned().collect();
        self.put_shards(kept);
        self.groups.borrow_mut().retain(|bucket, _| !(first..=last).contains(bucket));
        let cargo = Cargo {
            shard: ShardSeed {
                id: shard.id(),
                range: shard.range(),
                levels: shard.levels(),
                flushed_through: shard.flushed_through(),
            },
            space: self.space.borrow_mut().take_buckets(first, last),
        };
        let taken = self.ask(to, Request::TakeOver(Box::new(cargo))).await;
        self.handovers.fetch_add(1, Ordering::SeqCst);
        taken?;
        tables.tables().await;
        for reactor in self.mesh.all() {
            self.ask(reactor, Request::Route { first, last, to }).await?;
        }
        shard.retire();
        Ok(())
    }

    /// The shard is this reactor's from now on.
    pub(crate) fn take_over(self: &Rc<Self>, cargo: Cargo) {
        let ShardSeed { id, range, levels, flushed_through } = cargo.shard;
        let before = self.shards();
        let config = lsm_config(&self.options, &self.superblock, before.len() + 1);
        let shard = Shard::new(id, range, levels, flushed_through, self.env.clone(), self.cache.clone(), config);
        let mut all = before.to_vec();
        all.push(shard);
        all.sort_by_key(|shard| shard.range().first);
        self.put_shards(all);
        let cooling = {
            let mut space = self.space.borrow_mut();
            space.put_buckets(cargo.space);
            space.durable(self.durable.get())
        };
        if cooling {
            self.cool();
        }
        self.maintain.notify_one();
    }

    /// In key order. They share the memory for memtables.
    pub(crate) fn put_shards(&self, all: Vec<Rc<Shard>>) {
        let config = lsm_config(&self.options, &self.superblock, all.len());
        all.iter().for_each(|shard| shard.bound_memtable(config.memtable_bytes));
        *self.shards.borrow_mut() = all.into();
    }

    pub(crate) fn set_route(&self, first: Bucket, last: Bucket, to: ReactorId) {
        self.routes[usize::from(first.0)..=usize::from(last.0)].iter().for_each(|route| route.set(to));
        self.owners.borrow_mut().clear();
    }
}
