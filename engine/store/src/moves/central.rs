//! The coordinator's part: one move at a time, and when.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Bucket, ReactorId, ShardId};
use vellum_rt::local::{Mutex, Notify};
use vellum_rt::{Class, Instant, now, random_u64, spawn, timeout};

use super::policy::{MAX_SHARDS, Policy, Step};
use crate::central::Central;
use crate::env::COORDINATOR;
use crate::error::StoreError;
use crate::lsm::Load;
use crate::mesh::{Answer, Request};
use crate::options::Rebalance;
use crate::store::Store;

/// How often loads are looked at.
const WINDOW: Duration = Duration::from_secs(10);
/// After a move nothing moves by itself for so long.
const PAUSE: Duration = Duration::from_secs(30);
/// After a split by load none is made for so long: a half moves, and shows what that was worth.
const SPLIT_PAUSE: Duration = Duration::from_secs(60);
/// Of moves at random, one in so many is of a half that is split off first.
const HALVES: u64 = 4;

pub(crate) struct Balance {
    /// Held by a move, and by what must find every shard where it is: an evacuation's pass.
    pub turn: Mutex<()>,
    /// A shard is on its way, or being made ready for it.
    pub moving: Cell<bool>,
    /// The node stops.
    pub wake: Notify,
}

impl Default for Balance {
    fn default() -> Self {
        Balance { turn: Mutex::new(()), moving: Cell::new(false), wake: Notify::new() }
    }
}

impl Store {
    /// Gives the shard that holds `bucket` to a reactor. False when it is there already, while a scrub or an evacuation runs,
    /// while clients of the term before are waited for, and when the shard, or the reactor that has it, had no quiet moment.
    pub async fn move_shard(self: &Rc<Self>, bucket: Bucket, to: ReactorId) -> Result<bool, StoreError> {
        match self.ask(COORDINATOR, Request::MoveShard { bucket, to }).await? {
            Answer::Changed(done) => Ok(done),
            _ => Err(StoreError::Closed),
        }
    }

    pub(crate) async fn move_central(
        self: &Rc<Self>,
        central: &Rc<Central>,
        bucket: Bucket,
        to: ReactorId,
    ) -> Result<bool, StoreError> {
        self.check_writable()?;
        if usize::from(to.0) >= self.options.reactors {
            let message =
                format!("there is no reactor {}: they are numbered from 0 to {}", to.0, self.options.reactors - 1);
            return Err(StoreError::Options(message));
        }
        let Some(_turn) = central.balance.turn.try_lock() else { return Ok(false) };
        // A scrub goes from reactor to reactor: it could miss the shard.
        if central.scrub.borrow().running || self.reactor_of(bucket) == to {
            return Ok(false);
        }
        central.balance.moving.set(true);
        let answer = self.ask(self.reactor_of(bucket), Request::MoveAway { bucket, to }).await;
        central.balance.moving.set(false);
        match answer? {
            Answer::Changed(done) => Ok(done),
            _ => Err(StoreError::Closed),
        }
    }

    /// Its segments have one holder more: the reads that began before it goes.
    pub(crate) fn hold_segments(&self, central: &Central, shard: ShardId) {
        let state = central.manifest.state();
        let segments = state.shards.get(&shard).into_iter().flat_map(|shard| shard.segments());
        segments.for_each(|meta| central.holders.borrow_mut().hold(meta.id));
    }

    pub(crate) fn start_balance(self: &Rc<Self>, central: &Rc<Central>) {
        if self.options.reactors < 2 || self.options.rebalance == Rebalance::Never {
            return;
        }
        let (store, central) = (self.clone(), central.clone());
        let task = async move {
            let ended = match store.options.rebalance {
                Rebalance::AtRandom(every) => store.move_at_random(&central, every).await,
                _ => store.move_by_load(&central).await,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "shards move no more");
            }
        };
        spawn(Class::Scrub, "balance", task).detach();
    }

    async fn rest(&self, central: &Central, time: Duration) -> Result<(), StoreError> {
        let _ = timeout(time, central.balance.wake.notified()).await; // woken: it is the end
        self.check_writable()
    }

    async fn move_by_load(self: &Rc<Self>, central: &Rc<Central>) -> Result<(), StoreError> {
        let (mut policy, mut moved, mut split) = (Policy::default(), None, None);
        let rested = |last: Option<Instant>, pause| last.is_none_or(|at| at.elapsed() >= pause);
        loop {
            self.rest(central, WINDOW).await?;
            let mut loads = Vec::new();
            for reactor in self.mesh.all() {
                loads.push(self.loads_of(reactor).await?);
            }
            match policy.look(&loads).filter(|_| !central.evacuation.awake.get()) {
                // space goes first
                Some(Step::Move(bucket, to)) if rested(moved, PAUSE) => {
                    tracing::info!(?loads, bucket = bucket.0, to = to.0, "reactors are unevenly loaded: a shard moves");
                    self.move_central(central, bucket, to).await?;
                    policy.moved();
                    moved = Some(now());
                }
                Some(Step::Split(at)) if rested(split, SPLIT_PAUSE) => {
                    tracing::info!(?loads, at = at.0, "one shard has most of a reactor's load: it is split");
                    self.split_shard(at).await?;
                    split = Some(now());
                }
                _ => {}
            }
        }
    }

    async fn move_at_random(self: &Rc<Self>, central: &Rc<Central>, every: Duration) -> Result<(), StoreError> {
        loop {
            let spread = random_u64() % (every.as_micros() as u64).max(1);
            self.rest(central, every / 2 + Duration::from_micros(spread)).await?;
            let (bucket, to) = (Bucket(random_u64() as u8), random_u64() % self.options.reactors as u64);
            if random_u64().is_multiple_of(HALVES) && self.loads_of(self.reactor_of(bucket)).await?.len() < MAX_SHARDS {
                self.split_shard(bucket).await?;
            }
            self.move_central(central, bucket, ReactorId(to as u16)).await?;
        }
    }

    /// What this reactor's shards had to do since it was asked last.
    pub(crate) fn loads(&self) -> Vec<Load> {
        self.shards().iter().map(|shard| shard.take_load()).collect()
    }

    async fn loads_of(self: &Rc<Self>, reactor: ReactorId) -> Result<Vec<Load>, StoreError> {
        match self.ask(reactor, Request::Loads).await? {
            Answer::Loads(shards) => Ok(shards),
            _ => Err(StoreError::Closed),
        }
    }
}
