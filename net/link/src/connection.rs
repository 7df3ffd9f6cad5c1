//! A client's connection to the engine.
//!
//! A task per socket receives, one sends, one keeps the timers; what they mean is in [`ClientSession`]. Sockets come and
//! go without the callers noticing; a new term is noticed through the [`NewTermHook`].
//!
//! Order: calls leave in the order in which they were made (`Lock` and `Unlock` among each other, the rest among each
//! other). What arrives is handed over in the order of arrival: observers of replies and the synchronous part of the
//! handler (what it does before it returns its future) run one after the other, so that a client that keeps its lock
//! table there sees grants and invalidations in the engine's order (N3).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{DmaSlice, Epoch, Fsid, Rid};
use vellum_keys::Keys;
use vellum_proto::channel::Urgency;
use vellum_proto::{ClientEvent, ClientSession, Time, Timers};
use vellum_rt::local::{Event, Notify};
use vellum_rt::net::{Endpoint, Stream};
use vellum_rt::{Class, Instant, JoinHandle, now, random_u64, spawn, timeout};
use vellum_wire::{Frame, Greeted, MAX_CONTROL, MAX_PAYLOAD, Request, Response};

use crate::LocalBoxFuture;
use crate::calls::{Calls, Observer, PendingCall, Reply};
use crate::dial::{Rotation, dial_any};
use crate::error::{LinkError, SocketError};
use crate::in_process::InProcessDialer;
use crate::socket::{Socket, TlsSocket};
use crate::tls::TlsStream;

/// Where the engine is.
#[derive(Clone, Debug)]
pub enum Address {
    Net(Endpoint),
    /// The members of a cluster: one of them leads, and another one may at any time.
    AnyOf(Vec<Endpoint>),
    InProcess(InProcessDialer),
}

impl From<Vec<Endpoint>> for Address {
    fn from(mut endpoints: Vec<Endpoint>) -> Address {
        match (endpoints.len(), endpoints.pop()) {
            (1, Some(one)) => Address::Net(one),
            (_, last) => {
                endpoints.extend(last);
                Address::AnyOf(endpoints)
            }
        }
    }
}

/// Who the client is. `fsid` none: whatever is served.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub rid: Rid,
    pub fsid: Option<Fsid>,
}

#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub timers: Timers,
    /// [`Connection::open`] gives up after this; none: it tries for ever.
    pub open_within: Option<Duration>,
    /// With keys every TCP socket is TLS; without, TCP goes no further than loopback.
    pub keys: Option<Arc<Keys>>,
    /// Plain TCP to anywhere. For simulations: no command sets it.
    pub insecure_network: bool,
    /// What the greetings say besides: see `vellum_wire::Greeting::worker_flags`.
    pub flags: u32,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            timers: Timers::DEFAULT,
            open_within: Some(Duration::from_secs(10)),
            keys: None,
            insecure_network: false,
            flags: 0,
        }
    }
}

/// Answers requests of the engine (`Invalidate`).
pub type Handler = Rc<dyn Fn(Request) -> LocalBoxFuture<Response>>;

/// Lock recovery after a change of leader: see `Request::Reassert` for what it must send, with
/// [`Connection::call_recovery`]. Ordinary calls wait until its future is done. It is dropped and called again when the
/// term ends before it is done.
pub type NewTermHook = Rc<dyn Fn(Greeted) -> LocalBoxFuture<()>>;

/// Most calls that may be open; beyond it callers are told instead of queued.
const MAX_CALLS: usize = 65_536;

struct Core {
    address: Address,
    rotation: Rotation,
    rid: Rid,
    options: ConnectOptions,
    session: RefCell<ClientSession>,
    calls: Calls,
    handler: RefCell<Option<Handler>>,
    new_term: RefCell<Option<NewTermHook>>,
    /// Tasks of the current socket, and lock recovery.
    socket: RefCell<Vec<JoinHandle<()>>>,
    recovery: RefCell<Option<JoinHandle<()>>>,
    transmit: Notify,
    timer: Notify,
    durable: Notify,
    /// Set when the first greeting was answered, or never will be.
    opened: Event,
    closed: RefCell<Option<LinkError>>,
    /// Why the last socket ended.
    last_error: RefCell<Option<String>>,
    socket_number: Cell<u64>,
    attempts: Cell<u64>,
}

/// See the module's text. Dropping it ends the connection without a farewell; calls that are still open fail.
pub struct Connection {
    core: Rc<Core>,
    timer_task: JoinHandle<()>,
}

fn time() -> Time {
    Time(now().0)
}

impl Connection {
    /// Connects and greets. On return the engine knows this client.
    pub async fn open(
        address: Address,
        identity: Identity,
        options: ConnectOptions,
    ) -> Result<Rc<Connection>, LinkError> {
        let session = ClientSession::new(identity.rid, identity.fsid, options.timers, random_u64(), time())
            .with_flags(options.flags);
        let open_within = options.open_within;
        let core = Rc::new(Core {
            address,
            rotation: Rotation::default(),
            rid: identity.rid,
            options,
            session: RefCell::new(session),
            calls: Calls::default(),
            handler: RefCell::new(None),
            new_term: RefCell::new(None),
            socket: RefCell::new(Vec::new()),
            recovery: RefCell::new(None),
            transmit: Notify::new(),
            timer: Notify::new(),
            durable: Notify::new(),
            opened: Event::new(),
            closed: RefCell::new(None),
            last_error: RefCell::new(None),
            socket_number: Cell::new(0),
            attempts: Cell::new(0),
        });
        let timer_task = spawn(Class::Request, "link timers", run_timers(core.clone()));
        let connection = Rc::new(Connection { core: core.clone(), timer_task });
        match open_within {
            Some(limit) => timeout(limit, core.opened.wait()).await.map_err(|_| {
                let last = core.last_error.borrow();
                tracing::warn!(rid = %core.rid, error = last.as_deref().unwrap_or("no answer"), "the last attempt to connect");
                LinkError::TimedOut
            })?,
            None => core.opened.wait().await,
        }
        let closed = core.closed.borrow().clone();
        closed.map_or(Ok(connection), Err)
    }

    /// Sends a request; the reply comes whatever happens to sockets and leaders in between. The request is queued by the
    /// call itself, not by the first poll. An error response of the engine is [`LinkError::Remote`].
    pub fn call(&self, request: Request, payload: Option<DmaSlice>) -> PendingCall {
        self.start(request, payload, Urgency::Normal, None)
    }

    /// [`Self::call`], and `observer` looks at the reply at the moment when it arrives: before any later message of the
    /// engine is handed over. It must not block; it may make calls. Whoever waits for a lock begins to use it here: an
    /// invalidation may follow at once, and a user that counts only when its task runs may lose the lock every time.
    pub fn call_observed(
        &self,
        request: Request,
        payload: Option<DmaSlice>,
        observer: impl FnOnce(&Result<Reply, LinkError>) + 'static,
    ) -> PendingCall {
        self.start(request, payload, Urgency::Normal, Some(Box::new(observer)))
    }

    /// A call that passes while ordinary ones wait for lock recovery; only for the [`NewTermHook`]. It fails with
    /// [`LinkError::Interrupted`] when the term ends.
    pub fn call_recovery(&self, request: Request, payload: Option<DmaSlice>) -> PendingCall {
        self.start(request, payload, Urgency::Recovery, None)
    }

    fn start(
        &self,
        request: Request,
        payload: Option<DmaSlice>,
        urgency: Urgency,
        observer: Option<Observer>,
    ) -> PendingCall {
        PendingCall::from(self.core.start(request, payload, urgency, observer))
    }

    /// Requests of the engine go to `handler` from now on; before that they are answered with an error.
    pub fn set_handler(&self, handler: Handler) {
        *self.core.handler.borrow_mut() = Some(handler);
    }

    pub fn on_new_term(&self, hook: NewTermHook) {
        *self.core.new_term.borrow_mut() = Some(hook);
    }

    /// What the engine said to the last greeting.
    pub fn greeting(&self) -> Greeted {
        // `open` returns a connection only after the first one.
        self.core.session.borrow().greeted().cloned().expect("greeted before it was handed out")
    }

    pub fn rid(&self) -> Rid {
        self.core.rid
    }

    /// The newest durable epoch that any frame has told.
    pub fn durable_epoch(&self) -> Epoch {
        self.core.session.borrow().durable()
    }

    /// Waits until [`Self::durable_epoch`] is greater than `known`; an error when the connection is closed.
    pub async fn wait_durable_advance(&self, known: Epoch) -> Result<Epoch, LinkError> {
        loop {
            let advanced = self.core.durable.notified();
            if let Some(why) = self.core.closed.borrow().clone() {
                return Err(why);
            }
            let durable = self.durable_epoch();
            if durable > known {
                return Ok(durable);
            }
            advanced.await;
        }
    }

    /// Until when what locks cover may be used; in the past when the engine was not heard of for too long.
    pub fn lease_valid_until(&self) -> Instant {
        Instant(self.core.session.borrow().lease_valid_until().0)
    }

    pub fn is_up(&self) -> bool {
        self.core.session.borrow().is_up()
    }

    /// Why no call will be answered any more; none while there is hope.
    pub fn closed(&self) -> Option<LinkError> {
        self.core.closed.borrow().clone()
    }

    /// Sockets that were tried, for status pages and tests.
    pub fn attempts(&self) -> u64 {
        self.core.attempts.get()
    }

    /// The last call: everything that this client holds is given up. Returns when the engine has confirmed it, or
    /// cannot know of it any more.
    pub async fn farewell(&self) -> Result<(), LinkError> {
        match self.call(Request::Farewell, None).await {
            Ok(_) | Err(LinkError::Closed) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Ends the connection without a farewell; calls that are still open fail with [`LinkError::Closed`].
    pub fn close(&self) {
        self.core.session.borrow_mut().abandon();
        self.core.handle_events();
    }

    /// Breaks the current socket, as a failing network would; the session goes on with the next. For tests.
    pub fn break_socket(&self) {
        self.core.drop_socket();
        self.core.session.borrow_mut().handle_disconnect(time());
        self.core.timer.notify_one();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.timer_task.cancel();
        self.core.session.borrow_mut().abandon();
        self.core.handle_events();
    }
}

impl Core {
    fn start(
        &self,
        request: Request,
        payload: Option<DmaSlice>,
        urgency: Urgency,
        observer: Option<Observer>,
    ) -> Result<vellum_rt::local::OneshotReceiver<Result<Reply, LinkError>>, LinkError> {
        if let Some(why) = self.closed.borrow().clone() {
            return Err(why);
        }
        let limit = |len: usize, max: usize| if len > max { Err(LinkError::TooLong { len, max }) } else { Ok(()) };
        limit(request.control_len(), MAX_CONTROL)?;
        limit(payload.as_ref().map_or(0, |p| p.len()), MAX_PAYLOAD)?;
        let open = self.calls.len();
        if open >= MAX_CALLS {
            return Err(LinkError::TooManyCalls { open });
        }
        let id = self.session.borrow_mut().request(request, payload, urgency);
        let receiver = self.calls.add(id, observer);
        self.transmit.notify_one();
        Ok(receiver)
    }

    fn drop_socket(&self) {
        self.socket_number.set(self.socket_number.get() + 1);
        for task in self.socket.borrow_mut().drain(..) {
            task.cancel();
        }
    }

    /// One input of the session and what follows from it.
    fn input(self: &Rc<Self>, input: impl FnOnce(&mut ClientSession)) {
        input(&mut self.session.borrow_mut());
        self.handle_events();
    }

    fn handle_events(self: &Rc<Self>) {
        loop {
            let event = self.session.borrow_mut().poll_event();
            let Some(event) = event else { break };
            match event {
                ClientEvent::Connect => self.connect(),
                ClientEvent::Disconnect => self.drop_socket(),
                ClientEvent::Up { greeted, new_term, first } => {
                    tracing::debug!(rid = %self.rid, term = %greeted.term, new_term, "up");
                    self.rotation.greeted();
                    self.opened.set();
                    if new_term && !first {
                        self.recover(greeted);
                    }
                }
                ClientEvent::Request { token, request, .. } => {
                    let handler = self.handler.borrow().clone();
                    // Its synchronous part runs here, in the order of arrival.
                    let answer = handler.map(|handler| handler(std::sync::Arc::unwrap_or_clone(request)));
                    let core = self.clone();
                    spawn(Class::Request, "link handler", async move {
                        let response = match answer {
                            Some(answer) => answer.await,
                            None => Response::error(vellum_wire::ErrorCode::Unsupported, "no handler"),
                        };
                        core.session.borrow_mut().respond(token, response);
                        core.transmit.notify_one();
                    })
                    .detach();
                }
                ClientEvent::Response { id, response, payload } => self.calls.resolve(id, response, payload),
                ClientEvent::Interrupted { id } => self.calls.finish(id, Err(LinkError::Interrupted)),
                ClientEvent::Durable(_) => self.durable.notify_all(),
                ClientEvent::Closed(why) => self.close(LinkError::from(why)),
            }
        }
        self.transmit.notify_one();
        self.timer.notify_one();
    }

    fn close(&self, error: LinkError) {
        tracing::debug!(rid = %self.rid, ?error, "closed");
        let error = self.closed.borrow_mut().get_or_insert(error).clone(); // the first reason is the reason
        if let Some(recovery) = self.recovery.borrow_mut().take() {
            recovery.cancel();
        }
        self.calls.fail_all(&error);
        self.opened.set();
        self.durable.notify_all();
    }

    fn recover(self: &Rc<Self>, greeted: Greeted) {
        let hook = self.new_term.borrow().clone();
        let core = self.clone();
        let task = spawn(Class::Request, "lock recovery", async move {
            if let Some(hook) = hook {
                hook(greeted).await;
            }
            core.session.borrow_mut().recovered();
            core.transmit.notify_one();
        });
        if let Some(before) = self.recovery.borrow_mut().replace(task) {
            before.cancel();
        }
    }

    fn connect(self: &Rc<Self>) {
        self.drop_socket();
        self.attempts.set(self.attempts.get() + 1);
        let task = spawn(Class::Request, "link socket", run_socket(self.clone(), self.socket_number.get()));
        self.socket.borrow_mut().push(task);
    }

    fn next_frame(&self, number: u64) -> Option<Frame> {
        if self.socket_number.get() != number {
            return None;
        }
        self.session.borrow_mut().poll_transmit()
    }
}

async fn run_timers(core: Rc<Core>) {
    loop {
        let changed = core.timer.notified();
        let next = core.session.borrow().next_timeout();
        match next {
            Some(at) => {
                let _ = timeout(at - time(), changed).await;
            }
            None => changed.await,
        }
        let due = core.session.borrow().next_timeout().is_some_and(|at| at <= time());
        if due {
            core.input(|session| session.handle_timeout(time()));
        }
    }
}

async fn dial(core: &Core) -> Result<Socket, SocketError> {
    match &core.address {
        Address::AnyOf(endpoints) => {
            endpoints.iter().try_for_each(|endpoint| check_reach(endpoint, &core.options))?;
            let (endpoint, stream) = dial_any(endpoints, &core.rotation, core.options.timers.connect_attempt).await?;
            secure(endpoint, stream, &core.options).await
        }
        Address::Net(endpoint) => {
            check_reach(endpoint, &core.options)?;
            secure(endpoint, Stream::connect(endpoint).await?, &core.options).await
        }
        Address::InProcess(dialer) => dialer.dial(core.rid).await,
    }
}

/// Plain TCP goes no further than loopback.
fn check_reach(endpoint: &Endpoint, options: &ConnectOptions) -> Result<(), SocketError> {
    match endpoint {
        Endpoint::Tcp(addr) if options.keys.is_none() && !addr.ip().is_loopback() && !options.insecure_network => {
            Err(SocketError::NoKeys { endpoint: endpoint.to_string() })
        }
        _ => Ok(()),
    }
}

async fn secure(endpoint: &Endpoint, stream: Stream, options: &ConnectOptions) -> Result<Socket, SocketError> {
    match (endpoint, &options.keys) {
        (Endpoint::Tcp(addr), Some(keys)) => {
            let stream = TlsStream::connect(stream, addr.ip(), keys.client()).await?;
            Ok(Socket::Tls(TlsSocket(Rc::new(stream))))
        }
        _ => Ok(Socket::Stream(stream)),
    }
}

/// The life of one socket: until it breaks, or until it is cancelled because the session dropped it.
async fn run_socket(core: Rc<Core>, number: u64) {
    if let Err(error) = carry(&core, number).await {
        tracing::debug!(rid = %core.rid, %error, "socket ended");
        *core.last_error.borrow_mut() = Some(error.to_string());
        if error.is_about_trust() && core.socket_number.get() == number {
            if !core.opened.is_set() {
                core.close(LinkError::NotTrusted(error.to_string()));
                return core.input(ClientSession::abandon);
            }
            // Keys are renewed now and then: a client that was believed once goes on trying.
            tracing::warn!(rid = %core.rid, %error, "the engine does not believe us, or we don't believe it");
        }
    }
    if core.socket_number.get() == number {
        core.drop_socket();
        core.input(|session| session.handle_disconnect(time()));
    }
}

async fn carry(core: &Rc<Core>, number: u64) -> Result<(), SocketError> {
    let (mut reader, mut writer, guard) = dial(core).await?.split();
    writer.set_stall(core.options.timers.send_stall);
    core.input(|session| session.handle_connected(time()));
    let sender = spawn(Class::Request, "link sender", {
        let core = core.clone();
        async move {
            let _guard = guard; // a sender that fails ends the receiver too
            while core.socket_number.get() == number {
                let more = core.transmit.notified();
                if writer.send(|| core.next_frame(number)).await.is_err() {
                    break;
                }
                more.await;
            }
        }
    });
    core.socket.borrow_mut().push(sender);
    let mut greeted = false;
    loop {
        let frame = if greeted { reader.recv().await? } else { reader.recv_greeting().await? };
        greeted = true;
        let mut verdict = Ok(());
        core.input(|session| verdict = session.handle_frame(time(), frame));
        verdict?;
    }
}
