//! N8: a client that lives and can be reached is never given up. Whoever is stopped, cut off, or on a machine or a device that
//! stalls, may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vellum_base::Rid;
use vellum_server::Fact as ServerFact;

use super::Out;

/// What disturbs a client may have it given up so much later: it is missed, waited for, and a new leader waits for it again.
const LATER: Duration = Duration::from_millis(2000);

/// Whom a fault disturbs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Disturbed {
    Everyone,
    Client(usize),
}

#[derive(Default)]
pub struct Reach {
    /// Clients that are there, and on which machine.
    lives: BTreeMap<Rid, usize>,
    /// What goes on; when the last of it ended.
    faults: BTreeMap<usize, Disturbed>,
    ended: BTreeMap<Disturbed, u64>,
    /// They misbehave, and may be given up at any time.
    hostile: BTreeSet<usize>,
}

impl Reach {
    pub fn begins(&mut self, fault: usize, whom: Disturbed) {
        self.faults.insert(fault, whom);
    }

    pub fn ends(&mut self, fault: usize, now: u64) {
        if let Some(whom) = self.faults.remove(&fault) {
            self.ended.insert(whom, now);
        }
    }

    pub fn all_end(&mut self, now: u64) {
        let all = std::mem::take(&mut self.faults);
        self.ended.extend(all.into_values().map(|whom| (whom, now)));
    }

    pub fn lives(&mut self, rid: Rid, machine: usize) {
        self.lives.insert(rid, machine);
    }

    pub fn died(&mut self, rid: Rid) {
        self.lives.remove(&rid);
    }

    pub fn is_hostile(&mut self, machine: usize) {
        self.hostile.insert(machine);
    }

    pub fn server(&mut self, fact: &ServerFact, out: &mut Out) {
        match fact {
            ServerFact::Farewell { rid, .. } => self.died(*rid),
            ServerFact::Reclaims { term, rid } => self.given_up(*rid, &format!("term {term} gives it up"), out),
            _ => {}
        }
    }

    /// The client is told that it was.
    pub fn told(&mut self, rid: Rid, out: &mut Out) {
        self.given_up(rid, "it is told that it was given up, and it was not", out);
    }

    fn given_up(&mut self, rid: Rid, how: &str, out: &mut Out) {
        let Some(machine) = self.lives.remove(&rid).filter(|machine| !self.hostile.contains(machine)) else { return };
        let whom = [Disturbed::Everyone, Disturbed::Client(machine)];
        let goes_on = self.faults.values().any(|disturbed| whom.contains(disturbed));
        let since = whom.iter().filter_map(|whom| self.ended.get(whom)).max();
        let recent = since.is_some_and(|at| out.story.now() - at < LATER.as_nanos() as u64);
        if !goes_on && !recent {
            let name = out.name(rid);
            out.violate("N8", format!("{name} lives and can be reached, and {how}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use vellum_base::Term;
    use vellum_rt::sim::{SimConfig, World};

    use super::*;
    use crate::check::Checks;

    #[test]
    fn n8_who_can_be_reached_is_not_given_up() {
        let given_up = |fault: Option<Disturbed>| {
            let checks = Checks::new(World::new(1, SimConfig::default()).clock());
            let mut checks = checks.borrow_mut();
            checks.reach.lives(Rid(7), 1);
            fault.into_iter().for_each(|whom| checks.reach.begins(0, whom));
            checks.see(&ServerFact::Reclaims { term: Term(1), rid: Rid(7) });
            checks.violations().len()
        };
        assert_eq!([given_up(None), given_up(Some(Disturbed::Client(0)))], [1, 1]);
        assert_eq!([given_up(Some(Disturbed::Client(1))), given_up(Some(Disturbed::Everyone))], [0, 0]);
    }
}
