//! One reactor of the node: the clients whose home it is, and the locks of the buckets that it owns.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use vellum_base::{Epoch, Mutant, ReactorId, Rid, mutant, probe};
use vellum_format::{ClientIdentity, Origin, Principal};
use vellum_link::{Acceptor, Greeter, InProcessListener, LocalBoxFuture, Stranger};
use vellum_proto::{FileLockTable, LockTable, OpenTable, Time, WaitGraph};
use vellum_rt::net::Endpoint;
use vellum_rt::{Class, JoinHandle, now, spawn, yield_if_needed, yield_now};

use crate::authority::TableAuthority;
use crate::backend::Backend;
use crate::client::Client;
use crate::cluster::StatusAsks;
use crate::crew::{Crew, CrewHelpers, OldWorkers, answer_later};
use crate::engine_locks::EngineLocks;
use crate::fact::Fact;
use crate::mesh::{Answer, Ask, Mesh, MeshEnds, Message};
use crate::metrics::{self, Latencies};
use crate::moving::KeptBack;
use crate::options::NodeOptions;
use crate::recovery::Recovery;
use crate::table_queue::{Caller, Step, TableQueue};

/// The reactor that counts who has come back after a restart, and that owns the rename lock.
pub(crate) const COORDINATOR: ReactorId = ReactorId(0);

/// Messages of a reactor to itself that are handled in one turn.
const DRAIN: usize = 512;

/// What a reactor begins with.
pub struct ReactorParts {
    pub ends: MeshEnds,
    pub backend: Rc<dyn Backend>,
    /// The one that the store was started with.
    pub authority: TableAuthority,
    pub options: NodeOptions,
    /// Every client record of the term before, read before any reactor listens.
    pub known: Vec<(Rid, Bytes)>,
}

pub struct Reactor {
    pub(crate) me: ReactorId,
    pub(crate) options: NodeOptions,
    pub(crate) backend: Rc<dyn Backend>,
    pub(crate) mesh: Mesh,
    pub(crate) table: Rc<RefCell<LockTable>>,
    /// What the engine itself holds of them.
    pub(crate) engine_locks: EngineLocks,
    /// Long work on the tables of this reactor.
    pub(crate) table_queue: RefCell<TableQueue>,
    /// File locks and open inodes of the groups whose buckets are owned here.
    pub(crate) files: RefCell<FileLockTable>,
    pub(crate) opens: RefCell<OpenTable>,
    /// On the coordinator: who waits for whose file locks, on all reactors.
    pub(crate) waits: RefCell<WaitGraph>,
    pub(crate) clients: RefCell<BTreeMap<Rid, Rc<Client>>>,
    /// Clients of the term before whose home is here and that did not greet yet, with their identity. One that
    /// cannot be read admits nobody.
    pub(crate) known: RefCell<BTreeMap<Rid, Option<ClientIdentity>>>,
    /// Greetings whose record is being written.
    pub(crate) admitting: RefCell<BTreeMap<Rid, Principal>>,
    /// Clients of the term before that an operator has given up: not let in, and reclaimed when the window is over.
    pub(crate) evicted: RefCell<BTreeSet<Rid>>,
    /// Clients of the term before whose record is being removed.
    pub(crate) reclaiming: RefCell<BTreeSet<Rid>>,
    /// Clients that wait to hear of a durable epoch.
    pub(crate) undurable: RefCell<BTreeSet<Rid>>,
    /// On the coordinator, until everybody has come back or is gone.
    pub(crate) recovery: RefCell<Option<Recovery>>,
    /// Workers that take compactions.
    pub(crate) crew: Crew,
    /// On the coordinator: workers of the terms before that may still be writing.
    pub(crate) old_workers: RefCell<OldWorkers>,
    pub(crate) reclaimed: Cell<u64>,
    /// Clients that [`Self::tell_mounted`] told of; the first one until it has told anything.
    pub(crate) counted: Cell<usize>,
    pub(crate) stopping: Cell<bool>,
    /// While a shard moves.
    pub(crate) kept_back: RefCell<KeptBack>,
    pub(crate) latencies: RefCell<Latencies>,
    acceptors: RefCell<Vec<Acceptor>>,
    metrics: RefCell<Option<JoinHandle<()>>>,
    to_self: RefCell<VecDeque<Message>>,
    draining: Cell<bool>,
}

impl Reactor {
    /// Runs on the current reactor from now on; it listens nowhere yet.
    pub fn start(parts: ReactorParts) -> Rc<Reactor> {
        let ReactorParts { ends, backend, authority, options, known } = parts;
        let (mesh, mut inbox) = Mesh::new(ends);
        let me = mesh.me;
        let read = |(rid, identity): &(Rid, Bytes)| {
            let identity = ClientIdentity::decode(identity);
            let identity = identity.inspect_err(|error| tracing::warn!(%rid, %error, "a client record of nobody"));
            (*rid, identity.ok())
        };
        let known: Vec<_> = known.iter().map(read).collect();
        // Workers hold no locks: nobody waits for them.
        let works = |identity: &Option<ClientIdentity>| identity.as_ref().is_some_and(|known| known.worker.is_some());
        let lock_holders = || known.iter().filter(|(_, identity)| !works(identity));
        probe::tell(|| {
            let rids = lock_holders().map(|(rid, _)| *rid).collect();
            Fact::Expects { term: backend.term(), rids }
        });
        let recovering = lock_holders().next().is_some() && !mutant::active(Mutant::ForgetKnownClients);
        let table = LockTable::new(backend.term(), usize::from(me.0), mesh.reactors(), recovering);
        let table = Rc::new(RefCell::new(table));
        authority.connect(&table);
        let expected = (me == COORDINATOR && recovering).then(|| {
            Recovery::new(
                lock_holders()
                    .map(|(rid, identity)| (*rid, identity.as_ref().map_or(Origin::Elsewhere, |known| known.origin))),
            )
        });
        let old = known.iter().filter_map(|(rid, identity)| Some((*rid, identity.clone()?)));
        let old_workers = OldWorkers::new(old.filter(|_| me == COORDINATOR));
        let known = known.into_iter().filter(|(rid, _)| backend.home_of(*rid) == me).collect();
        let reactor = Rc::new(Reactor {
            me,
            options,
            backend,
            mesh,
            table,
            engine_locks: EngineLocks::default(),
            table_queue: RefCell::default(),
            files: RefCell::new(FileLockTable::new(recovering)),
            opens: RefCell::new(OpenTable::new(recovering)),
            waits: RefCell::default(),
            clients: RefCell::default(),
            known: RefCell::new(known),
            admitting: RefCell::default(),
            evicted: RefCell::default(),
            reclaiming: RefCell::default(),
            undurable: RefCell::default(),
            recovery: RefCell::new(expected),
            crew: Crew::default(),
            old_workers: RefCell::new(old_workers),
            reclaimed: Cell::new(0),
            counted: Cell::new(1),
            stopping: Cell::new(false),
            kept_back: RefCell::default(),
            latencies: RefCell::default(),
            acceptors: RefCell::default(),
            metrics: RefCell::default(),
            to_self: RefCell::default(),
            draining: Cell::new(false),
        });
        let weak = Rc::downgrade(&reactor);
        authority.connect_reactor(weak.clone());
        reactor.backend.on_durable(Box::new(move |epoch| {
            if let Some(reactor) = weak.upgrade() {
                reactor.tell_durable(epoch);
            }
        }));
        let receiver = reactor.clone();
        spawn(Class::Request, "mesh inbox", async move {
            while let Some(message) = inbox.recv().await {
                receiver.send(receiver.me, message);
                yield_if_needed().await;
            }
        })
        .detach();
        reactor.tell_mounted();
        reactor.start_recovery();
        let helpers = Rc::new(CrewHelpers(Rc::downgrade(&reactor)));
        reactor.backend.set_helpers(helpers, reactor.options.prefer);
        if me == COORDINATOR {
            reactor.watch_old_workers();
        }
        reactor
    }

    /// Accepts clients on one endpoint.
    pub fn listen(self: &Rc<Self>, at: &Endpoint) -> io::Result<Endpoint> {
        let acceptor = Acceptor::start(at, self.greeter())?;
        let local = acceptor.local_endpoint().clone();
        self.acceptors.borrow_mut().push(acceptor);
        Ok(local)
    }

    /// Gives the node's figures to whoever asks on `at`.
    pub fn give_metrics(self: &Rc<Self>, at: &Endpoint) -> io::Result<Endpoint> {
        let weak = Rc::downgrade(self);
        let (local, task) = metrics::serve(
            at,
            Rc::new(move || {
                let weak = weak.clone();
                Box::pin(async move {
                    match weak.upgrade() {
                        Some(reactor) => reactor.status().await,
                        None => serde_json::Value::Null,
                    }
                })
            }),
        )?;
        *self.metrics.borrow_mut() = Some(task);
        Ok(local)
    }

    /// Answers the member whose engine this is, for its figures.
    pub(crate) fn answer_member(self: &Rc<Self>, asks: &StatusAsks) {
        let Some(mut asked) = asks.take() else { return };
        let reactor = self.clone();
        spawn(Class::Scrub, "figures", async move {
            while let Some(answer) = asked.recv().await {
                let _ = answer.try_send(reactor.status().await); // who asked may have given up
            }
        })
        .detach();
    }

    /// Accepts clients of this process.
    pub fn listen_in_process(self: &Rc<Self>, mut listener: InProcessListener) {
        let (greeter, reactor) = (self.greeter(), self.clone());
        spawn(Class::Request, "in-process acceptor", async move {
            while let Some(socket) = listener.accept().await {
                if reactor.stopping.get() {
                    return;
                }
                greeter.welcome(socket);
            }
        })
        .detach();
    }

    fn greeter(self: &Rc<Self>) -> Greeter {
        let reactor = self.clone();
        let admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>> = Rc::new(move |stranger| {
            let reactor = reactor.clone();
            Box::pin(async move { reactor.welcome(stranger).await })
        });
        Greeter::new(self.options.timers.greeting, self.options.keys.clone(), admit)
    }

    /// Sends to a reactor. To this one: handled at once, but never within the handling of another message, so that
    /// chains of them do not pile up on the stack.
    pub(crate) fn send(self: &Rc<Self>, to: ReactorId, message: Message) {
        if to != self.me {
            return self.mesh.send(to, message);
        }
        self.to_self.borrow_mut().push_back(message);
        if self.draining.replace(true) {
            return;
        }
        if !self.drain(DRAIN) {
            // A request for thousands of locks is a chain of messages: the rest goes on when others had their turn.
            let reactor = self.clone();
            spawn(Class::Request, "to self", async move {
                yield_now().await;
                while !reactor.drain(DRAIN) {
                    yield_now().await;
                }
            })
            .detach();
        }
    }

    /// Handles at most so many messages to this reactor; true when none is left.
    fn drain(self: &Rc<Self>, most: usize) -> bool {
        for _ in 0..most {
            let next = self.to_self.borrow_mut().pop_front();
            match next {
                Some(message) => self.handle(message),
                None => {
                    self.draining.set(false);
                    return true;
                }
            }
        }
        false
    }

    /// Asks a reactor; an answer that will not come says that it has stopped.
    pub(crate) fn ask(self: &Rc<Self>, to: ReactorId, ask: Ask) -> impl Future<Output = Answer> + use<> {
        let (message, answer) = self.mesh.begin_ask(ask);
        self.send(to, message);
        async move { answer.await.unwrap_or_else(|_| Answer::Refused("the reactor has stopped".into())) }
    }

    fn handle(self: &Rc<Self>, message: Message) {
        self.table.borrow_mut().at(Time(now().0));
        match message {
            Message::Lock { rid, request, want } => self.on_tables(Some(rid), Step::Lock { request, want }),
            Message::Invalidated { rid, name } => self.on_tables(Some(rid), Step::Invalidated { name }),
            Message::Recovered => self.on_tables(None, Step::Recovered),
            Message::Adopt { tx, rx, who } => self.adopt(tx, rx, *who),
            Message::File { rid, request, ino, op } => self.file_op(rid, request, ino, op),
            Message::FileDeadlock { ino, id } => self.file_deadlock(ino, id),
            Message::FileWaits { changes, then } => self.file_waits(changes, then),
            Message::FileAnswered { rid, request, response } => self.file_answered(rid, request, response),
            Message::FileEnded { rid, ticket, outcome } => self.file_ended(rid, ticket, outcome),
            Message::Granted { rid, request, grant, opens } => self.granted(rid, request, grant, opens),
            Message::LockFailed { rid, request, message } => self.lock_failed(rid, request, message),
            Message::Invalidate { rid, name, mode } => self.invalidate(rid, name, mode),
            Message::Returned { rid } => self.returned(rid),
            Message::WorkerUp { hand, identity } => self.worker_up(hand, identity),
            Message::WorkerDown { rid } => self.crew.down(rid),
            Message::WorkerQuiet { rid } => self.worker_quiet(rid),
            Message::Ask { token, from, ask } => self.answer(token, from, ask),
            Message::Answer { token, answer } => self.mesh.answered(token, answer),
        }
    }

    fn answer(self: &Rc<Self>, token: u64, from: ReactorId, ask: Ask) {
        let caller = Caller { token, from };
        let answer = match ask {
            Ask::Unlock { rid, to } => return self.on_tables(Some(rid), Step::Unlock { to, caller }),
            Ask::Reassert { rid, grants } => return self.on_tables(Some(rid), Step::Reassert { grants, caller }),
            Ask::Release { rid } => return self.on_tables(Some(rid), Step::Release { caller }),
            Ask::ReassertFiles { rid, locks, opens } => self.reassert_files_here(rid, locks, opens),
            Ask::Opened { rid, inos } => self.opened_here(rid, &inos),
            Ask::Closed { rid, inos } => {
                self.opens.borrow_mut().closed(rid, &inos);
                Answer::Done
            }
            Ask::Openers { rid, inos } => self.openers_here(rid, &inos),
            Ask::KeepBack => self.keep_back(),
            Ask::TakeTables(tables) => self.put_tables(*tables),
            Ask::GoOn => self.go_on_sending(),
            Ask::Status => Answer::Status(self.status_here()),
            Ask::Admin(what) => self.admin_here(what),
            Ask::Reclaim { rid, why } => {
                self.reclaim_absent(rid, why);
                Answer::Done
            }
            Ask::Distrust { rid, why } => {
                self.distrust(rid, &why);
                Answer::Done
            }
            Ask::ReclaimWorker { rid } => {
                self.reclaim_old_worker_here(rid);
                Answer::Done
            }
            later @ (Ask::Job { .. } | Ask::Quiet { .. }) => return answer_later(self, token, from, later),
            Ask::Stop => {
                let reactor = self.clone();
                spawn(Class::Request, "stop", async move {
                    reactor.stop_here().await;
                    reactor.send(from, Message::Answer { token, answer: Answer::Done });
                })
                .detach();
                return;
            }
        };
        self.send(from, Message::Answer { token, answer });
    }

    fn tell_durable(&self, epoch: Epoch) {
        let waiting: Vec<Rid> = self.undurable.borrow().iter().copied().collect();
        for rid in waiting {
            let client = self.clients.borrow().get(&rid).cloned();
            let Some(client) = client else {
                self.undurable.borrow_mut().remove(&rid);
                continue;
            };
            if client.note_durable(epoch) {
                client.session.set_durable(epoch, true);
            }
            if client.undurable.borrow().is_empty() {
                self.undurable.borrow_mut().remove(&rid);
            }
        }
    }

    /// Ends every session of the node (the clients come back to the next leader), lets the store finish what it has
    /// begun, and closes it.
    pub async fn shutdown(self: &Rc<Self>) -> Result<(), vellum_wire::WireError> {
        for reactor in self.mesh.all() {
            self.ask(reactor, Ask::Stop).await;
        }
        self.backend.shutdown().await
    }

    async fn stop_here(self: &Rc<Self>) {
        self.stopping.set(true);
        self.acceptors.borrow_mut().clear();
        if let Some(task) = self.metrics.borrow_mut().take() {
            task.cancel();
        }
        let clients: Vec<Rc<Client>> = self.clients.borrow_mut().values().cloned().collect();
        for client in &clients {
            client.session.end();
        }
        for client in clients {
            client.commits.settled(vellum_base::BatchNo(u64::MAX)).await;
            client.commits.stop();
        }
        self.clients.borrow_mut().clear();
    }

    /// The client, unless it is gone.
    pub(crate) fn client(&self, rid: Rid) -> Option<Rc<Client>> {
        self.clients.borrow().get(&rid).cloned()
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.acceptors.borrow().iter().map(|acceptor| acceptor.local_endpoint().clone()).collect()
    }
}
