//! Messages between the reactors of a node.
//!
//! Order: messages from one reactor to another arrive in the order of [`Mesh::send`], and what a reactor sends to itself is
//! handled at once; so grants and invalidations of one lock reach its client's home in the lock table's order (N3).
//! Bound: each message belongs to an unanswered request of a client or to a lock that it holds, and both are bounded; the
//! rings hold [`RING`] of them, what does not fit waits at the sender.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Ino, ReactorId, Rid};
use vellum_format::ClientIdentity;
use vellum_proto::files::{WaitChange, WaitId};
use vellum_rt::local::{Notify, OneshotSender, oneshot};
use vellum_rt::{Class, channel, spawn};
use vellum_wire::{
    AdminRequest, FileLockOutcome, Frame, HeldFileLock, LockGrant, LockMode, LockName, LockWant, Response,
};

use crate::crew::{Hand, JobEnd};
use crate::file_service::FileOp;
use crate::identity::Who;
use crate::moving::Tables;

const RING: usize = 1024;

pub(crate) enum Message {
    // ---- to the owner of a lock
    Lock {
        rid: Rid,
        request: u64,
        want: LockWant,
    },
    Invalidated {
        rid: Rid,
        name: LockName,
    },
    /// A request about a file's locks.
    File {
        rid: Rid,
        request: u64,
        ino: Ino,
        op: FileOp,
    },
    /// This wait for a file lock closes a circle.
    FileDeadlock {
        ino: Ino,
        id: WaitId,
    },
    /// To every reactor: grants flow.
    Recovered,
    // ---- to the home of a client
    /// A socket that another reactor accepted; its greeting comes first on it.
    Adopt {
        tx: channel::Sender<Frame>,
        rx: channel::Receiver<Frame>,
        /// Boxed: other messages are small.
        who: Box<Who>,
    },
    Granted {
        rid: Rid,
        request: u64,
        grant: LockGrant,
        /// Inodes of the group that others have open, when it was granted for WRITE.
        opens: Vec<Ino>,
    },
    FileAnswered {
        rid: Rid,
        request: u64,
        response: Response,
    },
    FileEnded {
        rid: Rid,
        ticket: u64,
        outcome: FileLockOutcome,
    },
    LockFailed {
        rid: Rid,
        request: u64,
        message: String,
    },
    Invalidate {
        rid: Rid,
        name: LockName,
        mode: LockMode,
    },
    /// To every reactor: a worker takes jobs, or does not any more.
    WorkerUp {
        hand: Hand,
        identity: ClientIdentity,
    },
    WorkerDown {
        rid: Rid,
    },
    // ---- to the coordinator
    /// As far as the terms before are concerned.
    WorkerQuiet {
        rid: Rid,
    },
    /// Came back and said all its locks, or is gone for good.
    Returned {
        rid: Rid,
    },
    /// Who waits for whom has changed; what may be told once the graph knows it.
    FileWaits {
        changes: Vec<WaitChange>,
        then: Vec<Message>,
    },
    // ---- calls
    Ask {
        token: u64,
        from: ReactorId,
        ask: Ask,
    },
    Answer {
        token: u64,
        answer: Answer,
    },
}

/// Why a client of the term before is not waited for any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Absent {
    /// The recovery window is over.
    Late,
    /// Its process does not exist any more.
    Gone,
}

/// What is answered.
pub(crate) enum Ask {
    /// Answered when the locks are weakened.
    Unlock {
        rid: Rid,
        to: Vec<LockWant>,
    },
    Reassert {
        rid: Rid,
        grants: Vec<LockGrant>,
    },
    ReassertFiles {
        rid: Rid,
        locks: Vec<HeldFileLock>,
        opens: Vec<Ino>,
    },
    Opened {
        rid: Rid,
        inos: Vec<Ino>,
    },
    Closed {
        rid: Rid,
        inos: Vec<Ino>,
    },
    /// Which of these have others open?
    Openers {
        rid: Rid,
        inos: Vec<Ino>,
    },
    /// The tables forget the client.
    Release {
        rid: Rid,
    },
    /// The home reclaims a client that did not return.
    Reclaim {
        rid: Rid,
        why: Absent,
    },
    /// The worker's home hands it a compaction, and answers when that has ended.
    Job {
        rid: Rid,
        job: Bytes,
        input_bytes: u64,
    },
    /// Answered when the worker, or that job of it, writes nothing any more.
    Quiet {
        rid: Rid,
        job: Option<u64>,
    },
    Distrust {
        rid: Rid,
        why: String,
    },
    /// A worker of a term before that is quiet.
    ReclaimWorker {
        rid: Rid,
    },
    /// A shard is about to move: send nothing to tables, and say when that is so. Once more: another round of messages.
    KeepBack,
    /// Of a shard that moves here.
    TakeTables(Box<Tables>),
    /// It has moved, or does not.
    GoOn,
    Status,
    /// This reactor's share of the answer to an operator.
    Admin(AdminRequest),
    /// No session is served any more.
    Stop,
}

pub(crate) enum Answer {
    Done,
    Refused(String),
    Openers(Vec<(Ino, bool)>),
    Status(serde_json::Value),
    Job(JobEnd),
}

type Inbox = channel::Receiver<Message>;

/// One reactor's ends; may be sent there.
pub struct MeshEnds {
    me: ReactorId,
    to: Vec<channel::Sender<Message>>,
    inbox: Inbox,
}

/// The rings between `reactors` reactors.
pub fn mesh(reactors: usize) -> Vec<MeshEnds> {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..reactors).map(|_| channel::bounded(RING)).unzip();
    let ends = inboxes.into_iter().enumerate();
    ends.map(|(i, inbox)| MeshEnds { me: ReactorId(i as u16), to: senders.clone(), inbox }).collect()
}

struct Outbox {
    waiting: RefCell<VecDeque<Message>>,
    more: Notify,
}

pub(crate) struct Mesh {
    pub(crate) me: ReactorId,
    outboxes: Vec<Rc<Outbox>>,
    asked: RefCell<HashMap<u64, OneshotSender<Answer>>>,
    next_token: Cell<u64>,
}

impl Mesh {
    pub(crate) fn new(ends: MeshEnds) -> (Mesh, Inbox) {
        let outboxes = ends.to.into_iter().map(|to| {
            let outbox = Rc::new(Outbox { waiting: RefCell::default(), more: Notify::new() });
            let waiting = outbox.clone();
            spawn(Class::Request, "mesh", async move {
                loop {
                    let more = waiting.more.notified();
                    let next = waiting.waiting.borrow_mut().pop_front();
                    match next {
                        Some(message) => {
                            if to.send(message).await.is_err() {
                                return; // that reactor has stopped
                            }
                        }
                        None => more.await,
                    }
                }
            })
            .detach();
            outbox
        });
        let mesh =
            Mesh { me: ends.me, outboxes: outboxes.collect(), asked: RefCell::default(), next_token: Cell::new(1) };
        (mesh, ends.inbox)
    }

    pub(crate) fn reactors(&self) -> usize {
        self.outboxes.len()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = ReactorId> + use<> {
        (0..self.outboxes.len() as u16).map(ReactorId)
    }

    /// Queues a message to another reactor.
    pub(crate) fn send(&self, to: ReactorId, message: Message) {
        if let Some(outbox) = self.outboxes.get(usize::from(to.0)) {
            outbox.waiting.borrow_mut().push_back(message);
            outbox.more.notify_one();
        }
    }

    /// Registers a call; the message to send, and where its answer comes.
    pub(crate) fn begin_ask(&self, ask: Ask) -> (Message, vellum_rt::local::OneshotReceiver<Answer>) {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let (sender, receiver) = oneshot();
        self.asked.borrow_mut().insert(token, sender);
        (Message::Ask { token, from: self.me, ask }, receiver)
    }

    pub(crate) fn answered(&self, token: u64, answer: Answer) {
        let asked = self.asked.borrow_mut().remove(&token);
        if let Some(asked) = asked {
            let _ = asked.send(answer); // who asked may have gone
        }
    }
}
