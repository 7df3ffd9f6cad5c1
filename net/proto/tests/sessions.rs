//! A client and an engine in virtual time, with sockets that break at any frame and leaders that die.
//!
//! Asserted for every seed: per term each request is handled once (N1), in the order of sending; each call is answered
//! once, whatever happens; a rid that comes back within its window never expires; credits are never passed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use vellum_base::prng::Prng;
use vellum_base::{BatchNo, DmaBuf, Epoch, Fsid, Ino, Rid, Term};
use vellum_proto::channel::Urgency;
use vellum_proto::server::judge;
use vellum_proto::{ClientEvent, ClientSession, Closed, ServerEvent, ServerSession, Time, Timers, Token, Window};
use vellum_wire::{Body, Frame, Greeted, LockMode, LockName, PROTOCOL, Refusal, Request, Response};

const WINDOW: Window = Window { max_requests: 8, max_bytes: 64 << 10 };
const RID: Rid = Rid(77);

/// Frames on their way, each with its arrival.
type Flight = VecDeque<(Time, Frame)>;

struct World {
    now: Time,
    prng: Prng,
    term: u64,
    serving: bool,
    client: ClientSession,
    server: Option<ServerSession>,
    /// To the server, to the client; `None` when no socket is open.
    socket: Option<(Flight, Flight)>,
    /// The engine has read the greeting of this socket.
    greeted: bool,
    // ---- what happened
    handled: BTreeMap<u64, Vec<u64>>,
    invalidated: BTreeSet<(u64, u64)>,
    invalidations_open: u32,
    invalidations_answered: BTreeMap<u64, u64>,
    pending: Vec<(Token, u64)>,
    client_pending: Vec<Token>,
    waiting: HashMap<u64, u64>,
    answered: BTreeSet<u64>,
    expired: bool,
    closed: Option<Closed>,
    recovering: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let timers = Timers::DEFAULT;
        World {
            now: Time(1),
            prng: Prng::new(seed),
            term: 1,
            serving: true,
            client: ClientSession::new(RID, None, timers, seed, Time(1)),
            server: None,
            socket: None,
            greeted: false,
            handled: BTreeMap::new(),
            invalidated: BTreeSet::new(),
            invalidations_open: 0,
            invalidations_answered: BTreeMap::new(),
            pending: Vec::new(),
            client_pending: Vec::new(),
            waiting: HashMap::new(),
            answered: BTreeSet::new(),
            expired: false,
            closed: None,
            recovering: false,
        }
    }

    fn greeted_message(&self) -> Greeted {
        Greeted {
            fsid: Fsid([1; 16]),
            term: Term(self.term),
            protocol: PROTOCOL,
            format: 1,
            last_batch: BatchNo(0),
            durable: Epoch(0),
            lease_ms: 9000,
            keepalive_ms: 1000,
            max_requests: WINDOW.max_requests,
            max_data_bytes: WINDOW.max_bytes as u32,
            read_only: false,
            root: Ino::ROOT,
        }
    }

    fn break_socket(&mut self) {
        if self.socket.take().is_some() {
            self.client.handle_disconnect(self.now);
            if let Some(server) = self.server.as_mut().filter(|_| self.greeted) {
                server.handle_disconnect(self.now);
            }
        }
    }

    fn restart(&mut self) {
        self.break_socket();
        self.server = None;
        self.term += 1;
        self.invalidations_open = 0;
        self.pending.clear();
    }

    fn call(&mut self, n: u64, large: bool) {
        let payload = large.then(|| DmaBuf::zeroed(30_000).freeze());
        let request = if n.is_multiple_of(7) {
            Request::Lock { wants: vec![vellum_wire::LockWant { name: LockName::Group(n), mode: LockMode::Read }] }
        } else if large {
            Request::WriteData
        } else {
            Request::Sync { through: BatchNo(n) }
        };
        let id = self.client.request(request, payload, Urgency::Normal);
        self.waiting.insert(id, n);
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(self.prng.below(3000));
        self.pump_client();
        self.pump_server();
        let now = self.now;
        let arrived = |queue: &mut Flight| match queue.front() {
            Some((at, _)) if *at <= now => queue.pop_front().map(|(_, frame)| frame),
            _ => None,
        };
        if let Some((to_server, to_client)) = &mut self.socket {
            let (at_server, at_client) = (arrived(to_server), arrived(to_client));
            if let Some(frame) = at_server {
                self.server_frame(frame);
            }
            // The server may have broken the socket in between.
            if let (Some(frame), true) = (at_client, self.socket.is_some()) {
                self.client.handle_frame(now, frame).expect("an honest server breaks no rule");
            }
        }
        if self.client.next_timeout().is_some_and(|at| at <= self.now) {
            self.client.handle_timeout(self.now);
        }
        if let Some(server) = self.server.as_mut().filter(|s| s.next_timeout().is_some_and(|at| at <= now)) {
            server.handle_timeout(now);
        }
        self.events();
    }

    fn transmit_delay(&mut self) -> Time {
        self.now + Duration::from_micros(self.prng.below(500))
    }

    fn pump_client(&mut self) {
        while self.prng.below(4) > 0 && self.socket.is_some() {
            let Some(frame) = self.client.poll_transmit() else { break };
            let at = self.transmit_delay();
            self.socket.as_mut().unwrap().0.push_back((at, frame));
        }
    }

    fn pump_server(&mut self) {
        while self.prng.below(4) > 0 && self.socket.is_some() && self.greeted {
            let Some(frame) = self.server.as_mut().and_then(|s| s.poll_transmit()) else { break };
            let at = self.transmit_delay();
            self.socket.as_mut().unwrap().1.push_back((at, frame));
        }
    }

    fn server_frame(&mut self, frame: Frame) {
        if self.greeted {
            let server = self.server.as_mut().expect("greeted");
            server.handle_frame(self.now, frame).expect("an honest client breaks no rule");
            assert!(server.load().0 <= WINDOW.max_requests as usize + 16 && server.load().1 <= WINDOW.max_bytes);
            return;
        }
        let Body::Greeting(greeting) = &frame.body else { panic!("only a greeting comes first") };
        judge(greeting, Fsid([1; 16])).unwrap();
        let refusal = if !self.serving {
            Some(Refusal::NotServing)
        } else if self.expired || (self.server.is_none() && greeting.term.0 == self.term) {
            Some(Refusal::Fenced)
        } else {
            let server = self
                .server
                .get_or_insert_with(|| ServerSession::new(RID, Term(self.term), WINDOW, Timers::DEFAULT, self.now));
            let greeted = Greeted {
                fsid: Fsid([1; 16]),
                term: Term(self.term),
                protocol: PROTOCOL,
                format: 1,
                last_batch: BatchNo(0),
                durable: Epoch(0),
                lease_ms: 9000,
                keepalive_ms: 1000,
                max_requests: WINDOW.max_requests,
                max_data_bytes: WINDOW.max_bytes as u32,
                read_only: false,
                root: Ino::ROOT,
            };
            server.attach(self.now, greeting, frame.ack, greeted).err()
        };
        match refusal {
            Some(refusal) => {
                let at = self.now;
                let frame = Frame::unsequenced(Body::Refused(refusal), 0, Epoch(0));
                self.socket.as_mut().unwrap().1.push_back((at, frame));
            }
            None => self.greeted = true,
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Connect => {
                    self.socket = Some((VecDeque::new(), VecDeque::new()));
                    self.greeted = false;
                    self.client.handle_connected(self.now);
                }
                ClientEvent::Disconnect => self.break_socket(),
                ClientEvent::Up { new_term, first, greeted } => {
                    assert_eq!(greeted, self.greeted_message());
                    if new_term {
                        self.recovering = !first;
                    }
                }
                ClientEvent::Request { token, request, .. } => {
                    let Request::Invalidate { name: LockName::Group(n), .. } = *request else { panic!() };
                    assert!(self.invalidated.insert((self.term, n)), "an invalidation is handled once");
                    self.client_pending.push(token);
                }
                ClientEvent::Response { id, response, .. } => {
                    let n = self.waiting.remove(&id).expect("one response per call");
                    assert_eq!(*response, Response::Synced { durable: Epoch(n) });
                    assert!(self.answered.insert(n));
                }
                ClientEvent::Interrupted { .. } | ClientEvent::Durable(_) => {}
                ClientEvent::Closed(why) => self.closed = Some(why),
            }
        }
        let Some(server) = &mut self.server else { return };
        while let Some(event) = server.poll_event() {
            match event {
                ServerEvent::Request { token, request, payload } => {
                    let n = match &*request {
                        Request::Sync { through } => through.0,
                        Request::Lock { wants } => match wants[0].name {
                            LockName::Group(n) => n,
                            LockName::Rename => panic!(),
                        },
                        Request::WriteData => {
                            assert_eq!(payload.map(|p| p.len()), Some(30_000));
                            0
                        }
                        other => panic!("{other:?}"),
                    };
                    assert!(!self.recovering, "nothing ordinary before the recovery");
                    self.handled.entry(self.term).or_default().push(n);
                    self.pending.push((token, n));
                }
                ServerEvent::Response { id, response, .. } => {
                    assert_eq!(*response, Response::Invalidated);
                    self.invalidations_open -= 1;
                    *self.invalidations_answered.entry(self.term << 32 | id).or_default() += 1;
                }
                ServerEvent::Disconnect => {
                    self.socket = None;
                    self.client.handle_disconnect(self.now);
                }
                ServerEvent::Expired => self.expired = true,
            }
        }
    }

    fn invalidate(&mut self, n: u64) {
        if let Some(server) = &mut self.server {
            server.request(Request::Invalidate { name: LockName::Group(n), mode: LockMode::Null });
            self.invalidations_open += 1;
        }
    }

    fn answer_some(&mut self) {
        while !self.pending.is_empty() && self.prng.below(3) > 0 {
            let at = self.prng.below(self.pending.len() as u64) as usize;
            let (token, n) = self.pending.swap_remove(at);
            if let Some(server) = &mut self.server {
                server.respond(token, Response::Synced { durable: Epoch(n) }, None);
            }
        }
        while !self.client_pending.is_empty() && self.prng.below(3) > 0 {
            let at = self.prng.below(self.client_pending.len() as u64) as usize;
            let token = self.client_pending.swap_remove(at);
            self.client.respond(token, Response::Invalidated);
        }
    }
}

fn run(seed: u64, breaks: u64, restarts: u64) {
    let mut w = World::new(seed);
    let (mut next_call, mut next_invalidation) = (1u64, 1u64);
    const CALLS: u64 = 120;
    let mut steps = 0u64;
    while w.answered.len() < CALLS as usize - CALLS as usize / 10 || !w.waiting.is_empty() || next_call <= CALLS {
        steps += 1;
        assert!(steps < 400_000, "calls are answered under fair delivery: {} of {next_call}", w.answered.len());
        assert_eq!(w.closed, None, "seed {seed}");
        assert!(!w.expired, "a client that comes back in time does not expire");
        if next_call <= CALLS && w.prng.one_in(3) {
            // Data calls carry no number of their own, so they are answered with 0 once; give them a name of their own.
            let large = next_call.is_multiple_of(10);
            if large {
                let payload = DmaBuf::zeroed(30_000).freeze();
                let id = w.client.request(Request::WriteData, Some(payload), Urgency::Normal);
                w.waiting.insert(id, 0);
                w.answered.remove(&0);
            } else {
                w.call(next_call, false);
            }
            next_call += 1;
        }
        // Few at a time: a network that carries a frame in thirty steps would drown in a steady stream of them.
        if w.invalidations_open < 8 && w.prng.one_in(9) {
            w.invalidate(next_invalidation);
            next_invalidation += 1;
        }
        w.answer_some();
        if w.recovering && w.prng.one_in(20) && w.client.is_up() {
            w.recovering = false;
            w.client.recovered();
        }
        w.answered.remove(&0);
        w.step();
        let odds = if w.client.is_up() { breaks } else { 50 };
        if breaks > 0 && w.prng.one_in(odds) {
            w.break_socket();
        }
        if restarts > 0 && w.client.is_up() && w.prng.one_in(restarts) && w.term < 6 {
            w.restart();
        }
        w.serving = !w.prng.one_in(10);
    }
    for (term, handled) in &w.handled {
        let mut seen = BTreeSet::new();
        for n in handled.iter().filter(|n| **n != 0) {
            assert!(seen.insert(n), "seed {seed}: request {n} ran twice in term {term}");
        }
        let plain: Vec<_> = handled.iter().filter(|n| **n != 0 && !n.is_multiple_of(7)).collect();
        assert!(plain.is_sorted(), "seed {seed}: in the order of the calls");
    }
    assert!(w.invalidations_answered.values().all(|times| *times == 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_survive_broken_sockets(seed in any::<u64>(), breaks in 3u64..200) {
        run(seed, breaks, 0);
    }

    #[test]
    fn calls_survive_new_leaders(seed in any::<u64>(), breaks in 5u64..300, restarts in 30u64..500) {
        run(seed, breaks, restarts);
    }
}

/// Scenario 20, and the promise of the timers: silence is noticed, and the client is back before its window is over.
#[test]
fn silence_is_noticed_by_both_sides() {
    let mut w = World::new(3);
    while !w.client.is_up() {
        w.step();
    }
    w.step();
    let (t, start) = (Timers::DEFAULT, w.now);
    // The network swallows everything from now on, and the socket looks open.
    let mut client_noticed = None;
    while w.now < start + Duration::from_secs(30) && !w.expired {
        w.now = w.now + Duration::from_millis(10);
        w.client.handle_timeout(w.now);
        let server = w.server.as_mut().unwrap();
        server.handle_timeout(w.now);
        while w.client.poll_transmit().is_some() {}
        while let Some(event) = server.poll_event() {
            w.expired |= matches!(event, ServerEvent::Expired);
        }
        while let Some(event) = w.client.poll_event() {
            if matches!(event, ClientEvent::Disconnect) && client_noticed.is_none() {
                client_noticed = Some(w.now - start);
            }
        }
        if w.expired {
            assert!(w.client.lease_valid_until() < w.now, "the lease ends before the reclaim");
        }
    }
    assert!(client_noticed.unwrap() <= t.dead_peer + t.keepalive);
    assert!(w.now - start >= t.reconnect_window && w.now - start <= t.dead_peer + t.reconnect_window + t.keepalive);
}

/// U2, U3: the answer to a farewell is lost with its socket; the client learns from its missing record that it is done.
#[test]
fn a_farewell_whose_answer_was_lost_is_done() {
    let mut w = World::new(4);
    while !w.client.is_up() {
        w.step();
    }
    w.client.request(Request::Farewell, None, Urgency::Normal);
    for _ in 0..50 {
        w.now = w.now + Duration::from_millis(1);
        w.pump_client();
    }
    w.break_socket();
    w.server = None; // the engine has heard it and forgot the rid
    while w.closed.is_none() {
        w.step();
    }
    assert_eq!(w.closed, Some(Closed::Farewelled));
}
