//! Requests and responses in both directions over one socket after another: numbered, acknowledged, resent.
//!
//! Invariants, per (client, term):
//! - a sequence number is given when a frame is first transmitted; numbers are gapless from 1, and a receiver takes a
//!   frame only if it is the next one, so that a request is handled once and a response delivered once [N1];
//! - a request is kept until its response came (a new term needs it again [N2]), a response until it was acknowledged;
//! - both sides count the same credits; a peer that passes its window breaks the rules and loses the socket.
//!
//! Not here: greetings, timers, what a request means.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use thiserror::Error;
use vellum_base::{DmaSlice, Epoch, Mutant, mutant};
use vellum_wire::{Body, Frame, Request, Response};

use crate::window::{Cost, Used, Window};

/// What a peer did that no honest peer does. It costs the socket.
#[derive(Error, Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    #[error("frame {found} where {expected} was next")]
    Gap { expected: u64, found: u64 },
    #[error("acknowledged frame {found}, only {sent} were sent")]
    AckOfUnsent { sent: u64, found: u64 },
    #[error("acknowledged up to {found}, but up to {known} before")]
    Forgot { known: u64, found: u64 },
    #[error("response to {id}, which is no open request")]
    UnknownResponse { id: u64 },
    #[error("request {id} is open already")]
    DoubleRequest { id: u64 },
    #[error("more unanswered requests or bytes than allowed ({requests} requests, {bytes} bytes)")]
    Window { requests: u32, bytes: u64 },
    #[error("a greeting in the middle of a session")]
    Greeting,
    #[error("anything but a greeting at the start of a session")]
    NoGreeting,
}

/// Names a request of the peer for the response. One of an earlier term is void.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token {
    id: u64,
    generation: u32,
}

impl Token {
    /// The peer's number of the request.
    pub fn request(self) -> u64 {
        self.id
    }
}

/// What a frame brought.
#[derive(Debug)]
pub enum Inbound {
    Request { token: Token, request: Arc<Request>, payload: Option<DmaSlice> },
    Response { id: u64, response: Arc<Response>, payload: Option<DmaSlice> },
}

/// Who goes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Waits while the channel is held.
    Normal,
    /// Passes a held channel, and dies with its term: lock recovery and what follows it, keepalives.
    Recovery,
}

struct Open {
    request: Arc<Request>,
    payload: Option<DmaSlice>,
    cost: Cost,
    urgency: Urgency,
    /// 0 while it waits for its first transmission in this term.
    seq: u64,
}

enum Sent {
    Request { id: u64 },
    Response { id: u64, response: Arc<Response>, payload: Option<DmaSlice>, cost: Cost },
}

#[derive(Clone, Copy)]
enum Queue {
    Normal,
    Locks,
}

struct Answer {
    id: u64,
    response: Arc<Response>,
    payload: Option<DmaSlice>,
    cost: Cost,
}

/// A note goes out when so much came without anything of ours that could carry the acknowledgement.
const NOTE_AFTER_FRAMES: u32 = 32;
const NOTE_AFTER_BYTES: usize = 256 << 10;

pub struct Channel {
    generation: u32,
    held: bool,
    // ---- ours
    next_id: u64,
    open: BTreeMap<u64, Open>,
    urgent: VecDeque<u64>,
    locks: VecDeque<u64>,
    normal: VecDeque<u64>,
    answers: VecDeque<Answer>,
    /// Sent frames `acked + 1 ..= acked + len`, oldest first.
    sent: VecDeque<Sent>,
    acked: u64,
    /// Frames of `sent` that were transmitted on this socket.
    transmitted: usize,
    window: Window,
    used: Used,
    // ---- the peer's
    received: u64,
    peer_open: HashMap<u64, Cost>,
    peer_window: Window,
    peer_used: Used,
    unacked_frames: u32,
    unacked_bytes: usize,
    note: bool,
    // ---- both
    durable: Epoch,
}

impl Channel {
    /// `window`: what the peer accepts; `peer_window`: what we accept.
    pub fn new(window: Window, peer_window: Window) -> Channel {
        Channel {
            generation: 0,
            held: false,
            next_id: 1,
            open: BTreeMap::new(),
            urgent: VecDeque::new(),
            locks: VecDeque::new(),
            normal: VecDeque::new(),
            answers: VecDeque::new(),
            sent: VecDeque::new(),
            acked: 0,
            transmitted: 0,
            window,
            used: Used::default(),
            received: 0,
            peer_open: HashMap::new(),
            peer_window,
            peer_used: Used::default(),
            unacked_frames: 0,
            unacked_bytes: 0,
            note: false,
            durable: Epoch::NONE,
        }
    }

    /// Queues a request; its response will carry the returned number.
    pub fn request(&mut self, request: Request, payload: Option<DmaSlice>, urgency: Urgency) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let cost = Cost::of(&request, payload.as_ref().map_or(0, |p| p.len()));
        let open = Open { request: Arc::new(request), payload, cost, urgency, seq: 0 };
        self.enqueue(id, &open);
        self.open.insert(id, open);
        id
    }

    /// Queues a request under a number that died with its term.
    pub(crate) fn request_again(&mut self, id: u64, request: Request) -> u64 {
        let open = Open {
            cost: Cost::of(&request, 0),
            request: Arc::new(request),
            payload: None,
            urgency: Urgency::Recovery,
            seq: 0,
        };
        self.enqueue(id, &open);
        self.open.insert(id, open);
        id
    }

    fn enqueue(&mut self, id: u64, open: &Open) {
        match (open.urgency, open.request.as_ref()) {
            (Urgency::Recovery, _) => self.urgent.push_back(id),
            // One queue for both, so that a lock is not asked for before its return was sent.
            (_, Request::Lock { .. } | Request::Unlock { .. }) => self.locks.push_back(id),
            _ => self.normal.push_back(id),
        }
    }

    /// Queues the response to a request of the peer. A token of an earlier term, or one answered already, does nothing.
    pub fn respond(&mut self, token: Token, response: Response, payload: Option<DmaSlice>) {
        if token.generation != self.generation {
            return;
        }
        if let Some(cost) = self.peer_open.remove(&token.id) {
            self.answers.push_back(Answer { id: token.id, response: Arc::new(response), payload, cost });
        }
    }

    /// Takes a frame of the current socket.
    pub fn handle_frame(&mut self, frame: Frame) -> Result<Option<Inbound>, Violation> {
        self.handle_ack(frame.ack)?;
        self.durable = self.durable.max(frame.durable);
        match frame.body {
            Body::Note => return Ok(None),
            Body::Request(_) | Body::Response(_) => {}
            Body::Greeting(_) | Body::Greeted(_) | Body::Refused(_) => return Err(Violation::Greeting),
        }
        let expected = self.received + 1;
        if frame.seq < expected && frame.seq > 0 && mutant::active(Mutant::TakeFramesTwice) {
            self.received = frame.seq - 1;
            return self.handle_frame(frame);
        }
        if frame.seq < expected && frame.seq > 0 {
            return Ok(None); // seen on an earlier socket
        }
        if frame.seq != expected {
            return Err(Violation::Gap { expected, found: frame.seq });
        }
        let payload_len = frame.payload.as_ref().map_or(0, |p| p.len());
        let inbound = match frame.body {
            Body::Request(request) => {
                let cost = Cost::of(&request, payload_len);
                if !self.peer_used.fits(&self.peer_window, cost) {
                    let (requests, bytes) = (self.peer_used.requests(), self.peer_used.bytes());
                    return Err(Violation::Window { requests, bytes });
                }
                if self.peer_open.contains_key(&frame.id) {
                    return Err(Violation::DoubleRequest { id: frame.id });
                }
                self.peer_used.take(&self.peer_window, cost);
                self.peer_open.insert(frame.id, cost);
                let token = Token { id: frame.id, generation: self.generation };
                Inbound::Request { token, request, payload: frame.payload }
            }
            Body::Response(response) => {
                let id = frame.id;
                // A response acknowledges its request, else a resend could not tell that it is needless.
                if !self.open.get(&id).is_some_and(|open| open.seq != 0 && open.seq <= self.acked) {
                    return Err(Violation::UnknownResponse { id });
                }
                if let Some(open) = self.open.remove(&id) {
                    self.used.give(&self.window, open.cost);
                }
                Inbound::Response { id, response, payload: frame.payload }
            }
            _ => return Err(Violation::Greeting),
        };
        self.received = expected;
        self.unacked_frames += 1;
        self.unacked_bytes += payload_len;
        Ok(Some(inbound))
    }

    fn handle_ack(&mut self, ack: u64) -> Result<(), Violation> {
        let highest = self.acked + self.transmitted as u64;
        if ack > highest {
            return Err(Violation::AckOfUnsent { sent: highest, found: ack });
        }
        while self.acked < ack {
            self.acked += 1;
            self.transmitted -= 1;
            if let Some(Sent::Response { cost, .. }) = self.sent.pop_front() {
                self.peer_used.give(&self.peer_window, cost);
            }
        }
        Ok(())
    }

    /// A new socket in the same term: the peer has received up to `ack`; the rest goes out again.
    pub fn resume(&mut self, ack: u64) -> Result<(), Violation> {
        if ack < self.acked {
            return Err(Violation::Forgot { known: self.acked, found: ack });
        }
        self.transmitted = self.sent.len(); // all of it may have arrived
        // Who resends only what the greeting does not confirm is never asked to drop anything.
        let confirmed = if mutant::active(Mutant::TakeFramesTwice) { self.acked } else { ack };
        self.handle_ack(confirmed)?;
        self.transmitted = 0;
        Ok(())
    }

    /// A new term: forgets what was received, drops responses, keeps requests and sends them again once
    /// [`Self::release`]d. Requests of urgency `Recovery` die; their numbers are returned.
    pub fn new_term(&mut self) -> Vec<u64> {
        self.generation += 1;
        self.held = true;
        self.answers.clear();
        self.sent.clear();
        let received = if mutant::active(Mutant::KeepReceivedOverTerms) { self.received } else { 0 };
        (self.acked, self.transmitted, self.received) = (0, 0, received);
        self.peer_open.clear();
        (self.used, self.peer_used) = (Used::default(), Used::default());
        (self.unacked_frames, self.unacked_bytes, self.note) = (0, 0, false);
        for queue in [&mut self.urgent, &mut self.locks, &mut self.normal] {
            queue.clear();
        }
        let mut dead = Vec::new();
        let open = std::mem::take(&mut self.open);
        for (id, mut request) in open {
            if request.urgency == Urgency::Recovery {
                dead.push(id);
                continue;
            }
            request.seq = 0;
            self.enqueue(id, &request);
            self.open.insert(id, request);
        }
        dead
    }

    /// Ordinary requests flow again.
    pub fn release(&mut self) {
        self.held = false;
    }

    /// The peer said its limits. Only while nothing is in flight.
    pub fn set_window(&mut self, window: Window) {
        if self.window != window {
            assert_eq!(self.used.requests(), 0, "the window changes only between terms");
            self.window = window;
        }
    }

    /// The next frame for the current socket.
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if self.transmitted == self.sent.len() && !self.number_one() {
            let due = self.note || self.unacked_frames >= NOTE_AFTER_FRAMES || self.unacked_bytes >= NOTE_AFTER_BYTES;
            return due.then(|| self.frame(0, 0, Body::Note, None));
        }
        let seq = self.acked + self.transmitted as u64 + 1;
        let (id, body, payload) = match self.sent.get(self.transmitted)? {
            Sent::Response { id, response, payload, .. } => (*id, Body::Response(response.clone()), payload.clone()),
            Sent::Request { id } => {
                // Its response would have acknowledged it, so it is open.
                let open = self.open.get(id)?;
                (*id, Body::Request(open.request.clone()), open.payload.clone())
            }
        };
        self.transmitted += 1;
        Some(self.frame(id, seq, body, payload))
    }

    /// Moves one waiting message to the sent ones; false when nothing may go.
    fn number_one(&mut self) -> bool {
        if self.urgent.front().copied().is_some_and(|id| self.number_request(id)) {
            self.urgent.pop_front();
            return true;
        }
        if let Some(Answer { id, response, payload, cost }) = self.answers.pop_front() {
            self.sent.push_back(Sent::Response { id, response, payload, cost });
            return true;
        }
        if self.held {
            return false;
        }
        for queue in [Queue::Normal, Queue::Locks] {
            let front = self.queue(queue).front().copied();
            if front.is_some_and(|id| self.number_request(id)) {
                self.queue(queue).pop_front();
                return true;
            }
        }
        false
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<u64> {
        match queue {
            Queue::Normal => &mut self.normal,
            Queue::Locks => &mut self.locks,
        }
    }

    fn number_request(&mut self, id: u64) -> bool {
        let seq = self.acked + self.sent.len() as u64 + 1;
        let Some(open) = self.open.get_mut(&id) else {
            return false;
        };
        if !self.used.fits(&self.window, open.cost) {
            return false;
        }
        open.seq = seq;
        self.used.take(&self.window, open.cost);
        self.sent.push_back(Sent::Request { id });
        true
    }

    fn frame(&mut self, id: u64, seq: u64, body: Body, payload: Option<DmaSlice>) -> Frame {
        (self.unacked_frames, self.unacked_bytes, self.note) = (0, 0, false);
        Frame { id, seq, ack: self.received, durable: self.durable, body, payload }
    }

    /// The engine's durable epoch: goes out with every frame, and alone when `note` is set.
    pub fn set_durable(&mut self, durable: Epoch, note: bool) {
        self.durable = self.durable.max(durable);
        self.note |= note;
    }

    pub fn durable(&self) -> Epoch {
        self.durable
    }

    /// The last frame received: what a greeting tells the peer.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Own requests without a response, sent or waiting.
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }

    /// Requests of the peer that were not answered yet, and the bytes that it makes us hold.
    pub fn peer_load(&self) -> (usize, u64) {
        (self.peer_open.len(), self.peer_used.bytes())
    }

    /// Whether the peer has confirmed everything we sent.
    pub fn is_drained(&self) -> bool {
        self.sent.is_empty() && self.answers.is_empty()
    }
}
