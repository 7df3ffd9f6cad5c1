//! Members in virtual time: a shared device whose writes take time and land on their own, a network that loses, doubles,
//! delays and cuts, processes that are killed, paused and started again, engines that write until they are told to stop.
//! A run is a function of its seed.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{Fsid, Rid, Slot, Term};
use vellum_format::quorum::{SlotBlock, SlotError, SlotState};
use vellum_proto::Time;
use vellum_proto::quorum::{FenceTarget, Quorum, QuorumConfig, QuorumOutput, QuorumRole, QuorumTimers};
use vellum_wire::{NoAuth, QuorumDatagram};

use crate::checkers::{Checkers, Fact};

pub const FSID: Fsid = Fsid([7; 16]);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What one node's device path does.
#[derive(Clone, Copy)]
pub struct Disk {
    pub write: (Duration, Duration),
    /// Writes begun before this time land only then.
    pub stalled_until: Time,
    pub writes_fail: bool,
    pub reads_fail: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Fencer {
    Works {
        takes: Duration,
    },
    Fails,
    /// The script never ends.
    Hangs,
}

pub struct Node {
    pub slot: Slot,
    pub rid: Rid,
    pub machine: Option<Quorum>,
    pub paused: bool,
    /// What happened while it was paused.
    held: Vec<Event>,
    pub engine: Option<Engine>,
    pub disk: Disk,
    pub fencer: Fencer,
    timer: u64,
    /// Rounds that the engine waits for: number and when it was begun.
    rounds: Vec<(u64, Time)>,
    pub confirmed: u64,
    pub failed: Option<String>,
    /// The engine does not come up.
    pub engine_fails: bool,
    /// How long the engine's orderly stop takes.
    pub engine_stops_in: Duration,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Engine {
    pub term: Term,
    /// It has opened the device.
    pub serves: bool,
    pub stopping: bool,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
enum Event {
    Deliver { to: usize, bytes: Vec<u8> },
    Timer { node: usize, timer: u64 },
    Landed { node: usize, rid: Rid, block: SlotBlock },
    WriteDone { node: usize, rid: Rid, seq: u64, took: Duration, failed: bool },
    Read { node: usize, rid: Rid },
    ReadDone { node: usize, rid: Rid, blocks: Box<[SlotState; Slot::COUNT]> },
    FenceDone { node: usize, rid: Rid, term: Term, targets: Vec<FenceTarget>, ok: bool },
    EngineTick { node: usize, rid: Rid, term: Term },
    EngineLanded { rid: Rid, term: Term },
    EngineStopped { node: usize, rid: Rid, term: Term },
    EngineOpens { node: usize, rid: Rid, term: Term },
    Start { node: usize },
    Wake { node: usize },
}

impl Event {
    /// Whose process must run for it to be seen.
    fn node(&self) -> Option<usize> {
        match self {
            Event::Deliver { to: node, .. }
            | Event::Timer { node, .. }
            | Event::WriteDone { node, .. }
            | Event::ReadDone { node, .. }
            | Event::FenceDone { node, .. }
            | Event::EngineTick { node, .. }
            | Event::EngineStopped { node, .. }
            | Event::EngineOpens { node, .. } => Some(*node),
            Event::Landed { .. }
            | Event::Read { .. }
            | Event::EngineLanded { .. }
            | Event::Start { .. }
            | Event::Wake { .. } => None,
        }
    }
}

struct Queued {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub struct World {
    pub now: Time,
    pub prng: Prng,
    queue: BinaryHeap<Queued>,
    order: u64,
    device: Vec<SlotBlockBytes>,
    pub nodes: Vec<Node>,
    pub timers: QuorumTimers,
    configured: u16,
    /// Messages per thousand that are lost, that come twice.
    pub loss: u64,
    pub doubled: u64,
    pub delay: (Duration, Duration),
    /// (from, to) by node.
    pub cuts: BTreeSet<(usize, usize)>,
    /// Slots that nobody can read.
    pub unreadable: BTreeSet<Slot>,
    next_rid: u64,
    /// Events since time last passed.
    still: u64,
    /// Until when writes of a run may still land.
    landing: BTreeMap<Rid, Time>,
    pub checkers: Checkers,
    pub trace: Vec<String>,
    pub seed: u64,
    /// What the shared structures say.
    manifest_term: Term,
    /// Who leaves comes back.
    pub peace: bool,
    /// Members start on a host that cannot know whether the run before is gone.
    pub watch: bool,
}

type SlotBlockBytes = [u8; 4096];

impl World {
    /// Members in slots `0..slots`, none started.
    pub fn new(seed: u64, slots: usize) -> World {
        let configured = (1u32 << slots) - 1;
        let mut world = World {
            now: Time(1_000_000_000),
            prng: Prng::new(seed),
            queue: BinaryHeap::new(),
            order: 0,
            device: vec![[0; 4096]; Slot::COUNT],
            nodes: Vec::new(),
            timers: QuorumTimers::DEFAULT,
            configured: configured as u16,
            loss: 0,
            doubled: 0,
            delay: (Duration::from_micros(50), Duration::from_micros(500)),
            cuts: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            next_rid: 1,
            still: 0,
            landing: BTreeMap::new(),
            checkers: Checkers::new(slots),
            trace: Vec::new(),
            seed,
            manifest_term: Term::NONE,
            peace: false,
            watch: false,
        };
        for slot in 0..slots {
            world.add_node(Slot(slot as u8));
        }
        world
    }

    pub fn add_node(&mut self, slot: Slot) -> usize {
        self.nodes.push(Node {
            slot,
            rid: Rid(0),
            machine: None,
            paused: false,
            held: Vec::new(),
            engine: None,
            disk: Disk {
                write: (Duration::from_micros(50), ms(1)),
                stalled_until: Time(0),
                writes_fail: false,
                reads_fail: false,
            },
            fencer: Fencer::Works { takes: ms(20) },
            timer: 0,
            rounds: Vec::new(),
            confirmed: 0,
            failed: None,
            engine_fails: false,
            engine_stops_in: ms(5),
        });
        self.nodes.len() - 1
    }

    pub fn all_started(seed: u64, slots: usize) -> World {
        let mut world = World::new(seed, slots);
        (0..slots).for_each(|node| world.start(node));
        world
    }

    pub fn between(&mut self, (least, most): (Duration, Duration)) -> Duration {
        let span = (most.saturating_sub(least).as_nanos() as u64).max(1);
        least + Duration::from_nanos(self.prng.below(span))
    }

    fn say(&mut self, what: String) {
        let line = format!("{:>9.3} {what}", self.now.0 as f64 / 1e9 - 1.0);
        if std::env::var_os("QUORUM_TRACE").is_some() {
            eprintln!("{line}");
        }
        self.trace.push(line);
        if self.trace.len() > 20_000 {
            self.trace.drain(..10_000);
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.queue.push(Queued { at, order: self.order, event });
    }

    fn check(&mut self, fact: Fact) {
        let now = self.now;
        if let Err(broken) = self.checkers.check(now, &fact) {
            let tail = self.trace.iter().rev().take(80).rev().cloned().collect::<Vec<_>>().join("\n");
            panic!("seed {}: {broken}\n{tail}\n{fact:?}", self.seed);
        }
    }

    // ---- processes

    pub fn start(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() {
            return;
        }
        // The slot's lock is free only when the last write of the run before has landed.
        if let Some(landed) = self.landing.get(&self.nodes[node].rid).filter(|at| **at > self.now) {
            return self.at(*landed, Event::Start { node });
        }
        let rid = Rid(self.next_rid);
        self.next_rid += 1;
        let blocks = self.read(node);
        let slot = self.nodes[node].slot;
        let mut config = QuorumConfig::new(slot, self.configured, rid, self.prng.next_u64());
        config.timers = self.timers;
        config.watch = self.watch;
        self.say(format!("node {node} slot {slot} starts as {rid}"));
        match Quorum::new(config, &blocks, self.now) {
            Ok(machine) => {
                let n = &mut self.nodes[node];
                (n.rid, n.machine, n.engine, n.paused, n.failed) = (rid, Some(machine), None, false, None);
                n.rounds.clear();
                n.held.clear();
                self.check(Fact::Started { slot, rid });
                self.pump(node);
            }
            Err(error) => {
                self.say(format!("node {node} cannot start: {error}"));
                self.at(self.now + ms(500), Event::Start { node });
            }
        }
    }

    pub fn start_in(&mut self, node: usize, after: Duration) {
        self.at(self.now + after, Event::Start { node });
    }

    /// kill -9. What it had sent to the device may still land.
    pub fn kill(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if n.machine.take().is_some() {
            (n.engine, n.paused) = (None, false);
            n.held.clear();
            let rid = n.rid;
            self.say(format!("node {node} ({rid}) is killed"));
        }
    }

    pub fn pause(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() {
            self.nodes[node].paused = true;
            self.say(format!("node {node} is paused"));
        }
    }

    pub fn wake(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        self.say(format!("node {node} wakes"));
        let held = std::mem::take(&mut self.nodes[node].held);
        // Datagrams wait in the socket; the driver reads them before it believes a timeout.
        let (datagrams, others): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|event| matches!(event, Event::Deliver { .. }));
        datagrams.into_iter().chain(others).for_each(|event| self.happen(event));
    }

    pub fn wake_in(&mut self, node: usize, after: Duration) {
        self.at(self.now + after, Event::Wake { node });
    }

    pub fn input(&mut self, node: usize, input: impl FnOnce(&mut Quorum, Time)) {
        let now = self.now;
        if let Some(machine) = &mut self.nodes[node].machine {
            input(machine, now);
            self.pump(node);
        }
    }

    // ---- queries

    /// The node that leads and whose engine runs.
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| self.role(*n) == Some(QuorumRole::Leading) && self.nodes[*n].engine.is_some())
    }

    pub fn role(&self, node: usize) -> Option<QuorumRole> {
        self.nodes[node].machine.as_ref().map(|m| m.status(self.now).role)
    }

    pub fn term(&self, node: usize) -> Term {
        self.nodes[node].machine.as_ref().map_or(Term::NONE, |m| m.status(self.now).term)
    }

    pub fn isolate(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.cuts.extend([(node, other), (other, node)]);
        }
    }

    pub fn block(&self, slot: Slot) -> SlotState {
        SlotState::decode(&self.device[slot.index()], slot, &FSID)
    }

    fn read(&self, node: usize) -> Box<[SlotState; Slot::COUNT]> {
        let read = |slot| {
            if self.nodes[node].disk.reads_fail || self.unreadable.contains(&slot) {
                return SlotState::Unreadable(SlotError::Read { slot, why: "an error of the model".into() });
            }
            self.block(slot)
        };
        Box::new(std::array::from_fn(|n| read(Slot(n as u8))))
    }

    // ---- time

    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(queued) = self.queue.peek() {
            if queued.at > until {
                break;
            }
            let queued = self.queue.pop().expect("peeked");
            // A deadline that stays due is a driver that spins.
            self.still = if queued.at > self.now { 0 } else { self.still + 1 };
            assert!(self.still < 10_000, "seed {}: no progress: {:?}", self.seed, queued.event);
            self.now = self.now.max(queued.at);
            self.happen(queued.event);
        }
        self.now = until;
    }

    /// Runs until `done`, at most `limit`; how long it took.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&World) -> bool) -> Duration {
        let begun = self.now;
        while !done(self) {
            assert!(self.now - begun < limit, "seed {}: not done in {limit:?}\n{}", self.seed, self.tail());
            self.run_for(ms(5));
        }
        self.now - begun
    }

    pub fn tail(&self) -> String {
        self.trace.iter().rev().take(60).rev().cloned().collect::<Vec<_>>().join("\n")
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = event.node()
            && self.nodes[node].paused
        {
            return self.nodes[node].held.push(event);
        }
        let now = self.now;
        let is = |w: &World, node: usize, rid: Rid| w.nodes[node].rid == rid && w.nodes[node].machine.is_some();
        match event {
            Event::Deliver { to, bytes } => {
                let Ok(datagram) = QuorumDatagram::decode(&bytes, &NoAuth) else { return };
                if self.nodes[to].machine.is_some() {
                    let (slot, message) = (self.nodes[to].slot, datagram.message);
                    self.check(Fact::Received { by: slot, from: datagram.from, message });
                    self.input(to, |m, now| m.handle_message(now, datagram.from, datagram.message));
                }
            }
            Event::Timer { node, timer } if self.nodes[node].timer == timer => {
                self.input(node, |m, now| m.handle_timeout(now));
            }
            Event::Timer { .. } => {}
            Event::Landed { node, rid, block } => {
                let slot = self.nodes[node].slot;
                let before = self.block(slot);
                self.device[slot.index()] = block.encode(&FSID);
                self.check(Fact::BlockLanded { rid, before, block });
            }
            Event::WriteDone { node, rid, seq, took, failed } if is(self, node, rid) => {
                self.input(node, |m, now| match failed {
                    true => m.handle_write_failed(now, seq, "an error of the model"),
                    false => m.handle_written(now, seq, took),
                });
            }
            Event::Read { node, rid } => {
                let blocks = self.read(node);
                let answer = self.between((Duration::from_micros(40), ms(1)));
                self.at(self.now + answer, Event::ReadDone { node, rid, blocks });
            }
            Event::ReadDone { node, rid, blocks } if is(self, node, rid) => {
                self.input(node, |m, now| m.handle_blocks(now, &blocks));
            }
            Event::FenceDone { node, rid, term, targets, ok } => {
                if ok {
                    targets.iter().for_each(|target| self.fenced(target));
                }
                if is(self, node, rid) {
                    let result = if ok { Ok(()) } else { Err("the script failed".into()) };
                    self.input(node, |m, now| m.handle_fenced(now, term, result));
                }
            }
            Event::EngineTick { node, rid, term } if is(self, node, rid) => self.engine_tick(node, term),
            Event::EngineLanded { rid, term } => self.check(Fact::EngineWrote { rid, term }),
            Event::EngineStopped { node, rid, term } if is(self, node, rid) => {
                self.nodes[node].engine = None;
                self.check(Fact::EngineStopped { term });
                self.input(node, |m, now| m.handle_stopped(now));
            }
            Event::EngineOpens { node, rid, term } if is(self, node, rid) => self.engine_opens(node, term),
            Event::Start { node } => self.start(node),
            Event::Wake { node } => self.wake(node),
            _ => {}
        }
        let _ = now;
    }

    /// The target is dead and nothing of it is on its way to the device.
    fn fenced(&mut self, target: &FenceTarget) {
        let rids = self.victims(target);
        rids.into_iter().for_each(|rid| self.check(Fact::Fenced { rid }));
    }

    fn victims(&self, target: &FenceTarget) -> Vec<Rid> {
        match target.rid {
            Some(rid) => vec![rid],
            // Whoever ran in that slot: fencing by address stops them all.
            None => self.checkers.runs(target.slot),
        }
    }

    /// The engine finds the newest term that was served in its manifest, and refuses to go back (a predecessor's block
    /// that could not be read may have hidden a newer one).
    fn engine_opens(&mut self, node: usize, term: Term) {
        if self.nodes[node].engine != Some(Engine { term, serves: false, stopping: false }) {
            return;
        }
        let newest = self.manifest_term;
        if self.nodes[node].engine_fails || term <= newest {
            return self.input(node, |m, now| {
                m.raise_floor(newest);
                m.resign(now, "the engine does not start");
            });
        }
        self.manifest_term = term;
        self.nodes[node].engine = Some(Engine { term, serves: true, stopping: false });
        self.check(Fact::Serves { term });
        self.engine_tick(node, term);
    }

    fn engine_tick(&mut self, node: usize, term: Term) {
        if self.nodes[node].engine != Some(Engine { term, serves: true, stopping: false }) {
            return;
        }
        let rid = self.nodes[node].rid;
        let takes = self.between((Duration::from_micros(100), ms(3)));
        let landed = self.land(node, takes);
        self.at(landed, Event::EngineLanded { rid, term });
        let mut round = 0;
        self.input(node, |m, now| round = m.begin_round(now));
        let begun = self.now;
        self.nodes[node].rounds.push((round, begun));
        self.drain_rounds(node);
        let next = self.between((ms(5), ms(40)));
        self.at(self.now + next, Event::EngineTick { node, rid, term });
    }

    /// When a write of `node` that takes so long lands.
    fn land(&mut self, node: usize, takes: Duration) -> Time {
        let rid = self.nodes[node].rid;
        let at = (self.now + takes).max(self.nodes[node].disk.stalled_until);
        let last = self.landing.entry(rid).or_insert(at);
        *last = (*last).max(at);
        at
    }

    // ---- the driver

    fn pump(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].machine.as_mut().and_then(Quorum::poll_output) {
            self.output(node, output);
        }
        self.drain_rounds(node);
        let Some(machine) = &self.nodes[node].machine else { return };
        let due = machine.next_timeout();
        self.nodes[node].timer += 1;
        let timer = self.nodes[node].timer;
        if let Some(due) = due {
            self.at(due.max(self.now), Event::Timer { node, timer });
        }
    }

    fn output(&mut self, node: usize, output: QuorumOutput) {
        let (slot, rid) = (self.nodes[node].slot, self.nodes[node].rid);
        match output {
            QuorumOutput::Send { to, message } => {
                let device = self.block(slot);
                self.check(Fact::Sent { by: slot, to, message, device });
                let bytes = QuorumDatagram { fsid: FSID, from: slot, to, message }.encode(&NoAuth);
                let receivers: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].slot == to).collect();
                for receiver in receivers {
                    let copies = if self.prng.below(1000) < self.doubled { 2 } else { 1 };
                    for _ in 0..copies {
                        let delay = self.between(self.delay);
                        let lost = self.prng.below(1000) < self.loss || self.cuts.contains(&(node, receiver));
                        if !lost {
                            self.at(self.now + delay, Event::Deliver { to: receiver, bytes: bytes.clone() });
                        }
                    }
                }
            }
            QuorumOutput::Write { seq, block } => {
                self.check(Fact::Writes { rid });
                let disk = self.nodes[node].disk;
                let takes = self.between(disk.write);
                let begun = self.now;
                if disk.writes_fail {
                    let done = Event::WriteDone { node, rid, seq, took: takes, failed: true };
                    return self.at(begun + takes, done);
                }
                let lands = self.land(node, takes);
                self.at(lands, Event::Landed { node, rid, block });
                let later = self.between((Duration::ZERO, ms(1)));
                let took = lands + later - begun;
                self.at(lands + later, Event::WriteDone { node, rid, seq, took, failed: false });
            }
            QuorumOutput::ReadBlocks => {
                // The device answers as of some moment between the question and the answer.
                let read = self.between((Duration::from_micros(10), ms(1)));
                self.at(self.now + read, Event::Read { node, rid });
            }
            QuorumOutput::Fence { term, targets } => self.fence(node, term, targets),
            QuorumOutput::Lead { term } => {
                self.say(format!("node {node} leads term {term}"));
                let blocks = Slot::all().map(|slot| self.block(slot)).collect();
                self.check(Fact::Lead { rid, slot, term, blocks });
                assert!(self.nodes[node].engine.is_none(), "one engine at a time");
                self.nodes[node].engine = Some(Engine { term, serves: false, stopping: false });
                self.at(self.now + ms(3), Event::EngineOpens { node, rid, term });
            }
            QuorumOutput::StopLeading { term, why } => {
                self.say(format!("node {node} stops leading term {term}: {why}"));
                let engine = self.nodes[node].engine.as_mut().expect("it leads");
                assert_eq!((engine.term, engine.stopping), (term, false));
                engine.stopping = true;
                // Its last writes are awaited before it has stopped.
                let stops = self.now + self.nodes[node].engine_stops_in;
                let takes = self.nodes[node].engine_stops_in;
                if self.nodes[node].engine.is_some_and(|e| e.serves) {
                    let landed = self.land(node, takes);
                    self.at(landed, Event::EngineLanded { rid, term });
                }
                let drained = self.landing.get(&rid).copied().unwrap_or(stops);
                self.at(stops.max(drained), Event::EngineStopped { node, rid, term });
            }
            QuorumOutput::RoundConfirmed { round } => {
                let n = &mut self.nodes[node];
                n.confirmed = n.confirmed.max(round);
            }
            QuorumOutput::Stopped => {
                self.say(format!("node {node} has left"));
                self.kill(node);
                if self.peace {
                    self.start_in(node, ms(300));
                }
            }
            QuorumOutput::Failed { why } => {
                self.say(format!("node {node} fails: {why}"));
                self.nodes[node].failed = Some(why);
                self.check(Fact::Failed { rid });
            }
        }
    }

    fn drain_rounds(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let confirmed = n.confirmed;
        let (done, open) = n.rounds.drain(..).partition(|(round, _)| *round <= confirmed);
        n.rounds = open;
        let Some(engine) = n.engine else { return };
        let done: Vec<(u64, Time)> = done;
        for (_, begun) in done {
            self.check(Fact::RoundConfirmed { term: engine.term, begun });
        }
    }

    fn fence(&mut self, node: usize, term: Term, targets: Vec<FenceTarget>) {
        let (rid, names) = (self.nodes[node].rid, targets.iter().map(|t| format!("{}:{:?}", t.slot, t.rid)));
        let names: Vec<_> = names.collect();
        self.say(format!("node {node} fences {} for term {term}", names.join(" ")));
        match self.nodes[node].fencer {
            Fencer::Hangs => {}
            Fencer::Fails => self.at(self.now + ms(10), Event::FenceDone { node, rid, term, targets, ok: false }),
            Fencer::Works { takes } => {
                let mut done = self.now + takes;
                for target in &targets {
                    for victim in self.victims(target) {
                        let nodes: Vec<usize> =
                            (0..self.nodes.len()).filter(|n| self.nodes[*n].rid == victim).collect();
                        for n in nodes {
                            self.kill(n);
                            let again = self.between((ms(200), ms(3000)));
                            self.start_in(n, again);
                        }
                        // The fencer waits for the lock that goes with the last write.
                        done = done.max(self.landing.get(&victim).copied().unwrap_or(done));
                    }
                }
                self.at(done, Event::FenceDone { node, rid, term, targets, ok: true });
            }
        }
    }
}
