//! Deliberate bugs ([`vellum_base::mutant`]): each must be found by some seed within a bound.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vellum_base::Mutant;
use vellum_base::mutant;
use vellum_store::Rebalance;

use crate::fault::{Fault, Timed};
use crate::plan::{Plan, Profile, Season, Work};
use crate::run::run;

/// Who found a bug, and after how many runs.
#[derive(Clone, Debug)]
pub struct Found {
    pub seed: u64,
    pub runs: usize,
    /// The invariant, or `assert` for a panic of the code itself.
    pub by: String,
    pub what: String,
}

/// Where a bug can be found.
pub fn profile_of(bug: Mutant) -> Profile {
    // Those of the quorum stand last in the list.
    if bug >= Mutant::VoteBeforeDurable { Profile::Cluster } else { Profile::Single }
}

/// Whether a bug can show in this run at all, or hardly.
fn may_show(bug: Mutant, plan: &Plan) -> bool {
    let season = match bug {
        Mutant::FreeBeforeDurable => Season::Churn,
        Mutant::SkipDataFlush | Mutant::NameUnflushedSegment | Mutant::ReleaseBeforeTombstone => Season::Strike,
        Mutant::GrantFileLockInConflict | Mutant::ForgetFileLocks => Season::LockFiles,
        Mutant::LeaseFromAnswer | Mutant::IgnoreLease => Season::Doze,
        Mutant::ReleaseBeforeSettled => Season::Hold,
        Mutant::BelieveBadData => Season::Astray,
        Mutant::UnreadableIsNobody
        | Mutant::StopTooEarly
        | Mutant::DeafLeader
        | Mutant::SilentWhileFencing
        | Mutant::BelieveLateTimeout
        | Mutant::KeepSlowLeader
        | Mutant::ShareSlot => Season::Members,
        Mutant::MoveUnheld => Season::Move,
        Mutant::LetAllGo => Season::Leave,
        // Clients must meet a new leader, and nothing else may keep them from it.
        Mutant::KeepReceivedOverTerms => return meets_leaders_calmly(plan),
        // A random one moves a shard now and then.
        Mutant::MoveUnflushed | Mutant::MoveWithoutLocks => {
            return matches!(plan.store.rebalance, Rebalance::AtRandom(_));
        }
        Mutant::WriteWithoutLock => return plan.clients.contains(&Work::Hostile),
        _ => return true,
    };
    plan.season == Some(season)
}

fn meets_leaders_calmly(plan: &Plan) -> bool {
    let dies = |timed: &Timed| matches!(timed.fault, Fault::NodeDies { .. } | Fault::PowerLoss { .. });
    plan.network.datagram_loss_one_in == 0 && plan.faults.iter().filter(|timed| dies(timed)).count() >= 3
}

/// Seeds from `first` on whose runs may show the bug.
pub fn seeds(bug: Mutant, profile: Profile, first: u64) -> impl Iterator<Item = u64> {
    (first..).filter(move |seed| may_show(bug, &Plan::draw(*seed, profile)))
}

/// Runs seeds until one fails that does not fail without the bug; `None` when none of `bound` does.
pub fn hunt(bug: Mutant, profile: Profile, seeds: impl Iterator<Item = u64>, bound: usize) -> Option<Found> {
    for (n, seed) in seeds.take(bound).enumerate() {
        if let Some((by, what)) = run_with(Some(bug), Plan::draw(seed, profile)) {
            match run_with(None, Plan::draw(seed, profile)) {
                None => return Some(Found { seed, runs: n + 1, by, what }),
                Some((by, what)) => eprintln!("seed {seed} fails without a bug: [{by}] {what}"),
            }
        }
    }
    None
}

/// One run with the bug; what it violates first.
pub fn run_with(bug: Option<Mutant>, plan: Plan) -> Option<(String, String)> {
    mutant::replace(bug);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(plan)));
    mutant::replace(None);
    match outcome {
        Ok(outcome) => outcome.violations.first().map(|v| (v.invariant.to_string(), v.what.clone())),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Some(("assert".into(), said.unwrap_or_default()))
        }
    }
}
