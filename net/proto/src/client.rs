//! The client's side of a connection: finds its way back to the engine over one socket after another.
//!
//! ```text
//!            Connect event       handle_connected       greeted
//!   DOWN ------------------> CONNECTING -----> GREETING ------> UP --farewelled--> CLOSED
//!    ^  retry, after backoff    |                 |             |
//!    +--------------------------+-----------------+-------------+   error, silence, refusal that passes
//! ```
//! Invariants: nothing is sent before the greeting was answered but the greeting; in a new term ordinary requests wait
//! until the owner of the session has recovered ([`ClientSession::recovered`]); the lease is counted from the SENDING of
//! the last answered keepalive (or greeting).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use vellum_base::{DmaSlice, Epoch, Fsid, Mutant, Rid, Term, mutant, probe};
use vellum_wire::{Body, Frame, Greeted, Greeting, PROTOCOL, Refusal, Request, Response};

use crate::backoff::Backoff;
use crate::channel::{Channel, Inbound, Token, Urgency, Violation};
use crate::fact::SessionFact;
use crate::time::Time;
use crate::timers::Timers;
use crate::window::Window;

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The engine said that everything was given up.
    Farewelled,
    /// It will never accept us; [`Refusal::Fenced`] means that our locks and what they covered are lost.
    Refused(Refusal),
    /// The owner gave up.
    Abandoned,
}

#[derive(Debug)]
pub enum ClientEvent {
    /// Open a socket and say [`ClientSession::handle_connected`] or [`ClientSession::handle_disconnect`].
    Connect,
    /// Drop the socket, or the attempt to open one.
    Disconnect,
    /// The engine accepted us. With `new_term` ordinary requests wait for [`ClientSession::recovered`]; `first` is the
    /// first term of this client, in which there is nothing to recover (and nothing waits).
    Up {
        greeted: Greeted,
        new_term: bool,
        first: bool,
    },
    Request {
        token: Token,
        request: Arc<Request>,
        payload: Option<DmaSlice>,
    },
    Response {
        id: u64,
        response: Arc<Response>,
        payload: Option<DmaSlice>,
    },
    /// A request of lock recovery died with its term.
    Interrupted {
        id: u64,
    },
    /// The engine's durable epoch advanced.
    Durable(Epoch),
    /// No request will be answered any more.
    Closed(Closed),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Down { retry_at: Time },
    Connecting { give_up: Time },
    Greeting { sent: Time, give_up: Time },
    Up { heard: Time },
    Closed,
}

pub struct ClientSession {
    rid: Rid,
    fsid: Fsid,
    /// Of every greeting.
    flags: u32,
    term: Term,
    timers: Timers,
    state: State,
    backoff: Backoff,
    channel: Channel,
    greeting: Option<Frame>,
    greeted: Option<Greeted>,
    keepalive_at: Time,
    /// The open keepalive and when it was queued.
    keepalive: Option<(u64, Time)>,
    lease_from: Option<Time>,
    farewell: Option<u64>,
    events: VecDeque<ClientEvent>,
}

impl ClientSession {
    /// Asks to connect at once. `seed` spreads the retries of many clients.
    pub fn new(rid: Rid, fsid: Option<Fsid>, timers: Timers, seed: u64, now: Time) -> ClientSession {
        ClientSession {
            rid,
            fsid: fsid.unwrap_or_default(),
            flags: 0,
            term: Term(0),
            timers,
            state: State::Down { retry_at: now },
            backoff: Backoff::new(timers.retry_min, timers.retry_max, seed),
            channel: Channel::new(Window::NONE, Window::FROM_ENGINE),
            greeting: None,
            greeted: None,
            keepalive_at: now,
            keepalive: None,
            lease_from: None,
            farewell: None,
            events: VecDeque::new(),
        }
    }

    /// What the greetings say besides: see [`Greeting::worker_flags`].
    pub fn with_flags(mut self, flags: u32) -> ClientSession {
        self.flags = flags;
        self
    }

    pub fn handle_connected(&mut self, now: Time) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        let greeting =
            Greeting { fsid: self.fsid, protocol: PROTOCOL, term: self.term, rid: self.rid, flags: self.flags };
        self.greeting = Some(Frame::unsequenced(Body::Greeting(greeting), self.channel.received(), Epoch::NONE));
        self.state = State::Greeting { sent: now, give_up: now + self.timers.greeted };
    }

    /// The socket broke, or none could be opened.
    pub fn handle_disconnect(&mut self, now: Time) {
        if !matches!(self.state, State::Closed | State::Down { .. }) {
            self.greeting = None;
            self.state = State::Down { retry_at: now + self.backoff.pause() };
        }
    }

    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Down { retry_at } if now >= retry_at => {
                self.state = State::Connecting { give_up: now + self.timers.connect_attempt };
                self.events.push_back(ClientEvent::Connect);
            }
            State::Connecting { give_up } | State::Greeting { give_up, .. } if now >= give_up => self.drop_socket(now),
            State::Up { heard } if now >= heard + self.timers.dead_peer => self.drop_socket(now),
            State::Up { .. } if now >= self.keepalive_at => self.send_keepalive(now),
            _ => {}
        }
    }

    fn send_keepalive(&mut self, now: Time) {
        self.keepalive_at = now + self.timers.keepalive;
        if self.keepalive.is_none() {
            let id = self.channel.request(Request::Keepalive, None, Urgency::Recovery);
            self.keepalive = Some((id, now));
        }
    }

    fn drop_socket(&mut self, now: Time) {
        self.events.push_back(ClientEvent::Disconnect);
        self.handle_disconnect(now);
    }

    /// A frame of the current socket. On an error the socket is to be dropped ([`Self::handle_disconnect`]).
    pub fn handle_frame(&mut self, now: Time, frame: Frame) -> Result<(), Violation> {
        match self.state {
            State::Greeting { sent, .. } => self.handle_greeting_answer(now, sent, frame),
            State::Up { .. } => {
                self.state = State::Up { heard: now };
                self.handle_session_frame(now, frame)
            }
            _ => Ok(()),
        }
    }

    fn handle_greeting_answer(&mut self, now: Time, sent: Time, frame: Frame) -> Result<(), Violation> {
        match frame.body {
            Body::Greeted(greeted) => {
                let (new_term, first) = (greeted.term != self.term, self.term == Term(0));
                if new_term {
                    self.enter_term(&greeted, first);
                } else {
                    self.channel.resume(frame.ack)?;
                }
                self.backoff.succeeded();
                self.channel.set_durable(greeted.durable, false);
                self.lease_from = Some(sent);
                self.state = State::Up { heard: now };
                self.send_keepalive(now);
                self.greeted = Some(greeted.clone());
                self.events.push_back(ClientEvent::Up { greeted, new_term, first });
                Ok(())
            }
            Body::Refused(refusal) => {
                match refusal {
                    Refusal::NotServing | Refusal::TooManyClients { .. } => self.drop_socket(now),
                    // The record is gone: the farewell was heard, only its answer was lost (U2).
                    Refusal::Fenced if self.farewell.is_some() => self.close(Closed::Farewelled),
                    refusal => self.close(Closed::Refused(refusal)),
                }
                Ok(())
            }
            _ => Err(Violation::NoGreeting),
        }
    }

    fn enter_term(&mut self, greeted: &Greeted, first: bool) {
        self.term = greeted.term;
        self.fsid = greeted.fsid;
        for id in self.channel.new_term() {
            self.events.push_back(ClientEvent::Interrupted { id });
        }
        self.keepalive = None;
        if let Some(id) = self.farewell.take() {
            // A client that leaves has nothing to recover; its farewell is what the new leader wants to hear.
            self.events.retain(|e| !matches!(e, ClientEvent::Interrupted { id: dead } if *dead == id));
            self.farewell = Some(self.channel.request_again(id, Request::Farewell));
        }
        self.channel
            .set_window(Window { max_requests: greeted.max_requests, max_bytes: u64::from(greeted.max_data_bytes) });
        if first {
            self.channel.release();
        }
    }

    fn handle_session_frame(&mut self, now: Time, frame: Frame) -> Result<(), Violation> {
        let before = self.channel.durable();
        let inbound = self.channel.handle_frame(frame)?;
        if self.channel.durable() > before {
            self.events.push_back(ClientEvent::Durable(self.channel.durable()));
        }
        match inbound {
            Some(Inbound::Request { token, request, payload }) => match *request {
                Request::Keepalive => self.channel.respond(token, Response::Alive, None),
                _ => self.events.push_back(ClientEvent::Request { token, request, payload }),
            },
            Some(Inbound::Response { id, response, payload }) => {
                if let Some((_, sent)) = self.keepalive.take_if(|(open, _)| *open == id) {
                    self.lease_from = Some(if mutant::active(Mutant::LeaseFromAnswer) { now } else { sent });
                    return Ok(());
                }
                probe::tell(|| SessionFact::Answered { term: self.term, rid: self.rid, request: id });
                let farewelled = self.farewell == Some(id) && *response == Response::Farewelled;
                self.events.push_back(ClientEvent::Response { id, response, payload });
                if farewelled {
                    self.close(Closed::Farewelled);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Queues a request; answered by [`ClientEvent::Response`] with the returned number, whatever happens to sockets.
    pub fn request(&mut self, request: Request, payload: Option<DmaSlice>, urgency: Urgency) -> u64 {
        let farewell = matches!(request, Request::Farewell);
        let urgency = if farewell { Urgency::Recovery } else { urgency };
        let id = self.channel.request(request, payload, urgency);
        if farewell {
            self.farewell = Some(id);
        }
        id
    }

    pub fn respond(&mut self, token: Token, response: Response) {
        self.channel.respond(token, response, None);
    }

    /// Locks, data and batches are with the new leader: ordinary requests flow again.
    pub fn recovered(&mut self) {
        self.channel.release();
    }

    /// Ends it without the engine's consent.
    pub fn abandon(&mut self) {
        if self.state != State::Closed {
            self.close(Closed::Abandoned);
        }
    }

    fn close(&mut self, why: Closed) {
        if !matches!(self.state, State::Down { .. }) {
            self.events.push_back(ClientEvent::Disconnect);
        }
        self.state = State::Closed;
        self.events.push_back(ClientEvent::Closed(why));
    }

    pub fn poll_transmit(&mut self) -> Option<Frame> {
        match self.state {
            State::Greeting { .. } => self.greeting.take(),
            State::Up { .. } => self.channel.poll_transmit(),
            _ => None,
        }
    }

    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Time> {
        match self.state {
            State::Down { retry_at } => Some(retry_at),
            State::Connecting { give_up } | State::Greeting { give_up, .. } => Some(give_up),
            State::Up { heard } => Some(self.keepalive_at.min(heard + self.timers.dead_peer)),
            State::Closed => None,
        }
    }

    /// Until when what locks cover may be used.
    pub fn lease_valid_until(&self) -> Time {
        match (self.lease_from, &self.greeted) {
            (Some(from), Some(greeted)) => from + Duration::from_millis(u64::from(greeted.lease_ms)),
            _ => Time(0),
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub fn greeted(&self) -> Option<&Greeted> {
        self.greeted.as_ref()
    }

    pub fn rid(&self) -> Rid {
        self.rid
    }

    pub fn durable(&self) -> Epoch {
        self.channel.durable()
    }

    /// Requests without a response.
    pub fn open_requests(&self) -> usize {
        self.channel.open_requests()
    }
}
