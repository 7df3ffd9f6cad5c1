//! What the reactors of one world share: time, entropy, pending events, the network, the trace.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::task::Waker;
use std::time::Duration;

use vellum_base::prng::Prng;

use super::clock::NodeClock;
use super::config::SimConfig;
use super::connection::Connection;
use super::network::{Address, Event, Listening, Socket};
use super::trace::{Step, Trace};
use super::world::NodeId;
use crate::time::nanos;

/// World time at the start: not 0, so that no arithmetic on instants runs below it.
const START: u64 = 1_000_000_000;

pub(super) struct Node {
    pub clock: NodeClock,
    /// Entropy that the node's tasks draw.
    pub prng: Prng,
    /// Power is on: its kernel answers, even if no process runs.
    pub powered: bool,
    pub paused: bool,
}

pub(super) struct Core {
    pub now: u64,
    pub config: SimConfig,
    /// Draws for scheduling and for the network; separate, so that one more datagram does not reorder all tasks.
    pub schedule: Prng,
    pub chance: Prng,
    pub trace: Trace,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub nodes: Vec<Node>,
    /// Directed pairs that cannot talk.
    pub cuts: BTreeSet<(NodeId, NodeId)>,
    pub listeners: BTreeMap<Address, Listening>,
    /// The last node that bound an address: who does not answer when nobody listens there.
    pub owners: BTreeMap<SocketAddr, NodeId>,
    pub connections: BTreeMap<u64, Connection>,
    pub next_connection: u64,
    /// By address and machine: two machines may claim one address, and what is sent there gets to the later one.
    pub sockets: BTreeMap<(SocketAddr, NodeId), Socket>,
    pub next_port: u16,
    /// To be woken when the core is no longer borrowed.
    pub wakes: Vec<Waker>,
}

/// The core, shared by the world, its reactors and their sockets.
pub(crate) struct Shared {
    core: RefCell<Core>,
}

impl Shared {
    pub fn new(seed: u64, config: SimConfig) -> Shared {
        let mut seeds = Prng::new(seed);
        let core = Core {
            now: START,
            config,
            schedule: Prng::new(seeds.next_u64()),
            chance: Prng::new(seeds.next_u64()),
            trace: Trace::default(),
            events: BTreeMap::new(),
            next_event: 0,
            nodes: Vec::new(),
            cuts: BTreeSet::new(),
            listeners: BTreeMap::new(),
            owners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            sockets: BTreeMap::new(),
            next_port: 50_000,
            wakes: Vec::new(),
        };
        Shared { core: RefCell::new(core) }
    }

    /// Runs `f` on the core, then wakes whom it said to wake.
    pub fn with<R>(&self, f: impl FnOnce(&mut Core) -> R) -> R {
        let (result, wakes) = {
            let mut core = self.core.borrow_mut();
            let result = f(&mut core);
            (result, std::mem::take(&mut core.wakes))
        };
        for waker in wakes {
            waker.wake();
        }
        result
    }
}

impl Core {
    pub fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.chance.one_in(n)
    }

    /// A duration of the range, in nanoseconds, drawn from the network's chances.
    pub fn draw(&mut self, range: &Range<Duration>) -> u64 {
        draw(&mut self.chance, range)
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        let key = (at.max(self.now), self.next_event);
        self.next_event += 1;
        self.events.insert(key, event);
    }

    pub fn next_event_at(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Makes all events happen that are due; returns how many.
    pub fn run_events(&mut self) -> usize {
        let mut count = 0;
        while let Some(first) = self.events.first_entry() {
            if first.key().0 > self.now {
                break;
            }
            let event = first.remove();
            self.happen(event);
            count += 1;
        }
        count
    }

    pub fn step(&mut self, node: NodeId, place: u64, what: &'static str) {
        let step = Step { at: self.now, place: (node.0, place), what };
        self.trace.add(step);
    }

    pub fn wake(&mut self, waker: &mut Option<Waker>) {
        self.wakes.extend(waker.take());
    }
}

pub(super) fn draw(prng: &mut Prng, range: &Range<Duration>) -> u64 {
    let (from, to) = (nanos(range.start), nanos(range.end));
    if to > from { from + prng.below(to - from) } else { from }
}
