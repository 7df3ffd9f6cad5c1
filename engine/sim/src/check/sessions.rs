//! N: a request's handler runs once per term [N1], a client has a durable record before its greeting is answered [N5],
//! and one that was reclaimed never comes back [N6].

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Epoch, Rid, Term};
use vellum_proto::fact::SessionFact;
use vellum_store::Fact as StoreFact;

use super::Out;
use super::durability::Durability;

#[derive(Default)]
pub struct Sessions {
    handled: BTreeSet<(Rid, Term, u64)>,
    answered: BTreeSet<(Rid, u64)>,
    /// Records, and the epoch that made them.
    records: BTreeMap<Rid, (Term, Epoch)>,
    /// Records that are gone, and the term that took them. A leader that is deposed and does not know it yet
    /// ([`super::quorum::QuorumChecks::is_unaware`]) does not know of that either, and may welcome whom it knew: the client is
    /// void all the same, so that it must not use anything (F1), and what that leader calls durable is there (P1).
    gone: BTreeMap<Rid, Term>,
    /// Who has said something after its greeting was answered.
    heard: BTreeSet<Rid>,
}

impl Sessions {
    pub fn session(&mut self, fact: &SessionFact, out: &mut Out) {
        match fact {
            SessionFact::Handled { term, rid, request } => {
                self.heard.insert(*rid);
                if !self.handled.insert((*rid, *term, *request)) {
                    let name = out.name(*rid);
                    out.violate("N1", format!("request {request} of {name} is handled twice in term {term}"));
                }
            }
            SessionFact::Answered { term, rid, request } => {
                if !self.answered.insert((*rid, *request)) {
                    let name = out.name(*rid);
                    out.violate("N1", format!("request {request} of {name} is answered twice (term {term})"));
                }
            }
        }
    }

    /// It has a record, and nobody has taken it.
    pub fn is_known(&self, rid: Rid) -> bool {
        self.records.contains_key(&rid) && !self.gone.contains_key(&rid)
    }

    pub fn store(&mut self, fact: &StoreFact, _: &mut Out) {
        match fact {
            // A leader that was deposed while it was stopped may still say so, and will not make it durable.
            StoreFact::RecordMade { term, rid, epoch } => {
                let made = self.records.entry(*rid).or_insert((*term, *epoch));
                if made.0 <= *term {
                    *made = (*term, *epoch);
                }
            }
            StoreFact::RecordGone { term, rid } => drop(self.gone.insert(*rid, *term)),
            _ => {}
        }
    }

    pub fn server(&mut self, fact: &vellum_server::Fact, durability: &Durability, unaware: bool, out: &mut Out) {
        let vellum_server::Fact::Greeted { term, rid, fresh } = fact else { return };
        let gone_in = self.gone.get(rid).copied();
        if *fresh && gone_in.is_none_or(|gone_in| gone_in <= *term || !unaware) {
            self.gone.remove(rid); // it holds nothing of its earlier attempt: a new client
        }
        let name = out.name(*rid);
        out.story.say(format!("the leader of term {term} welcomes {name}"));
        let gone = self.gone.get(rid).is_some_and(|gone_in| gone_in <= term || !unaware);
        // A client that no answer reached before it was given up has term 0, holds nothing, and begins anew.
        if gone && self.heard.contains(rid) {
            out.violate("N6", format!("{name} was reclaimed, or has said farewell, and is admitted in term {term}"));
        }
        let made = self.records.get(rid).filter(|_| !gone);
        let durable = made.is_some_and(|(made_in, epoch)| durability.is_durable(*made_in, *epoch));
        if !durable {
            out.violate("N5", format!("{name} is greeted in term {term} and has no durable record"));
        }
    }
}

#[cfg(test)]
mod tests {
    use vellum_rt::sim::{SimConfig, World};
    use vellum_server::Fact as ServerFact;

    use super::*;
    use crate::check::Checks;

    const RID: Rid = Rid(7);

    /// A client of term 1 is given up in term 2: what is said when the leader of `term` then greets it.
    fn greeted_in(term: u64, unaware: bool) -> Vec<&'static str> {
        let checks = Checks::new(World::new(1, SimConfig::default()).clock());
        let mut checks = checks.borrow_mut();
        checks.see(&StoreFact::RecordMade { term: Term(1), rid: RID, epoch: Epoch(3) });
        checks.see(&StoreFact::Durable { term: Term(1), epoch: Epoch(3) });
        checks.see(&SessionFact::Handled { term: Term(1), rid: RID, request: 1 });
        checks.see(&StoreFact::RecordGone { term: Term(2), rid: RID });
        let Checks { sessions, durability, out, .. } = &mut *checks;
        sessions.server(&ServerFact::Greeted { term: Term(term), rid: RID, fresh: false }, durability, unaware, out);
        checks.violations().iter().map(|violation| violation.invariant).collect()
    }

    /// A leader that was stopped and deposed wakes, and answers what lay in its socket. (Cluster seed 136.)
    #[test]
    fn n6_n5_a_deposed_leader_that_wakes_may_greet_whom_it_knew() {
        assert!(greeted_in(1, true).is_empty());
        assert_eq!(greeted_in(1, false), ["N6", "N5"], "it has had the time to notice");
        assert_eq!(greeted_in(2, false), ["N6", "N5"]);
        assert_eq!(greeted_in(3, false), ["N6", "N5"]);
    }

    /// It had the greeting in its socket when it was stopped, and begins a record that its fenced device will not take.
    /// (Seed 106877822.)
    #[test]
    fn n5_what_a_deposed_leader_begins_hides_no_record_of_its_successor() {
        let checks = Checks::new(World::new(1, SimConfig::default()).clock());
        let mut checks = checks.borrow_mut();
        checks.see(&StoreFact::RecordMade { term: Term(2), rid: RID, epoch: Epoch(9) });
        checks.see(&StoreFact::Durable { term: Term(2), epoch: Epoch(9) });
        checks.see(&StoreFact::RecordMade { term: Term(1), rid: RID, epoch: Epoch(4) });
        let Checks { sessions, durability, out, .. } = &mut *checks;
        let greeted = ServerFact::Greeted { term: Term(2), rid: RID, fresh: false };
        sessions.server(&greeted, durability, false, out);
        assert!(checks.violations().is_empty());
    }
}
