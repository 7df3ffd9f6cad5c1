//! L: the clients' own views of the locks are compatible at every moment [L1], no stronger than the leader's after a
//! recovery [L2], clean at a grant and when they end [L3, L5], reported as they are [L6]; nothing is granted before
//! recovery is complete [L7], write sequences grow over all terms [L4], and nobody writes without its lock [L10].

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Rid, Term};
use vellum_client::Fact as ClientFact;
use vellum_proto::fact::LockFact;
use vellum_server::Fact as ServerFact;
use vellum_store::Fact as StoreFact;
use vellum_wire::{LockMode, LockName};

use super::Out;
use super::quorum::QuorumChecks;

type Modes = BTreeMap<LockName, BTreeMap<Rid, LockMode>>;

fn conflict(a: LockMode, b: LockMode) -> bool {
    a != LockMode::Null && b != LockMode::Null && (a == LockMode::Write || b == LockMode::Write)
}

fn set(modes: &mut Modes, name: LockName, rid: Rid, mode: LockMode) {
    let holders = modes.entry(name).or_default();
    if mode == LockMode::Null {
        holders.remove(&rid);
    } else {
        holders.insert(rid, mode);
    }
}

fn get(modes: &Modes, name: LockName, rid: Rid) -> LockMode {
    modes.get(&name).and_then(|holders| holders.get(&rid)).copied().unwrap_or_default()
}

#[derive(Default)]
pub struct Locks {
    /// As the clients see them; a mode under invalidation is the old one.
    views: Modes,
    /// As each term's tables do.
    tables: BTreeMap<Term, Modes>,
    /// Invalidations that their clients have not answered.
    asked: BTreeSet<(Term, LockName, Rid)>,
    /// Their views count no more: dead, reclaimed, or gone.
    void: BTreeSet<Rid>,
    /// The newest grant of each: its term and write sequence.
    newest: BTreeMap<LockName, (Term, u64)>,
    /// Grants of leaders that were deposed before: nobody may take them.
    idle_grants: BTreeSet<(Rid, LockName, u64)>,
    /// Clients of the term before that this term still waits for.
    expected: BTreeMap<Term, BTreeSet<Rid>>,
}

impl Locks {
    pub fn void(&mut self, rid: Rid) {
        self.void.insert(rid);
        for holders in self.views.values_mut() {
            holders.remove(&rid);
        }
    }

    pub fn server(&mut self, fact: &ServerFact, unaware: bool) {
        match fact {
            ServerFact::Expects { term, rids } => {
                self.expected.insert(*term, rids.iter().copied().collect());
                // Who has no record any more was reclaimed, though nobody lived to say so.
                let holders: BTreeSet<Rid> = self.views.values().flat_map(|holders| holders.keys().copied()).collect();
                holders.difference(&rids.iter().copied().collect()).for_each(|rid| self.void(*rid));
            }
            ServerFact::Returned { term, rid } => {
                self.expected.entry(*term).or_default().remove(rid);
            }
            // It has said that it uses nothing more.
            ServerFact::Farewell { rid, .. } => self.void(*rid),
            // Whether it may begin anew is N6's question.
            ServerFact::Greeted { rid, .. } if !unaware => {
                self.void.remove(rid);
            }
            _ => {}
        }
    }

    pub fn table(&mut self, fact: &LockFact, quorum: &QuorumChecks, out: &mut Out) {
        match fact {
            LockFact::Opened { term, .. } => {
                self.tables.entry(*term).or_default();
            }
            LockFact::Granted { term, rid, grant } => {
                out.story.detail(|s| {
                    format!("term {term} grants {:?} for {:?} to {}", grant.name, grant.mode, s.name(*rid))
                });
                let (newest_term, newest) = self.newest.entry(grant.name).or_default();
                // A leader that is deposed and does not know it yet may answer what lay in its socket; nobody takes that.
                let deposed = term < newest_term && quorum.is_unaware(*term, out.story.now());
                if deposed && grant.write_seq <= *newest {
                    self.idle_grants.insert((*rid, grant.name, grant.write_seq));
                }
                if grant.write_seq <= *newest && !deposed {
                    let (seq, newest) = (grant.write_seq, *newest);
                    out.violate(
                        "L4",
                        format!("{:?} is granted with sequence {seq}, and had {newest} before", grant.name),
                    );
                }
                (*newest_term, *newest) = (*newest_term, *newest).max((*term, grant.write_seq));
                if let Some(first) = self.expected.get(term).and_then(BTreeSet::first) {
                    let (to, missing) = (out.name(*rid), out.name(*first));
                    out.violate("L7", format!("term {term} grants {:?} to {to} before {missing} is back", grant.name));
                }
                // Its client would take the answer for one of the new grant, which it still uses.
                if self.asked.contains(&(*term, grant.name, *rid)) {
                    let to = out.name(*rid);
                    out.violate(
                        "L1",
                        format!("{:?} is granted to {to}, which has an invalidation to answer", grant.name),
                    );
                }
                self.table_compatible(*term, *rid, grant.name, grant.mode, out);
                set(self.tables.entry(*term).or_default(), grant.name, *rid, grant.mode);
            }
            LockFact::Reasserted { term, rid, name, mode } => {
                self.table_compatible(*term, *rid, *name, *mode, out);
                set(self.tables.entry(*term).or_default(), *name, *rid, *mode);
            }
            LockFact::Asked { term, rid, name } => {
                self.asked.insert((*term, *name, *rid));
            }
            LockFact::Weakened { term, rid, name, mode, answered } => {
                if *answered {
                    self.asked.remove(&(*term, *name, *rid));
                }
                out.story.detail(|s| format!("term {term} has {name:?} back to {mode:?} from {}", s.name(*rid)));
                let table = self.tables.entry(*term).or_default();
                let now = get(table, *name, *rid).min(*mode);
                set(table, *name, *rid, now);
            }
        }
    }

    fn table_compatible(&self, term: Term, rid: Rid, name: LockName, mode: LockMode, out: &mut Out) {
        let holders = self.tables.get(&term).and_then(|table| table.get(&name)).into_iter().flatten();
        for (other, held) in holders.filter(|(other, held)| **other != rid && conflict(mode, **held)) {
            let (to, by) = (out.name(rid), out.name(*other));
            out.violate("L1", format!("term {term} gives {name:?} for {mode:?} to {to}; {by} holds it for {held:?}"));
        }
    }

    pub fn client(&mut self, fact: &ClientFact, out: &mut Out) {
        match fact {
            ClientFact::Granted { rid, grant, dirty } => {
                let name = out.name(*rid);
                if *dirty {
                    out.violate("L3", format!("{name} is granted {:?} and has dirty items under it", grant.name));
                }
                if self.void.contains(rid) {
                    return; // F1 looks at what it uses
                }
                if self.idle_grants.contains(&(*rid, grant.name, grant.write_seq)) {
                    out.violate("L4", format!("{name} takes {:?} from a leader that was deposed before", grant.name));
                }
                set(&mut self.views, grant.name, *rid, grant.mode);
                self.views_compatible(*rid, grant.name, grant.mode, out);
            }
            ClientFact::Weakened { rid, name, mode, dirty } => {
                if *dirty && !self.void.contains(rid) {
                    let who = out.name(*rid);
                    out.violate("L5", format!("{who} gives {name:?} away with undurable items under it"));
                }
                if !self.void.contains(rid) {
                    set(&mut self.views, *name, *rid, *mode);
                }
            }
            ClientFact::Used { rid, name, mode } if !self.void.contains(rid) => {
                self.views_compatible(*rid, *name, *mode, out);
            }
            ClientFact::Used { .. } => {} // F1 looks at those
            ClientFact::Reports { rid, term, held } => {
                let who = out.name(*rid);
                out.story.say(format!("{who} tells term {term} of {} locks", held.len()));
                for (name, holders) in &self.views {
                    let Some(mode) = holders.get(rid) else { continue };
                    let told = held.iter().find(|grant| grant.name == *name).map_or(LockMode::Null, |grant| grant.mode);
                    if told != *mode {
                        out.violate("L6", format!("{who} holds {name:?} for {mode:?} and tells the leader {told:?}"));
                    }
                }
            }
            ClientFact::Recovered { rid, term } => {
                let who = out.name(*rid);
                out.story.say(format!("{who} has recovered in term {term}"));
                let table = self.tables.entry(*term).or_default();
                for (name, holders) in &self.views {
                    let Some(view) = holders.get(rid) else { continue };
                    let known = get(table, *name, *rid);
                    if *view > known {
                        out.violate("L2", format!("{who} holds {name:?} for {view:?}; term {term} knows of {known:?}"));
                    }
                }
            }
            ClientFact::Ended { rid } => self.void(*rid),
            ClientFact::Durable { .. } => {}
        }
    }

    fn views_compatible(&self, rid: Rid, name: LockName, mode: LockMode, out: &mut Out) {
        let holders = self.views.get(&name).into_iter().flatten();
        for (other, held) in holders.filter(|(other, held)| **other != rid && conflict(mode, **held)) {
            let (who, by) = (out.name(rid), out.name(*other));
            out.violate("L1", format!("{who} has {name:?} for {mode:?}, and {by} believes to hold it for {held:?}"));
        }
    }

    pub fn store(&mut self, fact: &StoreFact, out: &mut Out) {
        // It is reclaimed for good: its lease is over, and what it still believes it does not use.
        if let StoreFact::RecordGone { rid, .. } = fact {
            self.void(*rid);
        }
        let StoreFact::Wrote { term, rid, groups } = fact else { return };
        let table = self.tables.entry(*term).or_default();
        for group in groups {
            let name = LockName::Group(*group);
            let held = get(table, name, *rid);
            if held != LockMode::Write {
                let who = out.name(*rid);
                out.violate("L10", format!("{who} writes {name:?} in term {term}, and holds it for {held:?}"));
            }
        }
    }
}
