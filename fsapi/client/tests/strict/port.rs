//! The connection to the fake engine: ordered both ways, with random delays, lost and reopened by a crash.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use vellum_base::{DmaSlice, Epoch, Rid, Term};
use vellum_wire::{Greeted, LockGrant, LockMode, LockName, Request, Response};

use vellum_client::ClientError;
use vellum_client::port::{CallFuture, LocalBoxFuture, Port, Reply, Upcalls};

use super::{FakeEngine, Signal, spawn};

enum ToEngine {
    Request(u64, Request, Option<DmaSlice>),
    Invalidated(LockName, LockMode),
}

enum ToClient {
    Reply(u64, Response, Option<DmaSlice>),
    Invalidate(LockName, LockMode),
    Durable,
}

/// Each message also carries the term and the durable epoch.
type Stamp = (Term, Epoch);

struct Outstanding {
    request: Request,
    payload: Option<DmaSlice>,
    recovering: bool,
    slot: Rc<RefCell<Option<Result<Reply, ClientError>>>>,
}

pub(crate) struct FakePort {
    engine: Rc<FakeEngine>,
    rid: Rid,
    me: Weak<FakePort>,
    next_seq: Cell<u64>,
    outstanding: RefCell<BTreeMap<u64, Outstanding>>,
    to_engine: RefCell<VecDeque<ToEngine>>,
    to_client: RefCell<VecDeque<(ToClient, Stamp)>>,
    /// Counts sockets: whatever belongs to an older one is void.
    socket: Cell<u64>,
    up: Cell<bool>,
    greeted: RefCell<Greeted>,
    durable: Cell<Stamp>,
    closed: RefCell<Option<ClientError>>,
    upcalls: RefCell<Option<Rc<dyn Upcalls>>>,
    changed: Signal,
}

impl FakePort {
    pub fn new(engine: Rc<FakeEngine>, rid: Rid) -> Rc<FakePort> {
        let greeted = engine.greeted(rid);
        Rc::new_cyclic(|me| FakePort {
            rid,
            me: me.clone(),
            next_seq: Cell::new(1),
            outstanding: RefCell::default(),
            to_engine: RefCell::default(),
            to_client: RefCell::default(),
            socket: Cell::new(0),
            up: Cell::new(false),
            durable: Cell::new((greeted.term, greeted.durable)),
            greeted: RefCell::new(greeted),
            closed: RefCell::default(),
            upcalls: RefCell::default(),
            changed: Signal::default(),
            engine,
        })
    }

    pub fn rid(&self) -> Rid {
        self.rid
    }

    fn rc(&self) -> Rc<FakePort> {
        self.me.upgrade().expect("methods are called on a living port")
    }

    /// A new socket, with a task for each direction.
    pub fn open(&self) {
        self.socket.set(self.socket.get() + 1);
        self.up.set(true);
        spawn("to engine", pump_to_engine(self.rc(), self.socket.get()));
        spawn("to client", pump_to_client(self.rc(), self.socket.get()));
    }

    /// The leader is gone.
    pub fn lose(self: &Rc<Self>) {
        self.socket.set(self.socket.get() + 1);
        self.up.set(false);
        self.to_engine.borrow_mut().clear();
        self.to_client.borrow_mut().clear();
        let lost = ClientError::Connection("lost".into());
        self.outstanding.borrow_mut().retain(|_, o| {
            if o.recovering {
                *o.slot.borrow_mut() = Some(Err(lost.clone()));
            }
            !o.recovering
        });
        self.changed.wake_all();
        let (port, socket) = (self.clone(), self.socket.get());
        spawn("reconnect", async move {
            vellum_rt::sleep(port.engine.latency() * 20).await;
            if port.socket.get() == socket && port.closed.borrow().is_none() {
                port.greet_again().await;
            }
        });
    }

    async fn greet_again(self: &Rc<Self>) {
        let greeted = self.engine.greeted(self.rid);
        self.durable.set((greeted.term, greeted.durable));
        *self.greeted.borrow_mut() = greeted.clone();
        self.open();
        self.up.set(false); // ordinary requests wait
        let socket = self.socket.get();
        let upcalls = self.upcalls.borrow().clone();
        if let Some(upcalls) = upcalls {
            let mut recovery = pin!(upcalls.new_term(greeted));
            let recovered = poll_fn(|cx| {
                if self.socket.get() != socket {
                    return Poll::Ready(Err(ClientError::Connection("lost".into())));
                }
                recovery.as_mut().poll(cx)
            });
            // The leader may be lost while nobody polls us: be woken then too.
            let watch = self.changed.until(|| (self.socket.get() != socket).then_some(()));
            let (mut recovered, mut watch) = (pin!(recovered), pin!(watch));
            let result = poll_fn(|cx| {
                let _ = watch.as_mut().poll(cx);
                recovered.as_mut().poll(cx)
            })
            .await;
            if result.is_err() {
                return;
            }
        }
        self.up.set(true);
        self.engine.recovering.borrow_mut().remove(&self.rid);
        self.engine.changed.wake_all();
        let again: Vec<_> = {
            let outstanding = self.outstanding.borrow();
            outstanding.iter().map(|(seq, o)| ToEngine::Request(*seq, o.request.clone(), o.payload.clone())).collect()
        };
        self.to_engine.borrow_mut().extend(again);
        self.changed.wake_all();
    }

    pub fn shut(&self, why: ClientError) {
        self.closed.borrow_mut().get_or_insert(why.clone());
        self.socket.set(self.socket.get() + 1);
        self.up.set(false);
        self.to_client.borrow_mut().clear();
        self.to_engine.borrow_mut().clear();
        let outstanding = std::mem::take(&mut *self.outstanding.borrow_mut());
        for o in outstanding.into_values() {
            *o.slot.borrow_mut() = Some(Err(why.clone()));
        }
        self.changed.wake_all();
        let upcalls = self.upcalls.borrow_mut().take();
        if let Some(upcalls) = upcalls {
            upcalls.closed(why);
        }
    }

    fn stamp(&self) -> Stamp {
        let state = self.engine.state.borrow();
        (state.term, state.durable)
    }

    fn push_to_client(&self, message: ToClient) {
        let stamp = self.stamp();
        self.to_client.borrow_mut().push_back((message, stamp));
        self.changed.wake_all();
    }

    pub fn reply(&self, seq: u64, body: Response, payload: Option<DmaSlice>) {
        self.push_to_client(ToClient::Reply(seq, body, payload));
    }

    pub fn invalidate(&self, name: LockName, to: LockMode) {
        self.push_to_client(ToClient::Invalidate(name, to));
    }

    pub fn tell_durable(&self) {
        self.push_to_client(ToClient::Durable);
    }

    fn send(&self, request: Request, payload: Option<DmaSlice>, recovering: bool) -> CallFuture {
        if let Some(why) = self.closed.borrow().clone() {
            return Box::pin(async move { Err(why) });
        }
        let seq = self.next_seq.replace(self.next_seq.get() + 1);
        let slot = Rc::new(RefCell::new(None));
        if self.up.get() || recovering {
            let message = ToEngine::Request(seq, request.clone(), payload.clone());
            self.to_engine.borrow_mut().push_back(message);
        }
        let outstanding = Outstanding { request, payload, recovering, slot: slot.clone() };
        self.outstanding.borrow_mut().insert(seq, outstanding);
        self.changed.wake_all();
        let port = self.rc();
        Box::pin(async move { port.changed.until(|| slot.borrow_mut().take()).await })
    }

    fn deliver(self: &Rc<Self>, message: ToClient, stamp: Stamp) {
        self.durable.set(stamp);
        match message {
            ToClient::Durable => {}
            ToClient::Reply(seq, body, payload) => {
                if let Some(o) = self.outstanding.borrow_mut().remove(&seq) {
                    *o.slot.borrow_mut() = Some(Ok(Reply { body, payload, term: stamp.0 }));
                }
            }
            ToClient::Invalidate(name, mode) => {
                let (port, socket, upcalls) = (self.clone(), self.socket.get(), self.upcalls.borrow().clone());
                spawn("invalidate handler", async move {
                    if let Some(upcalls) = upcalls {
                        upcalls.invalidate(name, mode).await;
                    }
                    if port.socket.get() == socket {
                        port.to_engine.borrow_mut().push_back(ToEngine::Invalidated(name, mode));
                        port.changed.wake_all();
                    }
                });
            }
        }
        self.changed.wake_all();
    }
}

async fn pump_to_engine(port: Rc<FakePort>, socket: u64) {
    loop {
        let ready = || (port.socket.get() != socket || !port.to_engine.borrow().is_empty()).then_some(());
        port.changed.until(ready).await;
        let latency = port.engine.latency();
        vellum_rt::sleep(latency).await;
        if port.socket.get() != socket {
            return;
        }
        // What has queued up meanwhile travels together.
        let messages = std::mem::take(&mut *port.to_engine.borrow_mut());
        for message in messages {
            match message {
                ToEngine::Request(seq, request, payload) => port.engine.handle(&port, seq, request, payload),
                ToEngine::Invalidated(name, mode) => port.engine.invalidated(port.rid, name, mode),
            }
        }
    }
}

async fn pump_to_client(port: Rc<FakePort>, socket: u64) {
    loop {
        let ready = || (port.socket.get() != socket || !port.to_client.borrow().is_empty()).then_some(());
        port.changed.until(ready).await;
        let latency = port.engine.latency();
        vellum_rt::sleep(latency).await;
        if port.socket.get() != socket {
            return;
        }
        let messages = std::mem::take(&mut *port.to_client.borrow_mut());
        for (message, stamp) in messages {
            port.deliver(message, stamp);
        }
    }
}

impl Port for FakePort {
    fn call(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        self.send(request, payload, false)
    }

    fn call_recovering(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        self.send(request, payload, true)
    }

    fn recover_locks(&self, held: Vec<LockGrant>) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        self.engine.reassert(self.rid, &held);
        Box::pin(async { Ok(()) })
    }

    fn greeted(&self) -> Greeted {
        self.greeted.borrow().clone()
    }

    fn durable(&self) -> (Term, Epoch) {
        self.durable.get()
    }

    fn wait_advance(&self, seen: (Term, Epoch)) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let port = self.rc();
        Box::pin(async move {
            port.changed
                .until(|| match &*port.closed.borrow() {
                    Some(why) => Some(Err(why.clone())),
                    None => (port.durable.get() != seen).then_some(Ok(())),
                })
                .await
        })
    }

    fn lease_left(&self) -> std::time::Duration {
        std::time::Duration::from_secs(if self.closed.borrow().is_none() { 10 } else { 0 })
    }

    fn wait_lease(&self) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let why = self.closed.borrow().clone();
        Box::pin(async move { why.map_or(Ok(()), Err) })
    }

    fn set_upcalls(&self, upcalls: Rc<dyn Upcalls>) {
        *self.upcalls.borrow_mut() = Some(upcalls);
    }

    fn close(&self) {
        self.shut(ClientError::Stopped);
    }
}
