//! Deliberate bugs ([`vellum_base::mutant`]): each must be found by some seed within a bound.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vellum_base::Mutant;
use vellum_base::mutant;

use crate::plan::{Plan, Profile, Season};
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

/// The season in which a bug can show at all, where there is one.
fn season_of(bug: Mutant) -> Option<Season> {
    match bug {
        Mutant::FreeBeforeDurable => Some(Season::Churn),
        Mutant::SkipDataFlush | Mutant::NameUnflushedSegment => Some(Season::Strike),
        Mutant::GrantFileLockInConflict | Mutant::ForgetFileLocks => Some(Season::LockFiles),
        Mutant::ReleaseBeforeSettled | Mutant::LeaseFromAnswer | Mutant::IgnoreLease => Some(Season::Doze),
        Mutant::LetAllGo => Some(Season::Leave),
        _ => None,
    }
}

/// Seeds from `first` on; of a bug that only one season shows, those of that season.
pub fn seeds(bug: Mutant, profile: Profile, first: u64) -> impl Iterator<Item = u64> {
    let season = season_of(bug);
    (first..).filter(move |seed| season.is_none() || Plan::draw(*seed, profile).season == season)
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
