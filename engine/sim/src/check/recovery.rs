//! R: recovery is complete once, and only when everybody of the term before is back or gone [R1]; what a new leader
//! numbers is above everything that was numbered before [R3]; terms grow.

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Epoch, Rid, Term};
use vellum_server::Fact as ServerFact;
use vellum_store::Fact as StoreFact;

use super::Out;

#[derive(Default)]
pub struct Recovery {
    expected: BTreeMap<Term, BTreeSet<Rid>>,
    complete: BTreeSet<Term>,
    newest_term: Term,
    newest_epoch: Epoch,
}

impl Recovery {
    pub fn server(&mut self, fact: &ServerFact, out: &mut Out) {
        match fact {
            ServerFact::Expects { term, rids } => {
                if !rids.is_empty() && !self.expected.contains_key(term) {
                    let names: Vec<String> = rids.iter().map(|rid| out.name(*rid)).collect();
                    out.story.say(format!("term {term} waits for {}", names.join(", ")));
                }
                self.expected.insert(*term, rids.iter().copied().collect());
            }
            ServerFact::Serving { term } => out.story.say(format!("term {term} serves")),
            ServerFact::Returned { term, rid } => {
                self.expected.entry(*term).or_default().remove(rid);
            }
            ServerFact::RecoveryComplete { term } => {
                out.story.say(format!("the recovery of term {term} is complete"));
                if !self.complete.insert(*term) {
                    out.violate("R1", format!("the recovery of term {term} is complete for the second time"));
                }
                if let Some(first) = self.expected.get(term).and_then(BTreeSet::first) {
                    let missing = out.name(*first);
                    out.violate("R1", format!("the recovery of term {term} is complete, and {missing} is missing"));
                }
            }
            _ => {}
        }
    }

    pub fn store(&mut self, fact: &StoreFact, out: &mut Out) {
        match fact {
            StoreFact::Opened { term, first_epoch, .. } => {
                if *term <= self.newest_term {
                    out.violate("R3", format!("term {term} begins after term {}", self.newest_term));
                }
                if *first_epoch <= self.newest_epoch {
                    let newest = self.newest_epoch;
                    out.violate("R3", format!("term {term} begins at epoch {first_epoch}; {newest} was used before"));
                }
                self.newest_term = self.newest_term.max(*term);
            }
            StoreFact::Applied { epoch, .. } => self.newest_epoch = self.newest_epoch.max(*epoch),
            _ => {}
        }
    }
}
