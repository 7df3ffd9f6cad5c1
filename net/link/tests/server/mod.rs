//! A small engine for the tests of the link: one reactor, no store.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use vellum_base::{BatchNo, DmaSlice, Epoch, Fsid, Ino, Rid, Term};
use vellum_keys::Keys;
use vellum_link::{
    Acceptor, Greeter, InProcessDialer, LocalBoxFuture, Peer, Session, SessionHandler, Stranger, in_process, refuse,
};
use vellum_proto::{Timers, Window};
use vellum_rt::net::Endpoint;
use vellum_rt::{Class, spawn};
use vellum_wire::{Greeted, PROTOCOL, Refusal, Request, Response};

pub const WINDOW: Window = Window { max_requests: 64, max_bytes: 8 << 20 };

pub struct Server {
    pub term: Cell<u64>,
    pub timers: Timers,
    pub sessions: RefCell<HashMap<Rid, Rc<Session>>>,
    pub expired: RefCell<Vec<Rid>>,
    /// What strangers turned out to be.
    pub peers: RefCell<Vec<Peer>>,
    pub keys: RefCell<Option<Arc<Keys>>>,
    handler: SessionHandler,
}

/// A handler that answers when its future is done.
pub type Answer = Rc<dyn Fn(Request, Option<DmaSlice>) -> LocalBoxFuture<(Response, Option<DmaSlice>)>>;

impl Server {
    pub fn new(timers: Timers, answer: Answer) -> Rc<Server> {
        let handler: SessionHandler = Rc::new(move |request, payload, responder| {
            let answer = answer(request, payload);
            spawn(Class::Request, "handler", async move {
                let (response, payload) = answer.await;
                responder.send(response, payload);
            })
            .detach();
        });
        Rc::new(Server {
            term: Cell::new(1),
            timers,
            sessions: RefCell::default(),
            expired: RefCell::default(),
            peers: RefCell::default(),
            keys: RefCell::default(),
            handler,
        })
    }

    pub fn greeter(self: &Rc<Self>) -> Greeter {
        let server = self.clone();
        let admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>> = Rc::new(move |stranger| {
            let server = server.clone();
            Box::pin(async move { server.admit(stranger).await })
        });
        Greeter::new(self.timers.greeting, self.keys.borrow().clone(), admit)
    }

    pub fn listen(self: &Rc<Self>, at: &str) -> Acceptor {
        Acceptor::start(&at.parse::<Endpoint>().unwrap(), self.greeter()).unwrap()
    }

    pub fn in_process(self: &Rc<Self>) -> InProcessDialer {
        let (dialer, listeners) = in_process(1, |_| 0);
        for mut listener in listeners {
            let greeter = self.greeter();
            spawn(Class::Request, "in-process", async move {
                while let Some(socket) = listener.accept().await {
                    greeter.welcome(socket);
                }
            })
            .detach();
        }
        dialer
    }

    async fn admit(self: Rc<Self>, stranger: Stranger) {
        let rid = stranger.greeting.rid;
        self.peers.borrow_mut().push(stranger.peer.clone());
        let term = Term(self.term.get());
        let known = self.sessions.borrow().get(&rid).cloned();
        let session = match known {
            Some(session) => session,
            None if stranger.greeting.term == term => return stranger.refuse(Refusal::Fenced).await,
            None => {
                let server = self.clone();
                let session = Session::new(rid, term, WINDOW, self.timers, self.handler.clone(), move || {
                    server.expired.borrow_mut().push(rid);
                    if let Some(session) = server.sessions.borrow_mut().remove(&rid) {
                        session.end();
                    }
                });
                self.sessions.borrow_mut().insert(rid, session.clone());
                session
            }
        };
        let greeted = Greeted {
            fsid: Fsid([7; 16]),
            term,
            protocol: PROTOCOL,
            format: 1,
            last_batch: BatchNo(0),
            durable: Epoch(0),
            lease_ms: self.timers.lease.as_millis() as u32,
            keepalive_ms: self.timers.keepalive.as_millis() as u32,
            max_requests: WINDOW.max_requests,
            max_data_bytes: WINDOW.max_bytes as u32,
            read_only: false,
            root: Ino::ROOT,
        };
        let Stranger { greeting, ack, reader, writer, guard, .. } = stranger;
        if let Err((refusal, writer, guard)) = session.attach(reader, writer, guard, (&greeting, ack), greeted) {
            refuse(writer, guard, refusal).await;
        }
    }

    /// The engine dies and starts again: sessions are gone, the term is another.
    pub fn restart(&self) {
        for (_, session) in self.sessions.borrow_mut().drain() {
            session.end();
        }
        self.term.set(self.term.get() + 1);
    }
}
