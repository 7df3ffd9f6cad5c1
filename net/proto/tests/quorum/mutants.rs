//! Deliberate bugs, each found by a checker in random runs, or by the story that is about it: the tests bite.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vellum_base::mutant::{self, Mutant};

use crate::{random, stories};

/// Runs `test` with the bug and gives what the panic said, if there was one.
fn with(bug: Mutant, test: impl FnOnce()) -> Option<String> {
    mutant::replace(Some(bug));
    let result = catch_unwind(AssertUnwindSafe(test));
    mutant::replace(None);
    let panic = result.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default())
}

/// Found by some seed, by one of these checkers.
fn found_by_a_seed(bug: Mutant, checkers: &[&str]) {
    const SEEDS: u64 = 300;
    for seed in 1..=SEEDS {
        if let Some(what) = with(bug, || drop(random::run(seed))) {
            let first: String = what.lines().next().unwrap_or_default().into();
            println!("{}: {first}", bug.name());
            assert!(checkers.iter().any(|c| first.contains(c)), "{} was found, but by: {first}", bug.name());
            return;
        }
    }
    panic!("{} was not found by {SEEDS} seeds", bug.name());
}

fn found_by_a_story(bug: Mutant, story: fn()) {
    let found = with(bug, story);
    println!("{}: {:?}", bug.name(), found.as_deref().and_then(|f| f.lines().next()));
    assert!(found.is_some(), "{} was not found by its story", bug.name());
}

#[test]
fn votes_before_they_are_durable() {
    found_by_a_seed(Mutant::VoteBeforeDurable, &["Q9"]);
}

#[test]
fn a_member_that_forgets_its_term() {
    found_by_a_seed(Mutant::ForgetTerm, &["Q2", "Q9"]);
}

#[test]
fn candidates_without_pre_vote() {
    found_by_a_seed(Mutant::SkipPreVote, &["Q10"]);
}

#[test]
fn blocks_read_before_elect_is_durable() {
    found_by_a_story(Mutant::ReadBeforeElect, stories::e11_two_members_elect_themselves_in_one_round);
}

#[test]
fn leaders_without_fencing() {
    found_by_a_seed(Mutant::LeadUnfenced, &["Q1", "Q8"]);
}

#[test]
fn failed_fences_that_are_believed() {
    found_by_a_seed(Mutant::BelieveFailedFence, &["Q1", "Q8"]);
}

#[test]
fn unreadable_blocks_that_are_passed_over() {
    found_by_a_seed(Mutant::UnreadableIsNobody, &["Q1", "Q8"]);
}

#[test]
fn stop_before_the_last_write() {
    found_by_a_seed(Mutant::StopTooEarly, &["Q5"]);
}

#[test]
fn leaders_that_do_not_listen() {
    found_by_a_story(Mutant::DeafLeader, stories::a_leader_without_a_majority_stops);
}

#[test]
fn rounds_that_nobody_answered() {
    found_by_a_story(Mutant::ConfirmUnanswered, stories::rounds_that_no_majority_answered_are_not_confirmed);
}

#[test]
fn silence_while_fencing() {
    found_by_a_story(Mutant::SilentWhileFencing, stories::s26_slow_fencing_lets_nobody_else_be_elected);
}

#[test]
fn timeouts_that_are_believed_late() {
    found_by_a_story(Mutant::BelieveLateTimeout, stories::s27_a_late_follower_does_not_believe_its_timeout);
}

#[test]
fn leaders_that_stay_on_a_stalled_device() {
    found_by_a_story(Mutant::KeepSlowLeader, stories::q9_a_leader_whose_writes_stall_resigns);
}

#[test]
fn two_writers_of_one_block() {
    found_by_a_story(Mutant::ShareSlot, stories::s35_two_nodes_start_in_one_slot_at_once);
}
