//! Connections as short stories: N1 to N8 and scenarios 14 to 25, each by its name, where the two session machines alone
//! can tell it. docs/TESTING.md maps the others to the tests that have an engine.

use std::collections::BTreeMap;
use std::time::Duration;

use vellum_base::{BatchNo, DmaBuf, Epoch, Fsid, Ino, Rid, Term};
use vellum_proto::channel::Urgency;
use vellum_proto::server::judge;
use vellum_proto::{ClientEvent, ClientSession, Closed, ServerEvent, ServerSession, Time, Timers, Token, Window};
use vellum_wire::{Body, Frame, Greeted, Greeting, LockMode, LockName, PROTOCOL, Refusal, Request, Response};

const RID: Rid = Rid(14);
const FSID: Fsid = Fsid([7; 16]);
const WINDOW: Window = Window { max_requests: 4, max_bytes: 64 << 10 };
const MS: Duration = Duration::from_millis(1);

/// A client and the leaders that it meets. Frames arrive at once, unless a story loses them.
struct Story {
    now: Time,
    client: ClientSession,
    leader: Option<ServerSession>,
    term: u64,
    /// What the leaders' handlers ran, by term.
    handled: BTreeMap<u64, Vec<u64>>,
    open: Vec<Token>,
    answered: Vec<u64>,
    /// Requests of the leader that reached the client's handler.
    asked: Vec<Request>,
    connects: Vec<Time>,
    ups: u32,
    closed: Option<Closed>,
}

fn sync(n: u64) -> Request {
    Request::Sync { through: BatchNo(n) }
}

impl Story {
    fn new() -> Story {
        Story {
            now: Time(1),
            client: ClientSession::new(RID, None, Timers::DEFAULT, 5, Time(1)),
            leader: None,
            term: 1,
            handled: BTreeMap::new(),
            open: Vec::new(),
            answered: Vec::new(),
            asked: Vec::new(),
            connects: Vec::new(),
            ups: 0,
            closed: None,
        }
    }

    /// One that is up.
    fn begun() -> Story {
        let mut story = Story::new();
        story.meet();
        story
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.client.handle_timeout(self.now);
        if let Some(leader) = &mut self.leader {
            leader.handle_timeout(self.now);
        }
        self.events();
    }

    /// Waits until the client opens a socket; its greeting.
    fn dial(&mut self) -> (Greeting, u64) {
        let before = self.connects.len();
        while self.connects.len() == before {
            self.wait(MS);
        }
        self.client.handle_connected(self.now);
        let frame = self.client.poll_transmit().expect("a greeting goes first");
        let Body::Greeting(greeting) = frame.body else { panic!("{frame:?}") };
        (greeting, frame.ack)
    }

    /// The leader of this term takes a greeting; its answer is on its way.
    fn accept(&mut self, (greeting, ack): &(Greeting, u64)) -> Result<Frame, Refusal> {
        judge(greeting, FSID)?;
        let term = Term(self.term);
        let now = self.now;
        let leader = self.leader.get_or_insert_with(|| ServerSession::new(RID, term, WINDOW, Timers::DEFAULT, now));
        let greeted = Greeted {
            fsid: FSID,
            term,
            protocol: PROTOCOL,
            format: 1,
            last_batch: BatchNo(0),
            durable: Epoch(0),
            lease_ms: Timers::DEFAULT.lease.as_millis() as u32,
            keepalive_ms: 1000,
            max_requests: WINDOW.max_requests,
            max_data_bytes: WINDOW.max_bytes as u32,
            read_only: false,
            root: Ino::ROOT,
        };
        leader.attach(now, greeting, *ack, greeted)?;
        Ok(leader.poll_transmit().expect("the answer"))
    }

    /// A socket that works.
    fn meet(&mut self) {
        let greeting = self.dial();
        let answer = self.accept(&greeting).expect("accepted");
        self.client.handle_frame(self.now, answer).unwrap();
        self.events();
        self.client.recovered();
        self.talk();
    }

    /// The socket breaks under both.
    fn break_socket(&mut self) {
        self.client.handle_disconnect(self.now);
        if let Some(leader) = &mut self.leader {
            leader.handle_disconnect(self.now);
        }
    }

    /// The leader dies; the next one has an empty session for its record.
    fn next_leader(&mut self) {
        self.leader = None;
        self.open.clear();
        self.term += 1;
        self.client.handle_disconnect(self.now);
    }

    fn deliver_up(&mut self) -> bool {
        let (Some(frame), Some(leader)) = (self.client.poll_transmit(), &mut self.leader) else { return false };
        leader.handle_frame(self.now, frame).unwrap();
        self.events();
        true
    }

    fn deliver_down(&mut self) -> bool {
        let Some(frame) = self.leader.as_mut().and_then(ServerSession::poll_transmit) else { return false };
        self.client.handle_frame(self.now, frame).unwrap();
        self.events();
        true
    }

    fn talk(&mut self) {
        while self.deliver_up() || self.deliver_down() {}
    }

    fn events(&mut self) {
        while let Some(event) = self.leader.as_mut().and_then(ServerSession::poll_event) {
            if let ServerEvent::Request { token, request, .. } = event {
                let n = match *request {
                    Request::Sync { through } => through.0,
                    _ => 0,
                };
                self.handled.entry(self.term).or_default().push(n);
                self.open.push(token);
            }
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Connect => self.connects.push(self.now),
                ClientEvent::Up { .. } => self.ups += 1,
                ClientEvent::Request { token, request, .. } => {
                    self.asked.push((*request).clone());
                    self.client.respond(token, Response::Invalidated);
                }
                ClientEvent::Response { response, .. } => {
                    if let Response::Synced { durable } = *response {
                        self.answered.push(durable.0);
                    }
                }
                ClientEvent::Closed(why) => self.closed = Some(why),
                _ => {}
            }
        }
    }

    /// The leader answers what it has handled, with the numbers `of`.
    fn answer(&mut self, of: &[u64]) {
        let leader = self.leader.as_mut().expect("a leader");
        for (token, n) in self.open.drain(..).zip(of) {
            leader.respond(token, Response::Synced { durable: Epoch(*n) }, None);
        }
    }

    fn call(&mut self, n: u64) {
        self.client.request(sync(n), None, Urgency::Normal);
    }
}

/// The answer is lost with the socket, and the request comes again: its handler does not run again, and the caller hears
/// once.
#[test]
fn n1_a_request_is_handled_and_answered_once_in_a_term() {
    let mut s = Story::begun();
    s.call(1);
    s.deliver_up();
    s.break_socket(); // before any answer
    s.meet();
    s.answer(&[1]);
    let lost = s.leader.as_mut().unwrap().poll_transmit(); // the answer goes down with the socket
    assert!(lost.is_some());
    s.break_socket();
    s.meet();
    s.talk();
    assert_eq!((&s.handled[&1][..], &s.answered[..]), (&[1][..], &[1][..]));
}

/// Scenario 16: what a dead leader may have done is asked of the next one too; the handlers must stand it, and the caller
/// hears once.
#[test]
fn n2_scenario_16_a_request_may_run_again_with_the_next_leader() {
    let mut s = Story::begun();
    s.call(1);
    s.talk();
    assert_eq!(s.handled[&1], [1]);
    s.next_leader();
    s.meet();
    s.talk();
    assert_eq!(s.handled[&2], [1], "asked again");
    s.answer(&[1]);
    s.talk();
    assert_eq!(s.answered, [1]);
}

#[test]
fn n3_what_the_engine_says_of_a_lock_arrives_in_its_order() {
    let mut s = Story::begun();
    s.client.request(Request::Lock { wants: vec![] }, None, Urgency::Normal);
    s.talk();
    let leader = s.leader.as_mut().unwrap();
    leader.respond(s.open.remove(0), Response::Granted { grants: vec![], opens: vec![] }, None);
    let invalidation = |n| Request::Invalidate { name: LockName::Group(n), mode: LockMode::Null };
    (1..=3).for_each(|n| {
        leader.request(invalidation(n));
    });
    let first = leader.poll_transmit().unwrap();
    assert!(matches!(&first.body, Body::Response(response) if matches!(**response, Response::Granted { .. })));
    s.client.handle_frame(s.now, first).unwrap();
    s.deliver_down();
    s.break_socket(); // the rest comes over the next one, in its order and once
    s.meet();
    assert_eq!(s.asked, [invalidation(1), invalidation(2), invalidation(3)]);
}

#[test]
fn n7_peers_that_differ_say_in_what() {
    let greeting = Greeting { fsid: FSID, protocol: PROTOCOL, term: Term(0), rid: RID, flags: 0 };
    assert_eq!(judge(&greeting, FSID), Ok(()));
    assert_eq!(judge(&Greeting { fsid: Fsid::default(), ..greeting.clone() }, FSID), Ok(()), "whatever is served");
    let other = Greeting { fsid: Fsid([8; 16]), ..greeting.clone() };
    assert_eq!(judge(&other, FSID), Err(Refusal::OtherFilesystem { served: FSID }));
    let newer = Greeting { protocol: PROTOCOL + 1, ..greeting };
    assert_eq!(judge(&newer, FSID), Err(Refusal::OtherProtocol { served: PROTOCOL }));
    let mut s = Story::begun();
    s.break_socket();
    let (greeting, _) = s.dial();
    assert_eq!(greeting.fsid, FSID, "once it has served us, no other filesystem will do");
}

/// Scenario 19. The defaults are held at compile time; here is what they are for, by the clock.
#[test]
fn n8_scenario_19_a_live_client_is_back_before_its_window_ends() {
    let t = Timers::DEFAULT;
    assert!(t.keepalive < t.reconnect_window && t.reconnect_window < t.recovery_window);
    let mut s = Story::begun();
    let silent = s.now;
    // The network swallows everything and the socket looks open, as late as can be noticed.
    while s.connects.len() < 2 {
        s.wait(MS);
        while s.client.poll_transmit().is_some() {}
    }
    // The first attempt times out, the second works.
    s.wait(t.connect_attempt + t.retry_max);
    s.client.handle_disconnect(s.now);
    s.meet();
    assert!(s.now - silent < t.reconnect_window, "{:?}", s.now - silent);
    assert_eq!((s.ups, s.closed.is_none()), (2, true));
}

/// The leader has made the record and dies before its answer is out, or only the socket does: the resend finds the record
/// and that is no error.
#[test]
fn scenario_14_a_greeting_whose_answer_is_lost_is_no_stranger() {
    for leader_dies in [false, true] {
        let mut s = Story::new();
        let greeting = s.dial();
        s.accept(&greeting).expect("the answer is lost");
        if leader_dies {
            s.next_leader();
        } else {
            s.break_socket();
        }
        let again = s.dial();
        assert_eq!(again.0.term, Term(0), "it never heard of a term");
        let answer = s.accept(&again).expect("accepted");
        s.client.handle_frame(s.now, answer).unwrap();
        s.events();
        s.call(1);
        s.talk();
        s.answer(&[1]);
        s.talk();
        assert_eq!((s.ups, &s.answered[..]), (1, &[1][..]));
    }
}

/// One that was up and has forgotten it is not the client that we know.
#[test]
fn scenario_14_a_greeting_as_new_after_the_first_word_is_refused() {
    let mut s = Story::begun();
    s.break_socket();
    let mut greeting = s.dial();
    greeting.0.term = Term(0);
    assert_eq!(s.accept(&greeting).err(), Some(Refusal::Fenced));
}

#[test]
fn scenario_15_a_new_leader_counts_from_one_and_is_heard() {
    let mut s = Story::begun();
    let invalidation = |n| Request::Invalidate { name: LockName::Group(n), mode: LockMode::Null };
    for n in 1..=20 {
        s.leader.as_mut().unwrap().request(invalidation(n));
        s.talk();
    }
    s.next_leader();
    s.meet();
    s.leader.as_mut().unwrap().request(invalidation(99));
    s.talk();
    assert_eq!(s.asked.last(), Some(&invalidation(99)), "not taken for a duplicate of the old leader's first");
    assert_eq!(s.asked.len(), 21);
}

/// The client is back before the leader has noticed that it was gone: the second socket takes the place of the first.
#[test]
fn scenario_17_a_reconnect_overtakes_the_end_of_the_old_socket() {
    let mut s = Story::begun();
    s.call(1);
    s.deliver_up();
    s.answer(&[1]);
    s.client.handle_disconnect(s.now); // the leader still sees the old socket as open
    s.meet();
    assert_eq!((&s.handled[&1][..], &s.answered[..]), (&[1][..], &[1][..]), "once, over the new one");
    assert!(s.leader.as_ref().unwrap().is_up());
}

/// Retries back off with jitter up to a bound; a leader that is starting is not taken for one that refuses for good.
#[test]
fn scenario_18_a_dead_leader_is_not_hammered() {
    let t = Timers::DEFAULT;
    let mut s = Story::begun();
    s.next_leader();
    let died = s.now;
    while s.now < died + Duration::from_secs(30) {
        let before = s.connects.len();
        s.wait(MS);
        if s.connects.len() > before {
            s.client.handle_disconnect(s.now); // connection refused
        }
    }
    let attempts: Vec<Time> = s.connects.iter().copied().filter(|at| *at > died).collect();
    // Pauses are between half of the longest and all of it.
    let fewest = Duration::from_secs(30).div_duration_f64(t.retry_max) as usize;
    assert!((fewest..2 * fewest + 10).contains(&attempts.len()), "{} attempts in 30 s", attempts.len());
    let pauses: Vec<Duration> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| *pause <= t.retry_max + t.retry_max / 2 + MS), "{pauses:?}");
    assert!(pauses.last() > pauses.first());
    assert_eq!(s.closed, None);
    let _ = s.dial();
    let starting = Frame::unsequenced(Body::Refused(Refusal::NotServing), 0, Epoch(0));
    s.client.handle_frame(s.now, starting).unwrap();
    s.events();
    assert_eq!(s.closed, None);
    s.meet();
    assert_eq!(s.ups, 2);
}

/// With every credit in use by data that nobody acknowledges, keepalives still go, and a peer that is dead is noticed.
#[test]
fn scenario_20_data_in_flight_hides_no_dead_peer() {
    let t = Timers::DEFAULT;
    let mut s = Story::begun();
    for _ in 0..2 * WINDOW.max_requests {
        s.client.request(Request::WriteData, Some(DmaBuf::zeroed(32 << 10).freeze()), Urgency::Normal);
    }
    let start = s.now;
    let mut keepalives = 0;
    while s.client.is_up() {
        while let Some(frame) = s.client.poll_transmit() {
            keepalives += u32::from(matches!(&frame.body, Body::Request(request) if **request == Request::Keepalive));
        }
        s.wait(MS);
        assert!(s.now - start < t.dead_peer + t.keepalive, "believed for too long");
    }
    assert!(keepalives >= 1);
    assert!(s.client.lease_valid_until() < s.now + t.lease);
}

/// U2: the last leader is gone with the record, or only the answer was lost. Gone means done.
#[test]
fn scenario_24_a_farewell_is_over_when_its_record_is_gone() {
    let mut s = Story::begun();
    s.client.request(Request::Farewell, None, Urgency::Normal);
    s.deliver_up();
    s.next_leader();
    let _ = s.dial();
    let gone = Frame::unsequenced(Body::Refused(Refusal::Fenced), 0, Epoch(0));
    s.client.handle_frame(s.now, gone).unwrap();
    s.events();
    assert_eq!(s.closed, Some(Closed::Farewelled));
}

/// A call that no leader will ever take ends with the connection; it is not waited for.
#[test]
fn scenario_25_what_can_not_be_sent_is_not_waited_for() {
    let mut s = Story::begun();
    s.next_leader();
    s.call(1);
    let _ = s.dial();
    let fenced = Frame::unsequenced(Body::Refused(Refusal::Fenced), 0, Epoch(0));
    s.client.handle_frame(s.now, fenced).unwrap();
    s.events();
    assert_eq!(s.closed, Some(Closed::Refused(Refusal::Fenced)));
    assert_eq!(s.client.next_timeout(), None, "and nothing is tried any more");
}
