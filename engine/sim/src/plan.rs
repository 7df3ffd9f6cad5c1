//! What a run consists of, all drawn from its seed before it begins: the machines, their work, the network, and the faults
//! with their times. A fault carries everything that it needs, so a plan with fewer faults is a plan too: see
//! [`crate::shrink`].
//!
//! Two phases: until `calm_at` faults begin and overlap (safety); then all of them are over, and everything that was begun
//! must end (liveness).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_rt::sim::SimConfig;
use vellum_store::{OpenOptions, Rebalance};

use crate::fault::{FOLLOWER, Fault, LEADER, Machine, Stray, Timed};

/// What a client's machine does for the whole run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Transactions on items that all clients of this kind share ([`crate::work::items`]).
    Items,
    /// POSIX in shared directories and one of its own ([`crate::work::gateway`]).
    Gateway,
    /// Few names and small files, for the check of linearizability ([`crate::work::names`]).
    Names,
    /// Locks of files, flock and fcntl ([`crate::work::file_locks`]).
    FileLocks,
    /// Breaks the rules ([`crate::work::hostile`]).
    Hostile,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Quorum members; 1 is the single node without a quorum.
    pub nodes: usize,
    pub network: SimConfig,
    pub store: OpenOptions,
    pub clients: Vec<Work>,
    /// Lock groups of the shared items, and how often a client pauses (one round in so many).
    pub groups: u64,
    pub pause_one_in: u64,
    /// Most files that clients of items have at a time.
    pub max_files: usize,
    /// The device takes long for everything, all the time.
    pub slow_device: bool,
    pub faults: Vec<Timed>,
    pub calm_at: Duration,
    pub fencing: Fencing,
    /// The nodes are stopped in the end, instead of losing their power.
    pub ends_cleanly: bool,
    /// What makes the run unusual.
    pub season: Option<Season>,
}

/// What some runs are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Season {
    /// Few files that are written again and again, on a slow device: what is freed is wanted at once.
    Churn,
    /// The power fails where it hurts.
    Strike,
    /// The device lies to the node now and then.
    Lie,
    /// Locks of files outlive their leaders.
    LockFiles,
    /// Clients are stopped for about as long as they are waited for.
    Doze,
    /// Members are told to stop while others are off.
    Leave,
    /// Members are suspended, cannot read each other's blocks, have a slow way to the device, or share a slot.
    Members,
    /// Clients die while reads hold up what they have sent.
    Hold,
    /// Writes are lost, land somewhere else or fail, reads fail; the run ends with a crash.
    Astray,
    /// Sparse chunks are evacuated all the time.
    Move,
}

/// How orders to fence are carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fencing {
    /// How long it takes.
    pub takes: Range<Duration>,
    /// One order in so many fails; 0 is none.
    pub fails_one_in: u64,
    /// The target is only cut off from the device, as by a reservation, and killed later.
    pub cuts_off: bool,
}

/// Which runs are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Profile {
    /// One node, without a quorum.
    #[default]
    Single,
    /// Quorum members that share the device.
    Cluster,
}

impl Plan {
    pub fn draw(seed: u64, profile: Profile) -> Plan {
        let mut prng = Prng::new(seed ^ 0x5eed);
        let nodes = match profile {
            Profile::Single => 1,
            Profile::Cluster => [1, 2, 3, 3, 3, 3, 5][prng.below(7) as usize],
        };
        let clients = draw_clients(&mut prng);
        let mut at = Duration::from_millis(100);
        let mut faults = Vec::new();
        for _ in 0..3 + prng.below(8) {
            at += Duration::from_millis(20 + prng.below(1500));
            faults.push(Timed { at, fault: Fault::draw(&mut prng, nodes, clients.len()) });
        }
        let last_end = faults.iter().map(Timed::end).max().unwrap_or(at);
        let mut plan = Plan {
            seed,
            nodes,
            network: network(&mut prng),
            store: OpenOptions {
                cache_bytes: 64 << 10 << prng.below(6),
                memtable_bytes: 256 << 10 << prng.below(4),
                log_bytes: 1 << 20 << prng.below(3),
                queue_depth: 4 << prng.below(6),
                ..OpenOptions::default()
            },
            clients,
            groups: 1 + prng.below(6),
            pause_one_in: 1 + prng.below(50),
            max_files: 200,
            slow_device: false,
            faults,
            calm_at: last_end + Duration::from_millis(prng.below(1000)),
            fencing: Fencing {
                takes: Duration::from_micros(100)..Duration::from_millis(1 + prng.below(300)),
                fails_one_in: [0, 0, 2, 5][prng.below(4) as usize],
                cuts_off: prng.one_in(2),
            },
            ends_cleanly: prng.one_in(2),
            season: None,
        };
        plan.season(&mut Prng::new(seed ^ 0xf1a7));
        if Prng::new(seed ^ 0x5911).one_in(3) {
            plan.store.shard_bytes = 16 << 10; // whatever is flushed splits its shard
        }
        let mut moves = Prng::new(seed ^ 0x30e5);
        if moves.one_in(3) {
            plan.store.rebalance = Rebalance::AtRandom(Duration::from_millis(10 + moves.below(300)));
        }
        plan
    }

    /// What makes some runs unusual. Drawn apart from the rest.
    fn season(&mut self, prng: &mut Prng) {
        self.season = match prng.below(8) {
            0 => Some(Season::Churn),
            1 => Some(Season::Strike),
            2 if self.nodes == 1 => Some(Season::Lie),
            2 if self.nodes > 2 => Some(Season::Leave),
            3 => Some(Season::LockFiles),
            4 => Some(Season::Doze),
            5 if self.nodes > 2 => Some(Season::Members),
            5 if self.nodes == 1 && prng.one_in(2) => Some(Season::Hold),
            6 if self.nodes == 1 && prng.one_in(2) => Some(Season::Astray),
            5 | 6 => Some(Season::Move),
            _ => None,
        };
        match self.season {
            Some(Season::Churn) => self.churn(prng),
            Some(Season::Strike) => self.strike(prng),
            Some(Season::Lie) => self.lie(prng),
            Some(Season::LockFiles) => self.lock_files(prng),
            Some(Season::Doze) => self.doze(prng),
            Some(Season::Leave) => self.leave(prng),
            Some(Season::Members) => self.members(prng),
            Some(Season::Hold) => self.hold(prng),
            Some(Season::Astray) => self.astray(prng),
            Some(Season::Move) => self.move_data(),
            None => {}
        }
        // Nothing drawn at a moment that never came is left in the second phase.
        let last_end = self.faults.iter().map(Timed::end).max().unwrap_or_default();
        self.calm_at = self.calm_at.max(last_end);
    }

    /// Free chunks are short whatever there is.
    pub fn move_data(&mut self) {
        self.store.evacuation_short_of = 1000;
        self.store.evacuation_bytes_per_s = Some(0);
    }

    fn churn(&mut self, prng: &mut Prng) {
        self.clients = vec![Work::Items; 2 + prng.below(3) as usize];
        (self.groups, self.max_files) = (1, 4);
        self.slow_device = prng.one_in(2);
        self.store.log_bytes = 1 << 20;
    }

    fn lock_files(&mut self, prng: &mut Prng) {
        self.clients.truncate(1);
        self.clients.extend(vec![Work::FileLocks; 2 + prng.below(2) as usize]);
        for n in 0..4 {
            let at = Duration::from_millis(500 + 900 * n + prng.below(300));
            let node = if self.nodes == 1 { 0 } else { LEADER };
            self.faults
                .push(Timed { at, fault: Fault::NodeDies { node, down: Duration::from_millis(prng.below(100)) } });
        }
    }

    fn doze(&mut self, prng: &mut Prng) {
        // On a slow network they do not hear at once that they were given up, and answers wait for who is stopped.
        if prng.one_in(2) {
            self.network.latency = Duration::from_millis(5)..Duration::from_millis(30);
        }
        // No names: many lives that end with something lost leave too many orders to search.
        self.clients = vec![Work::Items, Work::Gateway, Work::Items];
        for n in 0..6 {
            let at = Duration::from_millis(400 + 600 * n + prng.below(300));
            let machine = Machine::Client(prng.below(self.clients.len() as u64) as usize);
            let time = Duration::from_millis(600 + prng.below(600));
            self.faults.push(Timed { at, fault: Fault::Pause { machine, time } });
        }
    }

    fn leave(&mut self, prng: &mut Prng) {
        self.faults.retain(|timed| !matches!(timed.fault, Fault::PowerLoss { .. } | Fault::FlushFails { .. }));
        for n in 0..3 {
            let at = Duration::from_millis(1200 + 3500 * n + prng.below(300));
            let off = prng.below(self.nodes as u64) as usize;
            self.faults.push(Timed { at, fault: Fault::NodeOff { node: off, down: Duration::from_millis(2500) } });
            for other in 1..self.nodes.div_ceil(2) {
                let at = at + Duration::from_millis(1000 + prng.below(500));
                let node = (off + other) % self.nodes;
                self.faults.push(Timed { at, fault: Fault::Stop { node, down: Duration::from_millis(300) } });
            }
        }
    }

    fn members(&mut self, prng: &mut Prng) {
        self.faults.retain(|timed| !matches!(timed.fault, Fault::PowerLoss { .. } | Fault::FlushFails { .. }));
        self.slow_device = prng.one_in(2);
        // A fence that takes longer than a heartbeat may be missed.
        self.fencing.takes = Duration::from_millis(250)..Duration::from_millis(600);
        let ms = |prng: &mut Prng, from, more| Duration::from_millis(from + prng.below(more));
        let mut at = ms(prng, 400, 400);
        for _ in 0..4 {
            let time = ms(prng, 400, 800);
            let faults = match prng.below(6) {
                0 => vec![Fault::Suspended { machine: Machine::Node(FOLLOWER), time }],
                1 => vec![Fault::Suspended { machine: Machine::Node(LEADER), time }],
                // It wakes when another one is elected, and before it is fenced.
                2 => vec![Fault::Pause { machine: Machine::Node(LEADER), time: ms(prng, 300, 300) }],
                // It is fenced by its slot alone.
                3 => vec![
                    Fault::BlockUnreadable { node: LEADER, time: time * 2 },
                    Fault::Pause { machine: Machine::Node(LEADER), time: time * 2 },
                ],
                4 => vec![Fault::NodeStall { node: LEADER, operations: 40, time: time * 2 }],
                _ => vec![Fault::Twin { node: if prng.one_in(2) { LEADER } else { FOLLOWER }, time: time * 2 }],
            };
            self.faults.extend(faults.into_iter().map(|fault| Timed { at, fault }));
            at += 2 * time + ms(prng, 800, 1000);
        }
    }

    fn hold(&mut self, prng: &mut Prng) {
        self.clients = vec![Work::Items; 3];
        (self.groups, self.max_files, self.pause_one_in) = (1, 40, 200);
        self.store.cache_bytes = 64 << 10;
        self.store.memtable_bytes = 256 << 10;
        for n in 0..6 {
            let at = Duration::from_millis(500 + 3000 * n + prng.below(300));
            let (operations, time) = (8 + prng.below(30), Duration::from_millis(1600 + prng.below(1000)));
            self.faults.push(Timed { at, fault: Fault::ReadsStall { operations, time } });
            let client = prng.below(3) as usize;
            let at = at + Duration::from_millis(5 + prng.below(60));
            self.faults.push(Timed { at, fault: Fault::ClientDies { client } });
        }
    }

    fn astray(&mut self, prng: &mut Prng) {
        self.clients = vec![Work::Gateway, Work::Gateway, Work::Items];
        self.store.cache_bytes = 64 << 10;
        self.faults.retain(|timed| {
            let crash = matches!(
                timed.fault,
                Fault::PowerLoss { .. } | Fault::FlushFails { .. } | Fault::NodeDies { .. } | Fault::Stop { .. }
            );
            !crash
        });
        let mut at = Duration::from_millis(500);
        for _ in 0..2 + prng.below(8) {
            at += Duration::from_millis(prng.below(600));
            let (operations, how) = (1 + prng.below(6), Stray::ALL[prng.below(4) as usize]);
            self.faults.push(Timed { at, fault: Fault::Astray { node: 0, operations, how } });
        }
        self.calm_at = self.calm_at.max(at + Duration::from_millis(1500));
    }

    fn strike(&mut self, prng: &mut Prng) {
        self.faults.retain(|timed| !matches!(timed.fault, Fault::FlushFails { .. }));
        self.slow_device = prng.one_in(2);
        let mut at = Duration::from_millis(300);
        for _ in 0..3 + prng.below(5) {
            self.faults.push(Timed { at, fault: Fault::draw_at_moment(prng) });
            at += Fault::PATIENCE + Duration::from_millis(100 + prng.below(300));
        }
    }

    fn lie(&mut self, prng: &mut Prng) {
        self.store.cache_bytes = 64 << 10;
        for _ in 0..1 + prng.below(4) {
            let at = Duration::from_millis(800 + prng.below(4000));
            let fault = Fault::LyingReads { node: 0, operations: 1 + prng.below(12), old: prng.one_in(3) };
            self.faults.push(Timed { at, fault });
        }
    }

    /// The plan without what the edits take away.
    pub fn edited(mut self, edits: &Edits) -> Plan {
        if let Some(until) = edits.calm_at {
            self.faults.retain(|timed| timed.at < until);
            self.calm_at = self.calm_at.min(until);
        }
        self.faults = keep(self.faults, &edits.without_faults);
        self.clients = keep(self.clients, &edits.without_clients);
        if edits.calm_network {
            self.network = SimConfig::default();
        }
        self
    }
}

fn keep<T>(list: Vec<T>, without: &BTreeSet<usize>) -> Vec<T> {
    list.into_iter().enumerate().filter(|(i, _)| !without.contains(i)).map(|(_, item)| item).collect()
}

fn draw_clients(prng: &mut Prng) -> Vec<Work> {
    let mut clients = match prng.below(5) {
        0 => vec![Work::Items; 1 + prng.below(3) as usize],
        1 => vec![Work::Gateway; 1 + prng.below(3) as usize],
        2 | 3 => vec![Work::Names; 2 + prng.below(3) as usize],
        _ => vec![Work::Items, Work::Gateway, Work::Names, Work::Names],
    };
    if prng.one_in(4) {
        clients.push(Work::Hostile);
    }
    clients
}

fn network(prng: &mut Prng) -> SimConfig {
    match prng.below(3) {
        0 => SimConfig::default(),
        1 => SimConfig { reset_one_in: 200, ..SimConfig::hostile() },
        _ => SimConfig { reset_one_in: 1000 * prng.below(3), ..SimConfig::default() },
    }
}

/// What is taken away from a plan, to make a failing run smaller. Written as words, so that it can be said again:
/// `cargo xtask sim --seed 7 --edit "faults 0 2 3; clients 1; until 2500; calm"`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Edits {
    pub without_faults: BTreeSet<usize>,
    pub without_clients: BTreeSet<usize>,
    /// The faults end here.
    pub calm_at: Option<Duration>,
    /// A network without faults.
    pub calm_network: bool,
}

impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |set: &BTreeSet<usize>| set.iter().map(|n| format!(" {n}")).collect::<String>();
        let mut words = Vec::new();
        if !self.without_faults.is_empty() {
            words.push(format!("faults{}", numbers(&self.without_faults)));
        }
        if !self.without_clients.is_empty() {
            words.push(format!("clients{}", numbers(&self.without_clients)));
        }
        words.extend(self.calm_at.map(|until| format!("until {}", until.as_millis())));
        words.extend(self.calm_network.then(|| "calm".into()));
        f.write_str(&words.join("; "))
    }
}

impl std::str::FromStr for Edits {
    type Err = String;

    fn from_str(text: &str) -> Result<Edits, String> {
        let mut edits = Edits::default();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let mut words = part.split_whitespace();
            let verb = words.next().unwrap_or_default();
            let numbers: Vec<usize> = words
                .map(|word| word.parse().map_err(|_| format!("{word} is no number in \"{part}\"")))
                .collect::<Result<_, _>>()?;
            match verb {
                "faults" => edits.without_faults.extend(numbers),
                "clients" => edits.without_clients.extend(numbers),
                "until" => edits.calm_at = numbers.first().map(|ms| Duration::from_millis(*ms as u64)),
                "calm" => edits.calm_network = true,
                other => return Err(format!("no such edit: {other} (faults, clients, until, calm)")),
            }
        }
        Ok(edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_words_that_can_be_said_again() {
        let text = "faults 0 2 13; clients 1; until 2500; calm";
        let edits: Edits = text.parse().unwrap();
        assert_eq!(edits.to_string(), text);
        assert_eq!("".parse::<Edits>().unwrap(), Edits::default());
        assert!("fault 1".parse::<Edits>().is_err() && "faults one".parse::<Edits>().is_err());
        let plan = Plan::draw(3, Profile::Single);
        let fewer = Plan::draw(3, Profile::Single).edited(&"faults 0; clients 0".parse().unwrap());
        assert_eq!((fewer.faults.len(), fewer.clients.len()), (plan.faults.len() - 1, plan.clients.len() - 1));
        assert_eq!(fewer.faults, plan.faults[1..]);
    }
}
