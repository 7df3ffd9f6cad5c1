//! The compactions of one reactor: which run, where, and what becomes of them.
//!
//! A job runs here while the reactor has little else to do, else on a [helper](Helpers), else here all the same. At most
//! [`HERE`] run here at a time; the shard that is furthest behind comes first. A shard whose compaction failed rests, longer
//! each time: a bad block must not keep a core busy (and a log full) for ever.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{ReactorId, ShardId, probe};
use vellum_rt::{Class, Instant, now, sleep, spawn};

use crate::error::StoreError;
use crate::fact::Fact;
use crate::lsm::{Cancel, CompactionJob, LocalFuture, LsmError, Outcome, Pick, Plan, Shard};
use crate::mesh::Request;
use crate::status::CompactionStatus;
use crate::store::Store;

/// Compactions that run on one reactor at a time.
pub(crate) const HERE: usize = 2;
/// Inputs shorter than this are not worth handing over.
const WORTH_BYTES: u64 = 4 << 20;
/// A reactor has little else to do when requests and commits took less than this share of a moment.
const IDLE_SHARE: u32 = 8;
const MOMENT: Duration = Duration::from_millis(20);
/// A shard rests so long after a failure, doubled with each.
const REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(120);

/// Where a compaction may run besides here.
pub trait Helpers {
    /// Jobs that they could take in all, those that they have included.
    fn slots(&self) -> usize;

    /// Takes the job, or (`None`) none of them has room.
    fn take(&self, job: Rc<CompactionJob>) -> Option<LocalFuture<'static, Helped>>;

    /// The outcome that this one sent did not fit: it gets no more jobs. See [`Helped::Lost`] for what ends when.
    fn distrust(&self, helper: u64, why: &str) -> LocalFuture<'static, ()>;
}

/// How a job ended that was handed over.
pub enum Helped {
    Done {
        helper: u64,
        outcome: Outcome,
    },
    /// Nobody had room after all.
    Declined,
    /// It ended without one, and writes nothing any more.
    Failed {
        reason: String,
    },
    /// It may still be writing; `quiet` ends when it is certain that it does not.
    Lost {
        reason: String,
        quiet: LocalFuture<'static, ()>,
    },
}

/// Who is asked first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Prefer {
    /// This reactor while it has little else to do, and for short jobs.
    #[default]
    Here,
    /// The helpers, for every job. For tests and comparisons.
    Helpers,
}

struct Rest {
    until: Instant,
    failures: u32,
}

#[derive(Default)]
pub(crate) struct Compactions {
    helpers: RefCell<Option<Rc<dyn Helpers>>>,
    prefer: Cell<Prefer>,
    held: Cell<bool>,
    here: Cell<usize>,
    helped: Cell<usize>,
    planning: Cell<usize>,
    resting: RefCell<HashMap<ShardId, Rest>>,
    /// Of those that run here.
    cancel: Cancel,
    done: Cell<u64>,
    done_elsewhere: Cell<u64>,
    failed: Cell<u64>,
    lost: Cell<u64>,
    withheld_blocks: Cell<u64>,
    last_error: RefCell<Option<String>>,
}

fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

/// One more while it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn one(counter: &'a Cell<usize>) -> Counted<'a> {
        counter.set(counter.get() + 1);
        Counted(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Compactions {
    fn running(&self) -> usize {
        self.here.get() + self.helped.get() + self.planning.get()
    }

    fn slots(&self) -> usize {
        HERE + self.helpers.borrow().as_ref().map_or(0, |helpers| helpers.slots())
    }

    fn is_resting(&self, shard: ShardId) -> bool {
        self.resting.borrow().get(&shard).is_some_and(|rest| now() < rest.until)
    }

    pub fn status(&self) -> CompactionStatus {
        CompactionStatus {
            running: self.here.get(),
            running_bound: HERE,
            handed_over: self.helped.get(),
            done: self.done.get(),
            done_elsewhere: self.done_elsewhere.get(),
            failed: self.failed.get(),
            lost: self.lost.get(),
            withheld_blocks: self.withheld_blocks.get(),
            resting_shards: self.resting.borrow().values().filter(|rest| now() < rest.until).count(),
            last_error: self.last_error.borrow().clone(),
        }
    }
}

/// What a job came to.
enum End {
    Installed,
    /// Nothing has changed; somebody will pick it again.
    Nothing,
}

impl Store {
    /// Compactions of this reactor may run there from now on.
    pub fn set_helpers(&self, helpers: Rc<dyn Helpers>, prefer: Prefer) {
        *self.compactions.helpers.borrow_mut() = Some(helpers);
        self.compactions.prefer.set(prefer);
        self.maintain.notify_one();
    }

    /// While `held` no compaction begins on this reactor but by [`Self::compact_all`]. For tests and benchmarks.
    pub fn hold_compactions(&self, held: bool) {
        self.compactions.held.set(held);
        self.maintain.notify_one();
    }

    /// A helper has room (again).
    pub fn helpers_have_room(&self) {
        self.maintain.notify_one();
    }

    /// How far the compactions of this reactor are behind.
    pub(crate) fn debt(&self) -> f32 {
        self.shards().iter().map(|shard| shard.debt()).fold(0.0, f32::max)
    }

    pub(crate) fn start_compactions(self: &Rc<Self>) {
        if self.stopping.get() || self.failed.borrow().is_some() || self.compactions.held.get() {
            return;
        }
        let mut shards: Vec<(f32, Rc<Shard>)> = self.shards().iter().map(|s| (s.urgency(), s.clone())).collect();
        shards.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, shard) in shards {
            while self.compactions.running() < self.compactions.slots() && !self.compactions.is_resting(shard.id()) {
                let Some(pick) = shard.pick_compaction() else { break };
                let (store, shard) = (self.clone(), shard.clone());
                let planning = self.compactions.planning.get() + 1;
                self.compactions.planning.set(planning); // until the task has begun
                let task = async move {
                    store.compactions.planning.set(store.compactions.planning.get() - 1);
                    let result = store.compact_one(&shard, pick).await;
                    store.compaction_ended(&shard, result);
                };
                spawn(Class::Compaction, "compaction", task).detach();
            }
        }
    }

    fn compaction_ended(self: &Rc<Self>, shard: &Shard, result: Result<End, StoreError>) {
        let all = &self.compactions;
        let id = shard.id();
        match result {
            Ok(_) => {
                all.resting.borrow_mut().remove(&id);
                shard.note_compaction(true);
            }
            Err(StoreError::Lsm(LsmError::Cancelled)) => {}
            Err(e) => {
                add(&all.failed, 1);
                shard.note_compaction(matches!(e, StoreError::NoSpace)); // more would not help there
                *all.last_error.borrow_mut() = Some(format!("shard {id}: {e}"));
                let pause = {
                    let mut resting = all.resting.borrow_mut();
                    let rest = resting.entry(id).or_insert(Rest { until: now(), failures: 0 });
                    let pause = (REST * 2u32.saturating_pow(rest.failures.min(16))).min(LONGEST_REST);
                    (rest.until, rest.failures) = (now() + pause, rest.failures + 1);
                    pause
                };
                match e {
                    StoreError::NoSpace => tracing::warn!(shard = id.0, ?pause, "no space for a compaction"),
                    e => tracing::error!(shard = id.0, error = %e, ?pause, "a compaction failed; its shard rests"),
                }
                let store = self.clone();
                let wake = async move {
                    sleep(pause).await;
                    store.maintain.notify_one();
                };
                spawn(Class::Compaction, "rest", wake).detach();
            }
        }
        self.maintain.notify_one();
        self.room.notify_all();
    }

    async fn compact_one(self: &Rc<Self>, shard: &Rc<Shard>, pick: Pick) -> Result<End, StoreError> {
        let (term, id, inputs) = (self.term, shard.id(), pick.input_ids());
        probe::tell(|| Fact::Compacts { term, shard: id, inputs: inputs.clone() });
        let ended = self.compact_picked(shard, pick).await;
        probe::tell(|| Fact::Compacted { term, shard: id, inputs });
        ended
    }

    async fn compact_picked(self: &Rc<Self>, shard: &Rc<Shard>, pick: Pick) -> Result<End, StoreError> {
        let pick = match pick.into_move() {
            Ok(edit) => return self.commit_edit(shard, edit).await.map(|()| End::Installed),
            Err(pick) => pick,
        };
        let planning = Counted::one(&self.compactions.planning);
        let plan = shard.plan(pick).await?;
        let always = self.compactions.prefer.get() == Prefer::Helpers;
        let worth = (always || plan.job().input_bytes() >= WORTH_BYTES) && self.compactions.slots() > HERE;
        let here_first = !worth || (!always && self.is_idle().await);
        drop(planning);
        if here_first && self.compactions.here.get() < HERE {
            return self.compact_here(shard, plan).await;
        }
        let helpers = self.compactions.helpers.borrow().clone().filter(|_| worth);
        if let Some(helpers) = helpers
            && let Some(help) = helpers.take(plan.job().clone())
        {
            return self.compact_elsewhere(shard, plan, &helpers, help).await;
        }
        if self.compactions.here.get() < HERE {
            return self.compact_here(shard, plan).await;
        }
        Ok(End::Nothing)
    }

    async fn compact_here(self: &Rc<Self>, shard: &Rc<Shard>, plan: Plan) -> Result<End, StoreError> {
        let running = Counted::one(&self.compactions.here);
        let outcome = plan.execute(&self.compactions.cancel).await?;
        drop(running);
        let verified = plan.verify(outcome).await?;
        self.commit_edit(shard, plan.into_edit(verified)).await?;
        add(&self.compactions.done, 1);
        Ok(End::Installed)
    }

    async fn compact_elsewhere(
        self: &Rc<Self>,
        shard: &Rc<Shard>,
        plan: Plan,
        helpers: &Rc<dyn Helpers>,
        help: LocalFuture<'static, Helped>,
    ) -> Result<End, StoreError> {
        let handed_over = Counted::one(&self.compactions.helped);
        let helped = help.await;
        drop(handed_over);
        match helped {
            Helped::Done { helper, outcome } => match plan.verify(outcome).await {
                Ok(verified) => {
                    // It has flushed what it wrote; we do not depend on that.
                    if self.queue.geometry().volatile_write_cache {
                        self.queue.flush().await?;
                    }
                    self.commit_edit(shard, plan.into_edit(verified)).await?;
                    add(&self.compactions.done_elsewhere, 1);
                    Ok(End::Installed)
                }
                // Our own read failed; who sent it has told the truth for all we know.
                Err(e @ LsmError::Device(_)) => Err(e.into()),
                Err(e) => {
                    let quiet = helpers.distrust(helper, &e.to_string());
                    self.withhold(plan, quiet);
                    Err(e.into())
                }
            },
            Helped::Declined if self.compactions.here.get() < HERE => self.compact_here(shard, plan).await,
            Helped::Declined => Ok(End::Nothing),
            Helped::Failed { reason } => Err(LsmError::Space(format!("a helper: {reason}")).into()),
            Helped::Lost { reason, quiet } => {
                tracing::warn!(shard = shard.id().0, %reason, "a compaction that was handed over is lost; it is done anew");
                add(&self.compactions.lost, 1);
                self.withhold(plan, quiet);
                Ok(End::Nothing)
            }
        }
    }

    /// The job's space stays out of use until `quiet`.
    fn withhold(self: &Rc<Self>, plan: Plan, quiet: LocalFuture<'static, ()>) {
        let withheld = plan.withhold();
        let blocks = withheld.blocks();
        add(&self.compactions.withheld_blocks, blocks);
        let store = self.clone();
        let task = async move {
            quiet.await;
            withheld.release();
            let left = store.compactions.withheld_blocks.get() - blocks;
            store.compactions.withheld_blocks.set(left);
            store.maintain.notify_one();
        };
        spawn(Class::Compaction, "withheld space", task).detach();
    }

    /// Watches the reactor for a moment.
    async fn is_idle(&self) -> bool {
        let busy = || {
            let classes = vellum_rt::stats().classes;
            classes[Class::Request as usize].time + classes[Class::Commit as usize].time
        };
        let (began, before) = (now(), busy());
        sleep(MOMENT).await;
        (busy().saturating_sub(before)) * IDLE_SHARE < began.elapsed()
    }

    /// Compactions end soon, and no other begins.
    pub(crate) async fn end_compactions(&self) -> Result<(), StoreError> {
        self.compactions.cancel.cancel();
        while self.compactions.running() > 0 {
            self.check_failed()?;
            sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// Merges everything that is durable, in all shards of the node, each into one level. For operators and benchmarks: the
    /// engine keeps itself in order without.
    pub async fn compact_all(self: &Rc<Self>) -> Result<(), StoreError> {
        let reactors: Vec<ReactorId> = self.mesh.all().collect();
        for reactor in reactors {
            self.ask(reactor, Request::CompactAll).await?;
        }
        Ok(())
    }

    pub(crate) async fn compact_all_here(self: &Rc<Self>) -> Result<(), StoreError> {
        let through = self.durable.get();
        self.flush_through.set(self.flush_through.get().max(through));
        self.maintain.notify_one();
        let _whole = self.splits.forbid();
        self.end_split().await?;
        for shard in &*self.shards() {
            while shard.unflushed_from().is_some_and(|from| from <= through) {
                self.check_writable()?;
                sleep(Duration::from_millis(1)).await;
            }
            while !shard.is_merged() {
                self.check_writable()?;
                match shard.pick_everything() {
                    Some(pick) => match self.compact_one(shard, pick).await? {
                        End::Installed => {}
                        End::Nothing => sleep(Duration::from_millis(1)).await,
                    },
                    None => sleep(Duration::from_millis(5)).await, // a part of it is being merged
                }
            }
        }
        Ok(())
    }

    /// Nobody writes outputs of an earlier leader's compactions any more. See [`crate::OpenOptions::withhold`].
    pub async fn release_withheld(self: &Rc<Self>) -> Result<(), StoreError> {
        self.ask(crate::env::COORDINATOR, Request::ReleaseWithheld).await.map(|_| ())
    }
}
