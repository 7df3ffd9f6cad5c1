//! The lock tables' part of a shard's move to another reactor.
//!
//! ```text
//!  A: hold -> every reactor keeps back what it would send to a table, and requests; says so behind what it has sent
//!     (A's own work on its tables ends) -> tables to B, and once more round: what A has said has arrived everywhere
//!  store: routes swapped -> A: go on -> what was kept back goes to whoever owns it now, in its order
//! ```
//! So nothing overtakes: A's tables have seen everything that was sent before, B sees them before anything that was sent
//! after, and of one lock no home hears from B before it has heard all from A (N3). What is kept back belongs to requests that
//! are unanswered: the clients' credits bound it. It lasts as long as those messages take.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use vellum_base::{Bucket, DmaSlice, Ino, Mutant, ReactorId, Rid, mutant};
use vellum_link::Responder;
use vellum_proto::files::{MovedFiles, MovedOpens};
use vellum_proto::locks::MovedLocks;
use vellum_rt::{now, sleep};
use vellum_store::{HandOver, LocalFuture};
use vellum_wire::{LockName, Request};

use crate::client::Client;
use crate::mesh::{Answer, Ask, Message};
use crate::reactor::Reactor;

/// Work on the tables that takes longer puts the move off.
const PATIENCE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_micros(100);

/// What is known of the locks, file locks and open inodes of some buckets.
pub(crate) struct Tables {
    locks: MovedLocks,
    files: MovedFiles,
    opens: MovedOpens,
}

/// Kept back while a shard moves.
enum Kept {
    Request { client: Rc<Client>, request: Request, payload: Option<DmaSlice>, responder: Responder },
    ToOwner { name: LockName, message: Message },
}

#[derive(Default)]
pub(crate) struct KeptBack {
    kept: Option<VecDeque<Kept>>,
    /// Beginnings and ends of such times.
    changes: u64,
}

fn inodes_of((first, last): (Bucket, Bucket)) -> RangeInclusive<Ino> {
    Ino(u64::from(first.0) << 56)..=Ino(u64::from(last.0) << 56 | ((1 << 56) - 1))
}

/// Of a move from this reactor.
struct Handing {
    reactor: Rc<Reactor>,
    buckets: (Bucket, Bucket),
    to: ReactorId,
}

impl HandOver for Handing {
    fn tables(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {
            let tables = Box::new(self.reactor.take_tables(inodes_of(self.buckets)));
            if !mutant::active(Mutant::MoveWithoutLocks) {
                self.reactor.ask(self.to, Ask::TakeTables(tables)).await;
            }
            // Round once more: whatever was said here before is there when this is answered.
            self.reactor.ask_everybody(|| Ask::KeepBack).await;
        })
    }

    fn go_on(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {
            self.reactor.ask_everybody(|| Ask::GoOn).await;
        })
    }
}

impl Reactor {
    /// See [`vellum_store::Authority::hand_over`].
    pub(crate) async fn begin_hand_over(
        self: Rc<Self>,
        buckets: (Bucket, Bucket),
        to: ReactorId,
    ) -> Option<Box<dyn HandOver>> {
        let ready = self.ask_everybody(|| Ask::KeepBack).await && self.tables_settle().await;
        if !ready {
            self.ask_everybody(|| Ask::GoOn).await;
            return None;
        }
        Some(Box::new(Handing { reactor: self, buckets, to }))
    }

    /// All at once; false when somebody cannot.
    async fn ask_everybody(self: &Rc<Self>, ask: impl Fn() -> Ask) -> bool {
        let asked: Vec<_> = self.mesh.all().map(|reactor| self.ask(reactor, ask())).collect();
        let mut all = true;
        for answer in asked {
            all &= matches!(answer.await, Answer::Done);
        }
        all
    }

    /// What came before on this reactor's tables has been done.
    async fn tables_settle(&self) -> bool {
        let late = now() + PATIENCE;
        // What the engine asked for itself is answered here; it asks for nothing while a shard moves.
        let settled = || {
            !self.table_queue.borrow().is_running()
                && self.table.borrow().is_settled()
                && self.table.borrow().locks_of(Rid::ENGINE) == 0
                && self.files.borrow().is_settled()
        };
        while !settled() {
            if now() >= late {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    fn take_tables(&self, inodes: RangeInclusive<Ino>) -> Tables {
        Tables {
            locks: self.table.borrow_mut().take(&inodes),
            files: self.files.borrow_mut().take(&inodes),
            opens: self.opens.borrow_mut().take(&inodes),
        }
    }

    pub(crate) fn put_tables(&self, tables: Tables) -> Answer {
        self.table.borrow_mut().put(tables.locks);
        self.files.borrow_mut().put(tables.files);
        self.opens.borrow_mut().put(tables.opens);
        Answer::Done
    }

    /// From now on nothing goes to a table. Not while clients of the term before are waited for: their tables differ from
    /// reactor to reactor.
    pub(crate) fn keep_back(&self) -> Answer {
        if self.stopping.get() || self.table.borrow().is_recovering() || self.files.borrow().is_recovering() {
            return Answer::Refused("locks are being recovered, or the node stops".into());
        }
        let mut back = self.kept_back.borrow_mut();
        if back.kept.is_none() {
            back.kept = Some(VecDeque::new());
            back.changes += 1;
        }
        Answer::Done
    }

    pub(crate) fn go_on_sending(self: &Rc<Self>) -> Answer {
        let kept = {
            let mut back = self.kept_back.borrow_mut();
            back.changes += u64::from(back.kept.is_some());
            back.kept.take()
        };
        for one in kept.into_iter().flatten() {
            match one {
                Kept::Request { client, request, payload, responder } => {
                    self.serve(&client, request, payload, responder);
                }
                Kept::ToOwner { name, message } => self.send(self.owner_of(name), message),
            }
        }
        Answer::Done
    }

    /// To the table that owns a lock, now or when a move is over.
    pub(crate) fn send_to_owner(self: &Rc<Self>, name: LockName, message: Message) {
        if let Some(kept) = &mut self.kept_back.borrow_mut().kept {
            return kept.push_back(Kept::ToOwner { name, message });
        }
        self.send(self.owner_of(name), message);
    }

    /// Gives the request back when it may be served now.
    pub(crate) fn keep_request(
        &self,
        client: &Rc<Client>,
        request: Request,
        payload: Option<DmaSlice>,
        responder: Responder,
    ) -> Option<(Request, Option<DmaSlice>, Responder)> {
        let mut back = self.kept_back.borrow_mut();
        match &mut back.kept {
            Some(kept) if request != Request::Keepalive => {
                kept.push_back(Kept::Request { client: client.clone(), request, payload, responder });
                None
            }
            _ => Some((request, payload, responder)),
        }
    }

    /// Every table forgets the client, also one whose locks were on their way from one reactor to another.
    pub(crate) async fn release_locks(self: &Rc<Self>, rid: Rid) {
        let moves = || {
            let back = self.kept_back.borrow();
            (back.changes, back.kept.is_some())
        };
        loop {
            let before = moves();
            for reactor in self.mesh.all() {
                self.ask(reactor, Ask::Release { rid }).await;
            }
            if moves() == (before.0, false) {
                return;
            }
            sleep(LOOK).await;
        }
    }
}
