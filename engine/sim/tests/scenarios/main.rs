//! Failures that real clustered filesystems met, each as a short story. The numbers are those of docs/TESTING.md.
//!
//! A story is a plan by hand: machines, faults and their times. All invariants of the simulation hold in it, and the story
//! that it tells is what its header says.

mod clients;
mod media;
mod quorum;
mod space;

use std::ops::Range;
use std::time::Duration;

#[cfg(debug_assertions)]
use vellum_base::mutant::{self, Mutant};
use vellum_rt::sim::SimConfig;
use vellum_sim::fault::{Fault, Timed};
use vellum_sim::plan::{Fencing, Work};
use vellum_sim::run::ENDS;
use vellum_sim::{Outcome, Plan, Profile, run};

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub struct Story {
    plan: Plan,
}

impl Story {
    /// A healthy network, a gateway and a client of items, and no faults yet.
    pub fn of(nodes: usize, seed: u64) -> Story {
        let drawn = Plan::draw(seed, Profile::Single);
        Story {
            plan: Plan {
                nodes,
                network: SimConfig::default(),
                clients: vec![Work::Gateway, Work::Items],
                pause_one_in: 4,
                faults: Vec::new(),
                calm_at: ms(100),
                fencing: Fencing { takes: ms(1)..ms(20), fails_one_in: 0, cuts_off: false },
                ends_cleanly: true,
                ..drawn
            },
        }
    }

    pub fn clients(mut self, clients: &[Work]) -> Story {
        self.plan.clients = clients.to_vec();
        self
    }

    pub fn fencing(mut self, takes: Range<Duration>, fails_one_in: u64, cuts_off: bool) -> Story {
        self.plan.fencing = Fencing { takes, fails_one_in, cuts_off };
        self
    }

    pub fn fault(mut self, at: Duration, fault: Fault) -> Story {
        let timed = Timed { at, fault };
        self.plan.calm_at = self.plan.calm_at.max(timed.end() + ms(200));
        self.plan.faults.push(timed);
        self
    }

    /// Sparse chunks are evacuated all the time.
    pub fn moving(mut self) -> Story {
        self.plan.move_data();
        self
    }

    /// Faults go on at least until then.
    pub fn until(mut self, calm_at: Duration) -> Story {
        self.plan.calm_at = calm_at;
        self
    }

    /// Runs it; nothing is violated.
    pub fn holds(self) -> Told {
        let outcome = run(self.plan);
        let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{violations:#?}\n{}", outcome.story.join("\n"));
        Told { outcome }
    }

    /// With a deliberate bug this is what is violated first.
    #[cfg(debug_assertions)]
    pub fn breaks(self, bug: Mutant, invariant: &str) {
        mutant::replace(Some(bug));
        let outcome = run(self.plan);
        mutant::replace(None);
        let found = outcome.violations.first().map(|violation| violation.invariant);
        assert_eq!(found, Some(invariant), "{}", outcome.story.join("\n"));
    }
}

pub struct Told {
    pub outcome: Outcome,
}

impl Told {
    /// How often the story says so before the nodes are stopped: then each leader that leaves has a successor.
    pub fn says(&self, words: &str) -> usize {
        let story = self.outcome.story.iter().take_while(|line| !line.ends_with(ENDS));
        story.filter(|line| line.contains(words)).count()
    }

    pub fn assert_says(&self, times: Range<usize>, words: &str) {
        let said = self.says(words);
        assert!(
            times.contains(&said),
            "{said} times \"{words}\", expected {times:?}:\n{}",
            self.outcome.story.join("\n")
        );
    }
}
