//! The engine's side of one client's connection within one term.
//!
//! ```text
//!   attach          handle_disconnect, silence           window over
//!  -------> UP ------------------------------> RECONNECT_WAIT -----> EXPIRED (fence, reclaim)
//!            ^            attach                  |
//!            +------------------------------------+          farewell: GONE
//! ```
//! A socket comes here only after its greeting was judged ([`judge`]): one that says nothing costs nothing and fences
//! nobody (N4). A second socket of the same rid replaces the first; its owner drops what still comes from the first.

use std::collections::VecDeque;
use std::sync::Arc;

use vellum_base::{DmaSlice, Epoch, Fsid, Mutant, Rid, Term, mutant, probe};
use vellum_wire::{Body, Frame, Greeted, Greeting, PROTOCOL, Refusal, Request, Response};

use crate::channel::{Channel, Inbound, Token, Urgency, Violation};
use crate::fact::SessionFact;
use crate::time::Time;
use crate::timers::Timers;
use crate::window::Window;

/// What of a greeting can be judged without knowing the rid.
pub fn judge(greeting: &Greeting, served: Fsid) -> Result<(), Refusal> {
    if greeting.protocol != PROTOCOL {
        return Err(Refusal::OtherProtocol { served: PROTOCOL });
    }
    if greeting.rid == Rid::ENGINE {
        return Err(Refusal::Fenced);
    }
    if greeting.fsid != Fsid::default() && greeting.fsid != served {
        return Err(Refusal::OtherFilesystem { served });
    }
    Ok(())
}

#[derive(Debug)]
pub enum ServerEvent {
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
    /// Drop the socket.
    Disconnect,
    /// The client did not come back: fence and reclaim it.
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Up { heard: Time },
    Waiting { until: Time },
    Expired,
}

pub struct ServerSession {
    rid: Rid,
    term: Term,
    timers: Timers,
    state: State,
    /// Nothing of the client came in this term: the answer to its greeting may have been lost.
    untouched: bool,
    evicted: bool,
    /// Its owner answers keepalives.
    leaves_keepalives: bool,
    channel: Channel,
    greeted: VecDeque<Frame>,
    events: VecDeque<ServerEvent>,
}

impl ServerSession {
    /// A session without a socket: [`Self::attach`] comes next.
    pub fn new(rid: Rid, term: Term, window: Window, timers: Timers, now: Time) -> ServerSession {
        ServerSession {
            rid,
            term,
            timers,
            state: State::Waiting { until: now + timers.reconnect_window },
            untouched: true,
            evicted: false,
            leaves_keepalives: false,
            channel: Channel::new(Window::FROM_ENGINE, window),
            greeted: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// From now on keepalives come as requests: each answer prolongs the client's lease, and that may be for its owner to judge.
    pub fn leave_keepalives(&mut self) {
        self.leaves_keepalives = true;
    }

    /// A socket greeted for this rid; `ack` is its frame's. `greeted` goes out first. An error says why it is refused.
    pub fn attach(&mut self, now: Time, greeting: &Greeting, ack: u64, greeted: Greeted) -> Result<(), Refusal> {
        if self.evicted || self.state == State::Expired {
            return Err(Refusal::Fenced);
        }
        if greeting.term == self.term {
            self.channel.resume(ack).map_err(|_| Refusal::Fenced)?;
        } else if !self.untouched {
            // It was up in this term and has forgotten it: not the client that we know.
            return Err(Refusal::Fenced);
        } else {
            // The answer to its last greeting was lost, and all that followed it.
            self.channel.resume(0).map_err(|_| Refusal::Fenced)?;
        }
        self.state = State::Up { heard: now };
        let durable = self.channel.durable();
        self.greeted.clear();
        self.greeted.push_back(Frame::unsequenced(Body::Greeted(greeted), self.channel.received(), durable));
        Ok(())
    }

    pub fn handle_frame(&mut self, now: Time, frame: Frame) -> Result<(), Violation> {
        if !matches!(self.state, State::Up { .. }) {
            return Ok(());
        }
        self.state = State::Up { heard: now };
        self.untouched = false;
        match self.channel.handle_frame(frame)? {
            Some(Inbound::Request { token, request, payload }) => match *request {
                Request::Keepalive if !self.leaves_keepalives => self.channel.respond(token, Response::Alive, None),
                _ => {
                    let request_number = token.request();
                    probe::tell(|| SessionFact::Handled { term: self.term, rid: self.rid, request: request_number });
                    self.events.push_back(ServerEvent::Request { token, request, payload });
                }
            },
            Some(Inbound::Response { id, response, payload }) => {
                self.events.push_back(ServerEvent::Response { id, response, payload });
            }
            None => {}
        }
        Ok(())
    }

    pub fn handle_disconnect(&mut self, now: Time) {
        if let State::Up { .. } = self.state {
            self.greeted.clear();
            let at_once = mutant::active(Mutant::ReclaimAtDisconnect);
            let until = if at_once { now } else { now + self.timers.reconnect_window };
            self.state = State::Waiting { until };
        }
    }

    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Up { heard } if now >= heard + self.timers.dead_peer => {
                self.events.push_back(ServerEvent::Disconnect);
                self.handle_disconnect(now);
            }
            State::Waiting { until } if now >= until => {
                self.state = State::Expired;
                self.events.push_back(ServerEvent::Expired);
            }
            _ => {}
        }
    }

    /// Gives the client up although it talks (it does not answer an invalidation, say): its socket is dropped, no other
    /// is accepted, and once its lease must have ended [`ServerEvent::Expired`] comes.
    pub fn evict(&mut self, now: Time) {
        if let State::Up { .. } = self.state {
            self.events.push_back(ServerEvent::Disconnect);
            self.handle_disconnect(now);
        }
        self.evicted = true;
    }

    pub fn request(&mut self, request: Request) -> u64 {
        self.channel.request(request, None, Urgency::Normal)
    }

    pub fn respond(&mut self, token: Token, response: Response, payload: Option<DmaSlice>) {
        self.channel.respond(token, response, payload);
    }

    /// The durable epoch for the frames to come; with `note` it is told even if no other frame goes.
    pub fn set_durable(&mut self, durable: Epoch, note: bool) {
        self.channel.set_durable(durable, note);
    }

    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if !matches!(self.state, State::Up { .. }) {
            return None;
        }
        self.greeted.pop_front().or_else(|| self.channel.poll_transmit())
    }

    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    pub fn next_timeout(&self) -> Option<Time> {
        match self.state {
            State::Up { heard } => Some(heard + self.timers.dead_peer),
            State::Waiting { until } => Some(until),
            State::Expired => None,
        }
    }

    pub fn rid(&self) -> Rid {
        self.rid
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// (unanswered requests, bytes held) of the client.
    pub fn load(&self) -> (usize, u64) {
        self.channel.peer_load()
    }

    /// The client has everything that we sent, the farewell's answer included.
    pub fn is_drained(&self) -> bool {
        self.channel.is_drained()
    }
}
