//! What goes wrong, for how long, and in which words the story tells it.

use std::fmt;
use std::time::Duration;

use vellum_base::prng::Prng;

use crate::check::reach::Disturbed;

/// In the place of a node's number: who leads when the fault begins, and another node than that.
pub const LEADER: usize = usize::MAX;
pub const FOLLOWER: usize = usize::MAX - 1;

/// A machine of the run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Machine {
    Node(usize),
    Client(usize),
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Machine::Node(n) => f.write_str(&name(*n)),
            Machine::Client(n) => write!(f, "client {n}"),
        }
    }
}

fn name(node: usize) -> String {
    match node {
        LEADER => "the leader".into(),
        FOLLOWER => "a follower".into(),
        node => format!("node {node}"),
    }
}

/// What the nodes do at a moment that a fault waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Something is written to the manifest.
    Manifest,
    /// A batch has freed blocks.
    Frees,
    /// A group of inodes is given out.
    GivesGroup,
    /// A compaction has ended.
    Compacted,
    /// A client is given up.
    Reclaims,
    /// An epoch is called durable.
    Durable,
}

impl Moment {
    const ALL: [Moment; 6] =
        [Moment::Manifest, Moment::Frees, Moment::GivesGroup, Moment::Compacted, Moment::Reclaims, Moment::Durable];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Manifest => "the manifest is written",
            Moment::Frees => "blocks are freed",
            Moment::GivesGroup => "a group of inodes is given out",
            Moment::Compacted => "a compaction has ended",
            Moment::Reclaims => "a client is given up",
            Moment::Durable => "an epoch is durable",
        })
    }
}

/// How an operation of the device goes astray.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stray {
    /// A write is acknowledged and lost.
    Lost,
    /// A write lands somewhere else.
    Elsewhere,
    /// A write fails, and some of it has landed.
    WriteFails,
    ReadFails,
}

impl Stray {
    pub const ALL: [Stray; 4] = [Stray::Lost, Stray::Elsewhere, Stray::WriteFails, Stray::ReadFails];
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// All nodes and the device lose their power, and come back after `down`.
    PowerLoss {
        down: Duration,
    },
    /// The power fails so long after the first such moment, if it comes within [`Fault::PATIENCE`].
    PowerLossAt {
        moment: Moment,
        later: Duration,
        down: Duration,
    },
    /// So many of the next reads of a node's process lie: one bit is another one, or what they give is old.
    LyingReads {
        node: usize,
        operations: u64,
        old: bool,
    },
    /// kill -9 of a node's process; another one is started after `down`.
    NodeDies {
        node: usize,
        down: Duration,
    },
    /// The node's machine is off for so long: nobody hears of it.
    NodeOff {
        node: usize,
        down: Duration,
    },
    Pause {
        machine: Machine,
        time: Duration,
    },
    /// The machine is suspended: what is sent to it meanwhile is lost.
    Suspended {
        machine: Machine,
        time: Duration,
    },
    ClientDies {
        client: usize,
    },
    /// Nothing gets from one to the other; in both directions unless `one_way`.
    Cut {
        from: Machine,
        to: Machine,
        one_way: bool,
        time: Duration,
    },
    /// A node hears and reaches no other node; clients do reach it.
    Isolated {
        node: usize,
        time: Duration,
    },
    SlowDevice {
        time: Duration,
    },
    /// The next operations take so much longer, and then all are answered.
    Stall {
        operations: u64,
        time: Duration,
    },
    /// Only one node's way to the device is as slow.
    NodeStall {
        node: usize,
        operations: u64,
        time: Duration,
    },
    /// A flush fails, and the device with it; the device is replaced after `down`.
    FlushFails {
        down: Duration,
    },
    /// The node's process reads nothing but the members' blocks.
    NodeReadsFail {
        node: usize,
        time: Duration,
    },
    /// No other process reads the block of the member in this slot.
    BlockUnreadable {
        node: usize,
        time: Duration,
    },
    /// Another process is started in the node's slot, on a machine that claims the same address; it is ended after `time`.
    Twin {
        node: usize,
        time: Duration,
    },
    /// So many of the next reads take so much longer, and nothing else does.
    ReadsStall {
        operations: u64,
        time: Duration,
    },
    /// So many of the node's next operations go astray.
    Astray {
        node: usize,
        operations: u64,
        how: Stray,
    },
    /// One of the superblock's copies rots.
    SuperblockRots,
    /// The operator tells a node to stop, and starts it again after `down`.
    Stop {
        node: usize,
        down: Duration,
    },
    /// The network gets worse for a while.
    Storm {
        time: Duration,
    },
}

/// A fault and when it begins, from the start of the run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timed {
    pub at: Duration,
    pub fault: Fault,
}

impl Timed {
    /// Nothing of it is left from then on.
    pub fn end(&self) -> Duration {
        self.at + self.fault.lasts()
    }
}

fn ms(prng: &mut Prng, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + prng.below(to - from))
}

impl Fault {
    /// How long a moment is waited for.
    pub const PATIENCE: Duration = Duration::from_millis(600);

    /// One of those that come at a moment.
    pub fn draw_at_moment(prng: &mut Prng) -> Fault {
        let moment = Moment::ALL[prng.below(Moment::ALL.len() as u64) as usize];
        let later = Duration::from_micros([0, 200, 2000, 20_000][prng.below(4) as usize]);
        Fault::PowerLossAt { moment, later: later.mul_f64(prng.below(100) as f64 / 100.0), down: ms(prng, 0, 50) }
    }

    pub fn draw(prng: &mut Prng, nodes: usize, clients: usize) -> Fault {
        let node = if nodes > 1 && prng.one_in(3) { LEADER } else { prng.below(nodes as u64) as usize };
        let client = prng.below(clients as u64) as usize;
        let anyone = |prng: &mut Prng| {
            if prng.one_in(2) {
                Machine::Node(prng.below(nodes as u64) as usize)
            } else {
                Machine::Client(prng.below(clients as u64) as usize)
            }
        };
        match prng.below(if nodes == 1 { 16 } else { 24 }) {
            0..=2 => Fault::PowerLoss { down: ms(prng, 0, 500) },
            3 | 4 => Fault::NodeDies { node, down: ms(prng, 0, 500) },
            // Some last longer than a client is waited for.
            5 | 6 => Fault::Cut {
                from: Machine::Node(node),
                to: Machine::Client(client),
                one_way: prng.one_in(3),
                time: ms(prng, 50, 2500),
            },
            7 | 8 => Fault::Pause { machine: anyone(prng), time: ms(prng, 20, 1200) },
            9 => Fault::SlowDevice { time: ms(prng, 200, 1000) },
            10 => Fault::Stall { operations: 4, time: ms(prng, 100, 3000) },
            11 => Fault::FlushFails { down: ms(prng, 50, 1000) },
            12 => Fault::Storm { time: ms(prng, 200, 1500) },
            13 => Fault::Stop { node, down: ms(prng, 0, 300) },
            14 | 15 => Fault::ClientDies { client },
            16 | 17 => Fault::NodeDies { node, down: ms(prng, 0, 3000) },
            18 => Fault::NodeOff { node, down: ms(prng, 100, 3000) },
            19 | 20 => Fault::Pause { machine: Machine::Node(node), time: ms(prng, 100, 4000) },
            21 => Fault::Isolated { node, time: ms(prng, 100, 3000) },
            22 => Fault::NodeStall { node, operations: 1 + prng.below(8), time: ms(prng, 100, 3000) },
            _ => Fault::Cut {
                from: Machine::Node(node),
                to: Machine::Node(prng.below(nodes as u64) as usize),
                one_way: prng.one_in(2),
                time: ms(prng, 50, 3000),
            },
        }
    }

    /// With the nodes' numbers in the place of their parts.
    pub fn resolved(&self, resolve: impl Fn(usize) -> usize) -> Fault {
        let mut fault = self.clone();
        match &mut fault {
            Fault::NodeDies { node, .. }
            | Fault::NodeOff { node, .. }
            | Fault::Isolated { node, .. }
            | Fault::NodeStall { node, .. }
            | Fault::NodeReadsFail { node, .. }
            | Fault::LyingReads { node, .. }
            | Fault::BlockUnreadable { node, .. }
            | Fault::Twin { node, .. }
            | Fault::Astray { node, .. }
            | Fault::Suspended { machine: Machine::Node(node), .. }
            | Fault::Pause { machine: Machine::Node(node), .. }
            | Fault::Stop { node, .. } => *node = resolve(*node),
            Fault::Cut { from, to, .. } => {
                for machine in [from, to] {
                    if let Machine::Node(node) = machine {
                        *node = resolve(*node);
                    }
                }
            }
            _ => {}
        }
        fault
    }

    pub fn lasts(&self) -> Duration {
        match self {
            Fault::PowerLoss { down }
            | Fault::NodeDies { down, .. }
            | Fault::NodeOff { down, .. }
            | Fault::FlushFails { down }
            | Fault::Stop { down, .. } => *down,
            Fault::Pause { time, .. }
            | Fault::Cut { time, .. }
            | Fault::Isolated { time, .. }
            | Fault::SlowDevice { time }
            | Fault::Stall { time, .. }
            | Fault::NodeStall { time, .. }
            | Fault::NodeReadsFail { time, .. }
            | Fault::Suspended { time, .. }
            | Fault::BlockUnreadable { time, .. }
            | Fault::Twin { time, .. }
            | Fault::ReadsStall { time, .. }
            | Fault::Storm { time } => *time,
            Fault::PowerLossAt { later, down, .. } => Fault::PATIENCE + *later + *down,
            Fault::ClientDies { .. } | Fault::SuperblockRots | Fault::LyingReads { .. } | Fault::Astray { .. } => {
                Duration::ZERO
            }
        }
    }

    /// Whom it may keep from being heard, of so many clients (their numbers go round, as where the fault happens).
    pub fn disturbs(&self, clients: usize) -> Option<Disturbed> {
        let client = |n: usize| Disturbed::Client(n % clients.max(1));
        let machine = |machine: &Machine| match machine {
            Machine::Node(_) => Disturbed::Everyone,
            Machine::Client(n) => client(*n),
        };
        match self {
            Fault::Pause { machine: on, .. } | Fault::Suspended { machine: on, .. } => Some(machine(on)),
            // Of two, the client is the one that is not heard.
            Fault::Cut { from, to, .. } => Some(machine(from).max(machine(to))),
            Fault::ClientDies { client: dies } => Some(client(*dies)),
            Fault::Storm { .. }
            | Fault::Stop { .. }
            | Fault::Twin { .. }
            | Fault::SlowDevice { .. }
            | Fault::Stall { .. }
            | Fault::NodeStall { .. }
            | Fault::ReadsStall { .. }
            | Fault::NodeReadsFail { .. }
            | Fault::BlockUnreadable { .. }
            | Fault::LyingReads { .. }
            | Fault::Astray { .. }
            | Fault::FlushFails { .. } => Some(Disturbed::Everyone),
            Fault::PowerLoss { .. }
            | Fault::PowerLossAt { .. }
            | Fault::NodeDies { .. }
            | Fault::NodeOff { .. }
            | Fault::Isolated { .. }
            | Fault::SuperblockRots => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::PowerLoss { down } => write!(f, "the power fails, for {down:?}"),
            Fault::PowerLossAt { moment, later, down } => {
                write!(f, "the power is to fail {later:?} after {moment}, for {down:?}")
            }
            Fault::LyingReads { node, operations, old } => {
                let how = if *old { "give what is old" } else { "have a bit flipped" };
                write!(f, "the next {operations} reads of {} {how}", name(*node))
            }
            Fault::NodeDies { node, down } => write!(f, "{} is killed, and started again after {down:?}", name(*node)),
            Fault::NodeOff { node, down } => write!(f, "the machine of {} is off for {down:?}", name(*node)),
            Fault::Pause { machine, time } => write!(f, "{machine} is stopped for {time:?}"),
            Fault::Suspended { machine, time } => write!(f, "{machine} is suspended for {time:?}"),
            Fault::BlockUnreadable { node, time } => {
                write!(f, "the block of {} cannot be read by others for {time:?}", name(*node))
            }
            Fault::Twin { node, time } => {
                write!(f, "another process is started in the slot of {} for {time:?}", name(*node))
            }
            Fault::ReadsStall { operations, time } => write!(f, "{operations} reads stall for {time:?}"),
            Fault::Astray { node, operations, how } => {
                let (what, how) = match how {
                    Stray::Lost => ("writes", "are lost"),
                    Stray::Elsewhere => ("writes", "land somewhere else"),
                    Stray::WriteFails => ("writes", "fail"),
                    Stray::ReadFails => ("reads", "fail"),
                };
                write!(f, "the next {operations} {what} of {} {how}", name(*node))
            }
            Fault::ClientDies { client } => write!(f, "client {client} is killed"),
            Fault::Cut { from, to, one_way, time } => {
                let how = if *one_way { "from" } else { "between" };
                let and = if *one_way { "to" } else { "and" };
                write!(f, "nothing gets {how} {from} {and} {to} for {time:?}")
            }
            Fault::Isolated { node, time } => write!(f, "{} is cut off from the other nodes for {time:?}", name(*node)),
            Fault::SlowDevice { time } => write!(f, "the device is slow for {time:?}"),
            Fault::Stall { operations, time } => write!(f, "the device stalls for {time:?} ({operations} operations)"),
            Fault::NodeStall { node, operations, time } => {
                write!(f, "the device stalls for {time:?} for {} ({operations} operations)", name(*node))
            }
            Fault::FlushFails { down } => write!(f, "a flush fails; the device is replaced after {down:?}"),
            Fault::NodeReadsFail { node, time } => write!(f, "{} reads nothing for {time:?}", name(*node)),
            Fault::SuperblockRots => write!(f, "a copy of the superblock rots"),
            Fault::Stop { node, down } => {
                write!(f, "{} is told to stop, and started again after {down:?}", name(*node))
            }
            Fault::Storm { time } => write!(f, "the network is bad for {time:?}"),
        }
    }
}
