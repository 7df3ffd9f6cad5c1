//! File locks and open inodes: between the client's home and the tables of the reactor that owns the inode's group.
//!
//! Order: requests reach a table in the order in which the client sent them, and what a table says reaches the client in
//! the order in which it was said: answers are sent where they arrive, by no task in between. What changes the graph of
//! waiters goes through the coordinator, which has the graph, and the answers of the same step go behind it.

use std::rc::Rc;

use vellum_base::{Ino, Rid};
use vellum_link::{LinkError, Responder};
use vellum_proto::FileLockOutput;
use vellum_proto::files::{Held, WaitChange, WaitId};
use vellum_rt::{Class, spawn, timeout};
use vellum_wire::{
    ErrorCode, FileLock, FileLockMode, FileLockOutcome, FileLockSpace, HeldFileLock, LockName, Request, Response,
};

use crate::client::Client;
use crate::mesh::{Answer, Ask, Message};
use crate::reactor::{COORDINATOR, Reactor};

/// What is asked of a table of file locks.
pub(crate) enum FileOp {
    Lock { lock: FileLock, ticket: Option<u64> },
    Test { lock: FileLock },
    Cancel { ticket: u64 },
}

impl Reactor {
    // ---- at the owner

    pub(crate) fn file_op(self: &Rc<Self>, rid: Rid, request: u64, ino: Ino, op: FileOp) {
        {
            let mut files = self.files.borrow_mut();
            match op {
                FileOp::Lock { lock, ticket } => files.lock(rid, request, ino, lock, ticket),
                FileOp::Test { lock } => files.test(rid, request, ino, lock),
                FileOp::Cancel { ticket } => files.cancel(rid, request, ino, ticket),
            }
        }
        self.drive_files();
    }

    pub(crate) fn file_deadlock(self: &Rc<Self>, ino: Ino, id: WaitId) {
        self.files.borrow_mut().deadlocked(ino, id);
        self.drive_files();
    }

    /// Sends what one input of the table has brought about.
    pub(crate) fn drive_files(self: &Rc<Self>) {
        let (mut changes, mut then) = (Vec::new(), Vec::new());
        loop {
            let output = self.files.borrow_mut().poll_output();
            match output {
                Some(FileLockOutput::Answer { rid, request, outcome }) => {
                    then.push(Message::FileAnswered { rid, request, response: Response::FileLocked { outcome } });
                }
                Some(FileLockOutput::Found { rid, request, found }) => {
                    let own = found.is_some_and(|held| held.owner.rid == rid);
                    let response = Response::FileLockFound { found: found.map(as_wire), own };
                    then.push(Message::FileAnswered { rid, request, response });
                }
                Some(FileLockOutput::Ended { rid, ticket, outcome }) => {
                    then.push(Message::FileEnded { rid, ticket, outcome });
                }
                Some(FileLockOutput::Graph(change)) => changes.push(change),
                None => break,
            }
        }
        if changes.is_empty() {
            self.tell_homes(then);
        } else {
            self.send(COORDINATOR, Message::FileWaits { changes, then });
        }
    }

    fn tell_homes(self: &Rc<Self>, messages: Vec<Message>) {
        for message in messages {
            if let Message::FileAnswered { rid, .. } | Message::FileEnded { rid, .. } = &message {
                self.send(self.backend.home_of(*rid), message);
            }
        }
    }

    pub(crate) fn reassert_files_here(&self, rid: Rid, locks: Vec<HeldFileLock>, opens: Vec<Ino>) -> Answer {
        for HeldFileLock { ino, lock } in locks {
            let verdict = self.files.borrow_mut().reassert(rid, ino, &lock);
            if let Err(error) = verdict {
                return Answer::Refused(error.to_string());
            }
        }
        self.opened_here(rid, &opens)
    }

    pub(crate) fn opened_here(&self, rid: Rid, inos: &[Ino]) -> Answer {
        match self.opens.borrow_mut().opened(rid, inos) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused(error.to_string()),
        }
    }

    pub(crate) fn openers_here(&self, rid: Rid, inos: &[Ino]) -> Answer {
        let opens = self.opens.borrow();
        Answer::Openers(inos.iter().map(|ino| (*ino, opens.is_open_elsewhere(rid, *ino))).collect())
    }

    // ---- at the coordinator

    pub(crate) fn file_waits(self: &Rc<Self>, changes: Vec<WaitChange>, then: Vec<Message>) {
        let circles = self.waits.borrow_mut().apply(changes);
        self.tell_homes(then);
        for (id, ino) in circles {
            tracing::debug!(rid = %id.rid, %ino, "a file lock would wait for itself");
            self.send_to_owner(LockName::of(ino), Message::FileDeadlock { ino, id });
        }
    }

    // ---- at the home

    pub(crate) fn begin_file_op(self: &Rc<Self>, client: &Rc<Client>, ino: Ino, op: FileOp, responder: Responder) {
        let legal = match &op {
            FileOp::Lock { lock, .. } => lock.is_legal(),
            FileOp::Test { lock } => {
                lock.is_legal() && lock.space == FileLockSpace::Posix && lock.mode != FileLockMode::Unlocked
            }
            FileOp::Cancel { .. } => true,
        };
        if !legal {
            return responder.fail(ErrorCode::Malformed, "no such range to lock");
        }
        let request = client.next_lock.get();
        client.next_lock.set(request + 1);
        client.file_requests.borrow_mut().insert(request, responder);
        self.send_to_owner(LockName::of(ino), Message::File { rid: client.rid, request, ino, op });
    }

    pub(crate) fn file_answered(self: &Rc<Self>, rid: Rid, request: u64, response: Response) {
        let Some(client) = self.client(rid) else { return };
        let responder = client.file_requests.borrow_mut().remove(&request);
        if let Some(responder) = responder {
            self.reply(&client, responder, response);
        }
    }

    pub(crate) fn file_ended(self: &Rc<Self>, rid: Rid, ticket: u64, outcome: FileLockOutcome) {
        let Some(client) = self.client(rid) else { return };
        let call = client.session.call(Request::FileLockDone { ticket, outcome });
        let limit = self.options.limits.invalidation;
        spawn(Class::Request, "file lock done", async move {
            match timeout(limit, call).await {
                Ok(Ok(reply)) if reply.body == Response::Noted => {}
                Ok(Err(LinkError::Closed)) => {} // the session ended: its reclaim gives the lock back
                other => {
                    tracing::warn!(%rid, ?other, "the end of a file lock's wait was not taken: the client is given up");
                    client.session.evict();
                }
            }
        })
        .detach();
    }

    pub(crate) fn opened(self: &Rc<Self>, client: &Rc<Client>, inos: Vec<Ino>, responder: Responder) {
        let rid = client.rid;
        let asks = self.by_owner(inos, |ino| LockName::of(*ino));
        let asks = asks.into_iter().map(|(owner, inos)| (owner, Ask::Opened { rid, inos })).collect();
        self.ask_all(client, asks, responder, Response::Noted);
    }

    pub(crate) fn closed(self: &Rc<Self>, client: &Rc<Client>, inos: Vec<Ino>, responder: Responder) {
        let rid = client.rid;
        let asks = self.by_owner(inos, |ino| LockName::of(*ino));
        let asks = asks.into_iter().map(|(owner, inos)| (owner, Ask::Closed { rid, inos })).collect();
        self.ask_all(client, asks, responder, Response::Noted);
    }

    /// A page of lock recovery that is never the last one.
    pub(crate) fn reassert_files(
        self: &Rc<Self>,
        client: &Rc<Client>,
        locks: Vec<HeldFileLock>,
        opens: Vec<Ino>,
        responder: Responder,
    ) {
        if !locks.iter().all(|held| held.lock.is_legal()) {
            return responder.fail(ErrorCode::Malformed, "no such range to lock");
        }
        let rid = client.rid;
        let mut pages = self.by_owner(locks, |held| LockName::of(held.ino));
        let mut asks = Vec::new();
        let mut opens = self.by_owner(opens, |ino| LockName::of(*ino));
        for owner in self.mesh.all() {
            let (locks, opens) = (pages.remove(&owner).unwrap_or_default(), opens.remove(&owner).unwrap_or_default());
            if !locks.is_empty() || !opens.is_empty() {
                asks.push((owner, Ask::ReassertFiles { rid, locks, opens }));
            }
        }
        self.ask_all(client, asks, responder, Response::Reasserted);
    }

    /// Asks at once, so that the order of a client's requests is kept at each owner; answers when all have.
    fn ask_all(
        self: &Rc<Self>,
        client: &Rc<Client>,
        asks: Vec<(vellum_base::ReactorId, Ask)>,
        responder: Responder,
        done: Response,
    ) {
        let asked: Vec<_> = asks.into_iter().map(|(owner, ask)| self.ask(owner, ask)).collect();
        let page = client.pages.begin();
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "file state", async move {
            let mut refused = None;
            for answer in asked {
                if let Answer::Refused(why) = answer.await {
                    refused = Some(why);
                }
            }
            client.pages.end(page);
            match refused {
                None => reactor.reply(&client, responder, done),
                Some(why) => {
                    tracing::warn!(rid = %client.rid, why, "what it holds of files is refused: the client is given up");
                    responder.fail(ErrorCode::NotPermitted, why);
                    client.session.evict();
                }
            }
        })
        .detach();
    }

    pub(crate) fn openers(self: &Rc<Self>, client: &Rc<Client>, inos: Vec<Ino>, responder: Responder) {
        let rid = client.rid;
        let asked: Vec<_> = self
            .by_owner(inos.clone(), |ino| LockName::of(*ino))
            .into_iter()
            .map(|(owner, inos)| self.ask(owner, Ask::Openers { rid, inos }))
            .collect();
        let (reactor, client) = (self.clone(), client.clone());
        spawn(Class::Request, "openers", async move {
            let mut closed = std::collections::BTreeSet::new();
            for answer in asked {
                if let Answer::Openers(open) = answer.await {
                    closed.extend(open.into_iter().filter(|(_, open)| !open).map(|(ino, _)| ino));
                }
            }
            // Who did not answer may know of somebody.
            let open = inos.iter().map(|ino| !closed.contains(ino)).collect();
            reactor.reply(&client, responder, Response::Openers { open });
        })
        .detach();
    }
}

fn as_wire(held: Held) -> FileLock {
    FileLock {
        space: FileLockSpace::Posix,
        mode: held.mode,
        owner: held.owner.id,
        pid: held.pid,
        start: held.start,
        end: held.end,
    }
}
