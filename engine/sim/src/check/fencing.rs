//! F: nothing that a client held is reused before it is fenced, so a reclaimed client uses no lock any more [F1]; its
//! record outlives its locks [F3].

use std::collections::{BTreeMap, BTreeSet};

use vellum_base::{Rid, Term};
use vellum_client::Fact as ClientFact;
use vellum_server::Fact as ServerFact;

use super::Out;

#[derive(Default)]
pub struct Fencing {
    given_up: BTreeMap<Rid, Term>,
    /// Their records are durably gone: until then the next leader may take them back.
    reclaimed: BTreeMap<Rid, Term>,
    dead: BTreeSet<Rid>,
}

impl Fencing {
    pub fn died(&mut self, rid: Rid) {
        self.dead.insert(rid);
    }

    /// `unaware`: a deposed leader that does not know it yet says so. It brings nobody back.
    pub fn server(&mut self, fact: &ServerFact, unaware: bool, out: &mut Out) {
        if let ServerFact::Expects { rids, .. } = fact {
            let gone = self.given_up.iter().filter(|(rid, _)| !rids.contains(rid));
            self.reclaimed.extend(gone.map(|(rid, term)| (*rid, *term)));
        }
        if let ServerFact::Reclaims { term, rid } = fact {
            let (name, dead) = (out.name(*rid), self.dead.contains(rid));
            out.story.say(format!("term {term} reclaims {name}{}", if dead { ", which is dead" } else { "" }));
            self.given_up.insert(*rid, *term);
        }
        // Whether it may begin anew is N6's question.
        if let ServerFact::Greeted { rid, .. } = fact
            && !unaware
        {
            self.given_up.remove(rid);
            self.reclaimed.remove(rid);
        }
    }

    pub fn store(&mut self, fact: &vellum_store::Fact) {
        if let vellum_store::Fact::RecordGone { rid, .. } = fact
            && let Some(term) = self.given_up.get(rid)
        {
            self.reclaimed.insert(*rid, *term);
        }
    }

    pub fn client(&mut self, fact: &ClientFact, out: &mut Out) {
        let ClientFact::Used { rid, name, mode } = fact else { return };
        if let Some(term) = self.reclaimed.get(rid) {
            let (who, term) = (out.name(*rid), *term);
            out.violate("F1", format!("{who} was reclaimed in term {term}, and uses {name:?} for {mode:?}"));
        }
    }
}
