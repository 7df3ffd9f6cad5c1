//! The lock table against clients that keep their own view, with messages on their way between them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;
use vellum_base::prng::Prng;
use vellum_base::{Rid, Term};
use vellum_proto::locks::check_order;
use vellum_proto::{GrantOrder, LockError, LockOutput, LockTable};
use vellum_wire::{LockGrant, LockMode, LockName, LockWant};

/// To the client.
enum Down {
    Granted { request: u64, grants: Vec<LockGrant> },
    Invalidate { name: LockName, mode: LockMode },
}

/// To the engine.
enum Up {
    Lock { request: u64, wants: Vec<LockWant> },
    Unlock { to: Vec<LockWant> },
    Invalidated { name: LockName },
}

#[derive(Default)]
struct Client {
    view: BTreeMap<LockName, LockGrant>,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    asking: Option<u64>,
    // ---- kept by the engine
    request: Option<(u64, Vec<LockWant>, Vec<LockGrant>)>,
    order: GrantOrder,
    invalidating: Vec<(LockName, LockMode)>,
    dead: bool,
}

struct World {
    table: LockTable,
    clients: HashMap<Rid, Client>,
    prng: Prng,
    next_request: u64,
    answered: u64,
    newest_seq: HashMap<LockName, u64>,
}

const LOCKS: u64 = 6;

impl World {
    fn new(seed: u64, clients: u64) -> World {
        World {
            table: LockTable::new(Term(3), 1, 4, false),
            clients: (1..=clients).map(|n| (Rid(n), Client::default())).collect(),
            prng: Prng::new(seed),
            next_request: 1,
            answered: 0,
            newest_seq: HashMap::new(),
        }
    }

    fn some_client(&mut self) -> Rid {
        Rid(1 + self.prng.below(self.clients.len() as u64))
    }

    fn drain(&mut self) {
        while let Some(output) = self.table.poll_output() {
            match output {
                LockOutput::Granted { rid, request, grant } => {
                    let newest = self.newest_seq.entry(grant.name).or_default();
                    assert!(grant.write_seq > *newest, "L4");
                    *newest = grant.write_seq;
                    let client = self.clients.get_mut(&rid).unwrap();
                    assert!(!client.dead, "nothing is sent to a client that was reclaimed");
                    client.order.granted(grant.name);
                    let open = client.request.as_mut().unwrap();
                    assert_eq!(open.0, request);
                    open.2.push(grant);
                    self.go_on(rid);
                }
                LockOutput::Invalidate { rid, name, mode } => {
                    let client = self.clients.get_mut(&rid).unwrap();
                    assert!(!client.dead, "nothing is sent to a client that was reclaimed");
                    if client.order.may_invalidate(name, mode) {
                        client.down.push_back(Down::Invalidate { name, mode });
                    }
                }
            }
        }
    }

    /// What a session does: one lock after the other, then the answer, then the invalidations that waited for it.
    fn go_on(&mut self, rid: Rid) {
        let client = self.clients.get_mut(&rid).unwrap();
        let Some((request, wants, grants)) = client.request.take() else { return };
        if let Some(want) = wants.get(grants.len()).copied() {
            client.request = Some((request, wants, grants));
            self.table.request(rid, request, want).unwrap();
            return;
        }
        client.down.push_back(Down::Granted { request, grants });
        for (name, mode) in client.order.answered(wants.iter().map(|want| want.name)) {
            client.down.push_back(Down::Invalidate { name, mode });
        }
    }

    fn deliver_down(&mut self, rid: Rid) {
        let client = self.clients.get_mut(&rid).unwrap();
        match client.down.pop_front() {
            Some(Down::Granted { request, grants }) => {
                assert_eq!(client.asking.take(), Some(request), "one answer per request");
                self.answered += 1;
                for grant in grants {
                    client.view.insert(grant.name, grant);
                }
            }
            Some(Down::Invalidate { name, mode }) => {
                assert!(client.invalidating.iter().all(|(other, _)| *other != name), "one invalidation per lock");
                client.invalidating.push((name, mode));
            }
            None => {}
        }
    }

    fn answer_invalidation(&mut self, rid: Rid) {
        let client = self.clients.get_mut(&rid).unwrap();
        if client.invalidating.is_empty() {
            return;
        }
        let at = self.prng.below(client.invalidating.len() as u64) as usize;
        let (name, mode) = client.invalidating.swap_remove(at);
        weaken(client, name, mode);
        client.up.push_back(Up::Invalidated { name });
    }

    fn deliver_up(&mut self, rid: Rid) {
        let client = self.clients.get_mut(&rid).unwrap();
        match client.up.pop_front() {
            Some(Up::Lock { request, wants }) => {
                check_order(&wants).unwrap();
                client.request = Some((request, wants, Vec::new()));
                self.go_on(rid);
            }
            Some(Up::Unlock { to }) => self.table.unlock(rid, &to),
            Some(Up::Invalidated { name }) => self.table.invalidated(rid, name),
            None => {}
        }
    }

    fn ask(&mut self, rid: Rid) {
        let mut wants = Vec::new();
        for n in 0..LOCKS {
            if self.prng.one_in(3) {
                let mode = if self.prng.one_in(2) { LockMode::Read } else { LockMode::Write };
                wants.push(LockWant { name: if n == 0 { LockName::Rename } else { LockName::Group(n) }, mode });
            }
        }
        let client = self.clients.get_mut(&rid).unwrap();
        if client.dead || client.asking.is_some() {
            return;
        }
        client.asking = Some(self.next_request);
        client.up.push_back(Up::Lock { request: self.next_request, wants });
        self.next_request += 1;
    }

    fn give_back(&mut self, rid: Rid) {
        let client = self.clients.get_mut(&rid).unwrap();
        if client.dead || client.asking.is_some() {
            return; // not while a request for it may be on its way
        }
        let names: Vec<_> = client.view.keys().copied().collect();
        let mut to = Vec::new();
        for name in names {
            if self.prng.one_in(2) {
                let mode = if self.prng.one_in(2) { LockMode::Read } else { LockMode::Null };
                weaken(client, name, mode);
                to.push(LockWant { name, mode });
            }
        }
        client.up.push_back(Up::Unlock { to });
    }

    /// L1 and L2: the views are compatible, and never stronger than what the engine believes. A grant that is on its way
    /// counts for the engine alone.
    fn check(&self) {
        for n in 0..LOCKS {
            let name = if n == 0 { LockName::Rename } else { LockName::Group(n) };
            let views: Vec<_> = self
                .clients
                .iter()
                .filter(|(_, client)| !client.dead)
                .map(|(rid, client)| (*rid, client.view.get(&name).map_or(LockMode::Null, |g| g.mode)))
                .collect();
            for (i, (rid, mode)) in views.iter().enumerate() {
                assert!(self.table.mode(*rid, name) >= *mode, "L2: {name:?} {rid:?}");
                for (_, other) in &views[i + 1..] {
                    assert!(mode.compatible(*other), "L1: {name:?}");
                }
            }
        }
    }

    fn settle(&mut self) {
        let rids: Vec<_> = self.clients.keys().copied().collect();
        for _ in 0..10_000 {
            let before = self.answered;
            let mut moved = false;
            for rid in &rids {
                let client = &self.clients[rid];
                moved |= !client.up.is_empty() || !client.down.is_empty() || !client.invalidating.is_empty();
                self.deliver_up(*rid);
                self.drain();
                self.deliver_down(*rid);
                self.answer_invalidation(*rid);
                self.check();
            }
            if !moved && before == self.answered {
                return;
            }
        }
        panic!("the table does not settle");
    }
}

fn weaken(client: &mut Client, name: LockName, mode: LockMode) {
    if let Some(grant) = client.view.get_mut(&name) {
        grant.mode = grant.mode.min(mode);
        if grant.mode == LockMode::Null {
            client.view.remove(&name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn l1_l2_l4_l8_locks_are_compatible_and_everybody_is_served(seed in any::<u64>(), clients in 2u64..8, deaths in any::<bool>()) {
        let mut w = World::new(seed, clients);
        for _ in 0..600 {
            let rid = w.some_client();
            match w.prng.below(14) {
                0..=2 => w.ask(rid),
                3 => w.give_back(rid),
                4..=6 => w.deliver_up(rid),
                7..=9 => w.deliver_down(rid),
                10..=12 => w.answer_invalidation(rid),
                _ if deaths && w.prng.one_in(20) => {
                    let client = w.clients.get_mut(&rid).unwrap();
                    *client = Client { dead: true, ..Client::default() };
                    w.table.reclaim(rid);
                }
                _ => {}
            }
            w.drain();
            w.check();
        }
        w.settle();
        for (rid, client) in &w.clients {
            prop_assert_eq!(client.asking, None, "L8: {:?} waits for ever", rid);
            let held = client.view.len();
            prop_assert_eq!(w.table.locks_of(*rid), held, "{:?}", rid);
        }
        let rids: Vec<_> = w.clients.keys().copied().collect();
        rids.iter().for_each(|rid| w.table.reclaim(*rid));
        let stats = w.table.stats();
        prop_assert_eq!((stats.locks, stats.clients), (0, 0), "nothing is left behind");
    }
}

fn want(group: u64, mode: LockMode) -> LockWant {
    LockWant { name: LockName::Group(group), mode }
}

fn outputs(table: &mut LockTable) -> Vec<LockOutput> {
    std::iter::from_fn(|| table.poll_output()).collect()
}

/// Scenario 8: giving a lock back touches the sender's grant alone.
#[test]
fn scenario_8_giving_back_touches_only_the_giver() {
    let mut t = LockTable::new(Term(1), 0, 1, false);
    t.request(Rid(1), 1, want(1, LockMode::Read)).unwrap();
    t.request(Rid(2), 2, want(1, LockMode::Read)).unwrap();
    outputs(&mut t);
    t.unlock(Rid(1), &[want(1, LockMode::Null)]);
    assert_eq!(outputs(&mut t), []);
    assert_eq!(t.mode(Rid(2), LockName::Group(1)), LockMode::Read);
}

/// Two readers that both upgrade: one after the other, not never.
#[test]
fn l8_two_upgrades_don_t_wait_for_each_other() {
    let mut t = LockTable::new(Term(1), 0, 1, false);
    for n in [1, 2] {
        t.request(Rid(n), n, want(1, LockMode::Read)).unwrap();
    }
    outputs(&mut t);
    for n in [1, 2] {
        t.request(Rid(n), 10 + n, want(1, LockMode::Write)).unwrap();
    }
    let asked = outputs(&mut t);
    assert_eq!(asked, [LockOutput::Invalidate { rid: Rid(2), name: LockName::Group(1), mode: LockMode::Null }]);
    t.invalidated(Rid(2), LockName::Group(1));
    let out = outputs(&mut t);
    assert!(matches!(&out[0], LockOutput::Granted { rid: Rid(1), request: 11, .. }));
    assert!(matches!(&out[1], LockOutput::Invalidate { rid: Rid(1), .. }));
    t.invalidated(Rid(1), LockName::Group(1));
    assert!(matches!(&outputs(&mut t)[0], LockOutput::Granted { rid: Rid(2), request: 12, .. }));
}

/// L7: requests wait for the recovery, in their order, against what was asserted.
#[test]
fn l7_nothing_is_granted_before_recovery_is_complete() {
    let mut t = LockTable::new(Term(2), 0, 1, true);
    t.request(Rid(1), 1, want(1, LockMode::Write)).unwrap();
    t.reassert(Rid(2), LockGrant { name: LockName::Group(1), mode: LockMode::Write, write_seq: 9 }).unwrap();
    let held = LockGrant { name: LockName::Group(1), mode: LockMode::Read, write_seq: 8 };
    assert_eq!(t.reassert(Rid(3), held), Err(LockError::HeldByAnother { name: LockName::Group(1) }));
    assert_eq!(outputs(&mut t), []);
    t.recovered();
    assert!(matches!(&outputs(&mut t)[..], [LockOutput::Invalidate { rid: Rid(2), .. }]));
    t.invalidated(Rid(2), LockName::Group(1));
    let out = outputs(&mut t);
    let [LockOutput::Granted { rid: Rid(1), grant, .. }] = &out[..] else { panic!("{out:?}") };
    assert!(grant.write_seq > 9 && grant.write_seq >> 40 == 2);
}

#[test]
fn requests_that_could_deadlock_are_refused() {
    assert_eq!(check_order(&[want(2, LockMode::Read), want(1, LockMode::Read)]), Err(LockError::Order));
    assert_eq!(check_order(&[want(1, LockMode::Read), want(1, LockMode::Write)]), Err(LockError::Order));
    assert_eq!(check_order(&[want(1, LockMode::Null)]), Err(LockError::Order));
}
