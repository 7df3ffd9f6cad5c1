//! The engine's side of one client's connection: see [`ServerSession`] for what it means.
//!
//! The handler is called in the order of arrival and answers through the [`Responder`], at once or later, in any order.
//! What has to be done in order (commits of a rid, requests for one lock) must be queued by it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vellum_base::{DmaSlice, Epoch, Rid, Term};
use vellum_proto::server::ServerEvent;
use vellum_proto::{ServerSession, Time, Timers, Token, Window};
use vellum_rt::local::Notify;
use vellum_rt::{Class, JoinHandle, now, spawn, timeout, yield_if_needed};
use vellum_wire::{ErrorCode, Frame, Greeted, Greeting, MAX_CONTROL, MAX_PAYLOAD, Refusal, Request, Response};

use crate::calls::{Calls, PendingCall};
use crate::error::{LinkError, SocketError};
use crate::socket::{FrameReader, FrameWriter, ShutdownOnDrop};

/// Takes a client's request.
pub type SessionHandler = Rc<dyn Fn(Request, Option<DmaSlice>, Responder)>;

/// The way back to the one who asked. Dropped without an answer it says [`ErrorCode::Interrupted`].
pub struct Responder {
    session: Rc<Session>,
    token: Option<Token>,
}

impl Responder {
    /// Queues the response: behind everything that was queued for this client before, before everything after.
    pub fn send(mut self, response: Response, payload: Option<DmaSlice>) {
        self.answer(response, payload);
    }

    pub fn fail(self, code: ErrorCode, message: impl Into<String>) {
        self.send(Response::error(code, message), None);
    }

    fn answer(&mut self, response: Response, payload: Option<DmaSlice>) {
        if let Some(token) = self.token.take()
            && !self.session.ended.get()
        {
            let (response, payload) = bounded((response, payload));
            self.session.proto.borrow_mut().respond(token, response, payload);
            self.session.transmit.notify_one();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.token.is_some() {
            self.answer(Response::error(ErrorCode::Interrupted, "the request was dropped"), None);
        }
    }
}

pub struct Session {
    rid: Rid,
    stall: std::time::Duration,
    proto: RefCell<ServerSession>,
    handler: RefCell<Option<SessionHandler>>,
    expired: RefCell<Option<Box<dyn FnOnce()>>>,
    calls: Calls,
    socket: RefCell<Vec<JoinHandle<()>>>,
    socket_number: Cell<u64>,
    timer_task: RefCell<Option<JoinHandle<()>>>,
    transmit: Notify,
    timer: Notify,
    /// Of the one who waits for the loss of the socket.
    lost: Notify,
    ended: Cell<bool>,
}

fn time() -> Time {
    Time(now().0)
}

impl Session {
    /// A session of a rid in this term, without a socket. `expired` is called once when the client did not come back
    /// within the reconnect window (or was evicted, and its lease is over).
    pub fn new(
        rid: Rid,
        term: Term,
        window: Window,
        timers: Timers,
        handler: SessionHandler,
        expired: impl FnOnce() + 'static,
    ) -> Rc<Session> {
        let session = Rc::new(Session {
            rid,
            stall: timers.send_stall,
            proto: RefCell::new(ServerSession::new(rid, term, window, timers, time())),
            handler: RefCell::new(Some(handler)),
            expired: RefCell::new(Some(Box::new(expired))),
            calls: Calls::default(),
            socket: RefCell::new(Vec::new()),
            socket_number: Cell::new(0),
            timer_task: RefCell::new(None),
            transmit: Notify::new(),
            timer: Notify::new(),
            lost: Notify::new(),
            ended: Cell::new(false),
        });
        *session.timer_task.borrow_mut() = Some(spawn(Class::Request, "session timers", run_timers(session.clone())));
        session
    }

    /// Keepalives are the handler's to answer from now on.
    pub fn leave_keepalives(&self) {
        self.proto.borrow_mut().leave_keepalives();
    }

    /// A socket on which this rid has greeted takes the place of the one before. `ack` is the greeting frame's. The
    /// socket comes back with the refusal.
    pub fn attach(
        self: &Rc<Self>,
        reader: FrameReader,
        mut writer: FrameWriter,
        guard: ShutdownOnDrop,
        (greeting, ack): (&Greeting, u64),
        greeted: Greeted,
    ) -> Result<(), (Refusal, FrameWriter, ShutdownOnDrop)> {
        if self.ended.get() {
            return Err((Refusal::Fenced, writer, guard));
        }
        let verdict = self.proto.borrow_mut().attach(time(), greeting, ack, greeted);
        if let Err(refusal) = verdict {
            return Err((refusal, writer, guard));
        }
        self.drop_socket();
        writer.set_stall(self.stall);
        let number = self.socket_number.get();
        let sender = spawn(Class::Request, "session sender", send_frames(self.clone(), writer, guard, number));
        let receiver = spawn(Class::Request, "session receiver", receive_frames(self.clone(), reader, number));
        self.socket.borrow_mut().extend([sender, receiver]);
        self.timer.notify_one();
        Ok(())
    }

    /// A request of the engine. The reply comes with the next socket if need be; [`LinkError::Closed`] when the session
    /// ends without one.
    pub fn call(&self, request: Request) -> PendingCall {
        if self.ended.get() {
            return PendingCall::from(Err(LinkError::Closed));
        }
        let id = self.proto.borrow_mut().request(request);
        self.transmit.notify_one();
        PendingCall::from(Ok(self.calls.add(id, None)))
    }

    /// The durable epoch for coming frames; `note` tells it even if no other frame goes.
    pub fn set_durable(&self, durable: Epoch, note: bool) {
        self.proto.borrow_mut().set_durable(durable, note);
        if note {
            self.transmit.notify_one();
        }
    }

    /// Gives up a client that breaks the rules; `expired` follows when its lease is over.
    pub fn evict(self: &Rc<Self>) {
        self.input(|proto| proto.evict(time()));
    }

    /// Ends the session: no handler runs, no frame goes out any more, `expired` is not called.
    pub fn end(&self) {
        self.ended.set(true);
        self.lost.notify_one();
        self.drop_socket();
        self.handler.borrow_mut().take();
        self.expired.borrow_mut().take();
        if let Some(task) = self.timer_task.borrow_mut().take() {
            task.cancel();
        }
        self.calls.fail_all(&LinkError::Closed);
    }

    pub fn rid(&self) -> Rid {
        self.rid
    }

    pub fn is_up(&self) -> bool {
        self.proto.borrow().is_up()
    }

    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Returns when it has no socket, or has ended. For one task.
    pub async fn down(&self) {
        loop {
            let lost = self.lost.notified();
            if self.has_ended() || !self.is_up() {
                return;
            }
            lost.await;
        }
    }

    /// (unanswered requests, bytes held) of the client.
    pub fn load(&self) -> (usize, u64) {
        self.proto.borrow().load()
    }

    /// The client has confirmed everything that was sent.
    pub fn is_drained(&self) -> bool {
        self.proto.borrow().is_drained()
    }

    fn drop_socket(&self) {
        self.socket_number.set(self.socket_number.get() + 1);
        for task in self.socket.borrow_mut().drain(..) {
            task.cancel();
        }
    }

    fn input(self: &Rc<Self>, input: impl FnOnce(&mut ServerSession)) {
        input(&mut self.proto.borrow_mut());
        loop {
            let event = self.proto.borrow_mut().poll_event();
            match event {
                Some(ServerEvent::Request { token, request, payload }) => self.handle(token, request, payload),
                Some(ServerEvent::Response { id, response, payload }) => self.calls.resolve(id, response, payload),
                Some(ServerEvent::Disconnect) => self.drop_socket(),
                Some(ServerEvent::Expired) => {
                    let expired = self.expired.borrow_mut().take();
                    if let Some(expired) = expired {
                        expired();
                    }
                }
                None => break,
            }
        }
        if !self.is_up() {
            self.lost.notify_one();
        }
        self.transmit.notify_one();
        self.timer.notify_one();
    }

    fn handle(self: &Rc<Self>, token: Token, request: std::sync::Arc<Request>, payload: Option<DmaSlice>) {
        let handler = self.handler.borrow().clone();
        let Some(handler) = handler else { return };
        let responder = Responder { session: self.clone(), token: Some(token) };
        handler(std::sync::Arc::unwrap_or_clone(request), payload, responder);
    }

    fn next_frame(&self, number: u64) -> Option<Frame> {
        if self.socket_number.get() != number {
            return None;
        }
        self.proto.borrow_mut().poll_transmit()
    }
}

/// What does not fit a frame is an error to the one who asked for it.
fn bounded((response, payload): (Response, Option<DmaSlice>)) -> (Response, Option<DmaSlice>) {
    let too_long =
        response.control_len() > MAX_CONTROL || payload.as_ref().is_some_and(|payload| payload.len() > MAX_PAYLOAD);
    if too_long {
        return (Response::error(ErrorCode::Malformed, "the answer does not fit one frame: ask for less"), None);
    }
    (response, payload)
}

async fn send_frames(session: Rc<Session>, mut writer: FrameWriter, guard: ShutdownOnDrop, number: u64) {
    let _guard = guard; // a sender that fails ends the receiver too
    while session.socket_number.get() == number {
        let more = session.transmit.notified();
        if let Err(error) = writer.send(|| session.next_frame(number)).await {
            tracing::debug!(rid = %session.rid, %error, "sender ended");
            return;
        }
        more.await;
    }
}

async fn receive_frames(session: Rc<Session>, mut reader: FrameReader, number: u64) {
    let error = loop {
        let frame = match reader.recv().await {
            Ok(frame) => frame,
            Err(error) => break error,
        };
        let mut verdict = Ok(());
        session.input(|proto| verdict = proto.handle_frame(time(), frame));
        if let Err(violation) = verdict {
            break SocketError::from(violation);
        }
        // A peer that sends as fast as it is received from has no reactor for itself.
        yield_if_needed().await;
    };
    match &error {
        SocketError::Closed | SocketError::Io(_) => tracing::debug!(rid = %session.rid, %error, "socket ended"),
        _ => tracing::warn!(rid = %session.rid, %error, "socket closed on its peer"),
    }
    if session.socket_number.get() == number {
        session.drop_socket();
        session.input(|proto| proto.handle_disconnect(time()));
    }
}

async fn run_timers(session: Rc<Session>) {
    while !session.ended.get() {
        let changed = session.timer.notified();
        let next = session.proto.borrow().next_timeout();
        match next {
            Some(at) => {
                let _ = timeout(at - time(), changed).await;
            }
            None => changed.await,
        }
        let due = session.proto.borrow().next_timeout().is_some_and(|at| at <= time());
        if due {
            session.input(|proto| proto.handle_timeout(time()));
        }
    }
}
