//! Admission on the client's home reactor: strictly in order, each batch once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::batch::{MAX_BATCH_BYTES, MAX_BATCH_OPS};
use vellum_base::{Batch, BatchNo, Epoch, ItemOp, Key, Mutant, ReactorId, Rid, View, mutant, probe};
use vellum_format::system::{self, LastBatch};
use vellum_rt::local::{OneshotReceiver, OneshotSender, oneshot};
use vellum_rt::{Class, sleep, spawn};

use super::check::key_of;
use crate::error::{CommitError, StoreError};
use crate::fact::Fact;
use crate::mesh::{Answer, Message, Refused, Request};
use crate::space::SpaceChange;
use crate::store::Store;

/// Batches of one client that may wait for their turn.
const MAX_WAITING: usize = 1024;
/// How long a batch waits before it asks again for room.
const ROOM_POLL: Duration = Duration::from_millis(1);

/// What the home reactor knows of a client.
#[derive(Default)]
pub(crate) struct RidState {
    busy: Cell<bool>,
    queue: RefCell<VecDeque<OneshotSender<()>>>,
    last: Cell<Option<LastBatch>>,
}

/// Clients whose home is here.
#[derive(Default)]
pub(crate) struct Home {
    rids: RefCell<HashMap<Rid, Rc<RidState>>>,
    /// Batches between their turn and their end.
    pub running: Cell<usize>,
}

impl Home {
    pub fn len(&self) -> usize {
        self.rids.borrow().len()
    }

    pub fn forget(&self, rid: Rid) {
        self.rids.borrow_mut().remove(&rid);
    }

    fn state(&self, rid: Rid) -> Rc<RidState> {
        self.rids.borrow_mut().entry(rid).or_default().clone()
    }
}

/// A place in a client's queue, taken at once; held while its batch is admitted.
struct Turn {
    state: Rc<RidState>,
    wait: Option<OneshotReceiver<()>>,
}

impl RidState {
    fn enter(self: &Rc<Self>) -> Turn {
        let wait = if self.busy.replace(true) {
            let (send, receive) = oneshot();
            self.queue.borrow_mut().push_back(send);
            Some(receive)
        } else {
            None
        };
        Turn { state: self.clone(), wait }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Turns live in tasks that run to their end, so one that is dropped has had its turn.
        loop {
            let next = self.state.queue.borrow_mut().pop_front();
            match next {
                Some(next) => {
                    if next.send(()).is_ok() {
                        return;
                    }
                }
                None => {
                    self.state.busy.set(false);
                    return;
                }
            }
        }
    }
}

/// Something reserved on a reactor; given back unless applied.
pub(super) struct Held {
    pub store: Rc<Store>,
    pub reactor: ReactorId,
    pub token: u64,
    pub applied: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.applied {
            return;
        }
        if self.reactor == self.store.me {
            self.store.abort_reserved(self.token);
        } else {
            self.store.mesh.post(self.reactor, Message::Abort { token: self.token });
        }
    }
}

/// Has the last word on a batch: asked when everything is reserved, so that the inodes that the batch changes stay as they
/// are until it is applied. It may read, and is asked again when the batch had to wait for room.
pub type Judge = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), CommitError>>>>>;

/// Refusals that a later attempt may not meet.
pub(super) enum Attempt {
    Done(Epoch),
    Busy,
    /// A chunk or a shard changed hands; the chunk's owner was forgotten.
    Moved,
}

impl Store {
    /// Applies a client's batch, in the order of the calls. Answers the epoch that it is part of; the same for a batch that
    /// was applied before. Dropping the future does not take it back.
    pub fn commit(self: &Rc<Self>, rid: Rid, batch: Batch) -> impl Future<Output = Result<Epoch, CommitError>> + use<> {
        self.commit_judged(rid, batch, None)
    }

    /// As [`Store::commit`], with a judge: then the rid's home must be here.
    pub fn commit_judged(
        self: &Rc<Self>,
        rid: Rid,
        batch: Batch,
        judge: Option<Judge>,
    ) -> impl Future<Output = Result<Epoch, CommitError>> + use<> {
        let home = self.home_of(rid);
        let answer = if home == self.me {
            let task = spawn(Class::Request, "commit", self.commit_here(rid, batch, judge));
            Ok(task)
        } else {
            assert!(judge.is_none(), "a judge does not travel");
            Err(self.mesh.call(home, Request::Commit { rid, batch }))
        };
        async move {
            match answer {
                Ok(task) => task.await.unwrap_or(Err(StoreError::Closed.into())),
                Err(call) => match call.await {
                    Ok(Ok(Answer::Committed(result))) => result,
                    Ok(Err(e)) => Err(e.into()),
                    _ => Err(StoreError::Closed.into()),
                },
            }
        }
    }

    /// Takes the batch's turn at once; the future does the rest.
    pub(crate) fn commit_here(
        self: &Rc<Self>,
        rid: Rid,
        batch: Batch,
        judge: Option<Judge>,
    ) -> impl Future<Output = Result<Epoch, CommitError>> + use<> {
        let state = self.home.state(rid);
        let waiting = state.queue.borrow().len();
        let turn = (waiting < MAX_WAITING).then(|| state.enter());
        let store = self.clone();
        async move {
            let Some(mut turn) = turn else {
                return Err(CommitError::TooLarge { what: "waiting batches", found: waiting, most: MAX_WAITING });
            };
            if let Some(wait) = turn.wait.take() {
                let _ = wait.await; // the sender is dropped only after it has sent
            }
            store.home.running.set(store.home.running.get() + 1);
            let result = store.admit(rid, &turn.state, batch, judge).await;
            store.home.running.set(store.home.running.get() - 1);
            store.room.notify_all();
            result
        }
    }

    async fn admit(
        self: &Rc<Self>,
        rid: Rid,
        state: &RidState,
        batch: Batch,
        judge: Option<Judge>,
    ) -> Result<Epoch, CommitError> {
        self.check_writable()?;
        let last = self.last_batch(rid, state).await?;
        let expected = last.number.next();
        let again = mutant::active(Mutant::DropResendDedup) && batch.number < expected;
        if batch.number != BatchNo(0) && batch.number < expected && !again {
            return Ok(last.epoch);
        }
        if batch.number != expected && !again {
            return Err(CommitError::OutOfOrder { rid, expected, found: batch.number });
        }
        let bytes = check_size(&batch)?;
        self.pace.admit(bytes).await;
        let mut by_owner = self.by_owner(batch.ops);
        loop {
            self.check_failed()?;
            match self.attempt((rid, batch.number), state, &by_owner, judge.as_ref()).await? {
                Attempt::Done(epoch) => return Ok(epoch),
                Attempt::Moved => {
                    self.until_moved().await;
                    by_owner = self.by_owner(by_owner.into_values().flatten());
                }
                Attempt::Busy => self.wait_for_room().await,
            }
        }
    }

    /// Operations by who has their shards now; in any order, but that of one inode's.
    fn by_owner(&self, ops: impl IntoIterator<Item = ItemOp>) -> BTreeMap<ReactorId, Vec<ItemOp>> {
        let mut by_owner: BTreeMap<ReactorId, Vec<ItemOp>> = BTreeMap::new();
        for op in ops {
            by_owner.entry(self.reactor_of(key_of(&op).bucket())).or_default().push(op);
        }
        by_owner
    }

    /// The client's last batch, from memory or from its item.
    async fn last_batch(self: &Rc<Self>, rid: Rid, state: &RidState) -> Result<LastBatch, CommitError> {
        if let Some(last) = state.last.get() {
            return Ok(last);
        }
        let key = system::batch_key(rid);
        let mut found = self.get(&[key, system::client_key(rid)], View::Applied).await?;
        if found.pop().flatten().is_none() {
            return Err(CommitError::UnknownClient { rid });
        }
        let last = match found.pop().flatten() {
            Some(value) => LastBatch::decode(&value).map_err(|error| StoreError::Item { key, error })?,
            None => LastBatch::default(),
        };
        state.last.set(Some(last));
        Ok(last)
    }

    async fn attempt(
        self: &Rc<Self>,
        (rid, number): (Rid, BatchNo),
        state: &RidState,
        by_owner: &BTreeMap<ReactorId, Vec<ItemOp>>,
        judge: Option<&Judge>,
    ) -> Result<Attempt, CommitError> {
        let mut held = Vec::new();
        let mut released = Vec::new();
        let mut least_epoch = Epoch::NONE;
        // All owners at once; the answers are collected even when one refuses, so that nothing stays reserved.
        let calls: Vec<_> = by_owner
            .iter()
            .filter(|(owner, _)| **owner != self.me)
            .map(|(owner, ops)| (*owner, self.mesh.call(*owner, Request::Reserve { rid, ops: ops.clone() })))
            .collect();
        let mut answers = Vec::new();
        if let Some(ops) = by_owner.get(&self.me) {
            answers.push((self.me, self.reserve(rid, ops).await));
        }
        for (owner, call) in calls {
            let answer = match call.await {
                Ok(Ok(Answer::Reserved(result))) => Ok(result),
                Ok(Err(e)) => Err(e),
                _ => Err(StoreError::Closed),
            };
            answers.push((owner, answer));
        }
        let mut refusal = None;
        for (reactor, answer) in answers {
            match answer {
                Ok(Ok(r)) => {
                    held.push(Held { store: self.clone(), reactor, token: r.token, applied: false });
                    released.extend(r.released);
                    least_epoch = least_epoch.max(r.least_epoch);
                }
                Ok(Err(Refused::No(e))) => refusal = Some(Err(e)),
                Ok(Err(Refused::Busy)) => refusal = refusal.or(Some(Ok(Attempt::Busy))),
                Ok(Err(Refused::NotMine)) => refusal = refusal.or(Some(Ok(Attempt::Moved))),
                Err(e) => refusal = Some(Err(e.into())),
            }
        }
        if let Some(refusal) = refusal {
            return refusal;
        }
        if let Some(judge) = judge {
            judge().await?;
        }
        let changes = self.block_changes(rid, by_owner, &released)?;
        if !changes.is_empty() {
            match self.reserve_blocks(rid, changes, &mut held).await? {
                None => {}
                Some(attempt) => return Ok(attempt),
            }
        }
        if let Some(attempt) = self.reserve_number(rid, number, &mut held).await? {
            return Ok(attempt);
        }
        if self.epochs.borrow().open() < least_epoch {
            return Ok(Attempt::Busy); // this reactor is about to be told to move on
        }
        self.check_failed()?;
        Ok(Attempt::Done(self.apply_everywhere(rid, number, state, held)))
    }

    /// Room for the batch's number with the owner of the client's records. `None` is success.
    async fn reserve_number(
        self: &Rc<Self>,
        rid: Rid,
        number: BatchNo,
        held: &mut Vec<Held>,
    ) -> Result<Option<Attempt>, CommitError> {
        let reactor = self.reactor_of(system::bucket_of_rid(rid));
        let result = if reactor == self.me {
            self.reserve_last(rid, number)
        } else {
            token(self.mesh.call(reactor, Request::ReserveLast { rid, number }).await)?
        };
        self.keep_reserved(reactor, result, held)
    }

    fn keep_reserved(
        self: &Rc<Self>,
        reactor: ReactorId,
        reserved: Result<u64, Refused>,
        held: &mut Vec<Held>,
    ) -> Result<Option<Attempt>, CommitError> {
        match reserved {
            Ok(token) => held.push(Held { store: self.clone(), reactor, token, applied: false }),
            Err(Refused::No(e)) => return Err(e),
            Err(Refused::Busy) => return Ok(Some(Attempt::Busy)),
            Err(Refused::NotMine) => {
                self.owners.borrow_mut().clear();
                return Ok(Some(Attempt::Moved));
            }
        }
        Ok(None)
    }

    /// From here nothing can fail and nothing waits.
    fn apply_everywhere(self: &Rc<Self>, rid: Rid, number: BatchNo, state: &RidState, held: Vec<Held>) -> Epoch {
        let epoch = self.apply_held(held);
        probe::tell(|| Fact::Applied { term: self.term, rid, number, epoch });
        state.last.set(Some(LastBatch { number, epoch }));
        self.batches.set(self.batches.get() + 1);
        self.mark_dirty(epoch); // last: it may close the epoch
        epoch
    }

    pub(super) fn apply_held(self: &Rc<Self>, held: Vec<Held>) -> Epoch {
        let epoch = self.epochs.borrow().open();
        for mut h in held {
            h.applied = true;
            if h.reactor == self.me {
                self.apply_reserved(h.token, epoch);
            } else {
                self.epochs.borrow_mut().sent(epoch, usize::from(h.reactor.0));
                self.mesh.post(h.reactor, Message::Apply { token: h.token, epoch });
            }
        }
        epoch
    }

    pub(super) async fn wait_for_room(&self) {
        // A little different for everyone, so that two that stood in each other's way part.
        let jitter = Duration::from_micros(vellum_rt::random_u64() % 1000);
        let _ = vellum_rt::timeout(ROOM_POLL + jitter, self.room.notified()).await;
        sleep(jitter / 10).await;
    }

    /// Reserves blocks with the owners of their chunks. `None` is success.
    pub(super) async fn reserve_blocks(
        self: &Rc<Self>,
        rid: Rid,
        changes: SpaceChange,
        held: &mut Vec<Held>,
    ) -> Result<Option<Attempt>, CommitError> {
        let mut by_owner: BTreeMap<ReactorId, SpaceChange> = BTreeMap::new();
        for (start, len) in changes.allocs {
            match self.owner_of_block(start).await? {
                Some(owner) => by_owner.entry(owner).or_default().allocs.push((start, len)),
                None => return Err(CommitError::Blocks { rid, start, len }),
            }
        }
        for (start, len, owners) in changes.shares {
            match self.owner_of_block(start).await? {
                Some(owner) => by_owner.entry(owner).or_default().shares.push((start, len, owners)),
                None => return Err(CommitError::Blocks { rid, start, len }),
            }
        }
        for (start, len) in changes.frees {
            match self.owner_of_block(start).await? {
                Some(owner) => by_owner.entry(owner).or_default().frees.push((start, len)),
                None => {
                    let detail = "an extent holds it, and its chunk is not for data";
                    return Err(StoreError::corrupt(format!("block {start}"), detail).into());
                }
            }
        }
        for (start, len, owners) in changes.drops {
            // They are among the freed ones.
            if let Some(owner) = self.owner_of_block(start).await? {
                by_owner.entry(owner).or_default().drops.push((start, len, owners));
            }
        }
        for (reactor, change) in by_owner {
            let result = if reactor == self.me {
                self.reserve_space(rid, change)
            } else {
                token(self.mesh.call(reactor, Request::ReserveSpace { rid, change }).await)?
            };
            if let Some(attempt) = self.keep_reserved(reactor, result, held)? {
                return Ok(Some(attempt));
            }
        }
        Ok(None)
    }
}

/// What a reactor answered that was asked for a reservation.
fn token<E>(answer: Result<Result<Answer, StoreError>, E>) -> Result<Result<u64, Refused>, StoreError> {
    match answer {
        Ok(Ok(Answer::Token(reserved))) => Ok(reserved),
        Ok(Err(e)) => Err(e),
        _ => Err(StoreError::Closed),
    }
}

/// The bytes that a batch counts for, if it is not too large.
fn check_size(batch: &Batch) -> Result<usize, CommitError> {
    if batch.ops.len() > MAX_BATCH_OPS {
        return Err(CommitError::TooLarge { what: "operations", found: batch.ops.len(), most: MAX_BATCH_OPS });
    }
    let bytes: usize = batch.ops.iter().map(ItemOp::len_bytes).sum();
    // The bound counts keys and values; operations have a few bytes besides.
    let most = MAX_BATCH_BYTES + MAX_BATCH_OPS * (Key::LEN + 4);
    if bytes > most {
        return Err(CommitError::TooLarge { what: "bytes", found: bytes, most });
    }
    let mut keys: Vec<_> = batch.ops.iter().map(|op| (key_of(op), matches!(op, ItemOp::DeleteInode { .. }))).collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(CommitError::Malformed { key: twice[0].0, reason: "it stands twice in the batch".into() });
    }
    Ok(bytes + batch.ops.len() * super::pace::OP_BYTES)
}
