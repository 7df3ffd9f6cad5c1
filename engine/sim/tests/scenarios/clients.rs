//! What clients meet: E9, E14 with 8, locks of files over leaders (L11), and leases of clients that were stopped.

use vellum_sim::fault::{Fault, LEADER, Machine};
use vellum_sim::plan::Work;

use crate::{Story, ms};

/// E9: an agent walks the index of changes while entries move and nodes die. What it was told to be complete is complete, also
/// when a crash undoes a move that it had not seen (looked at on every image that a crash leaves).
#[test]
fn e9_a_walk_misses_nothing_over_crashes() {
    let mut story = Story::of(1, 9).clients(&[Work::Items, Work::Gateway, Work::Gateway]);
    for n in 0..5 {
        story = story
            .fault(ms(300 + 700 * n), Fault::PowerLoss { down: ms(20) })
            .fault(ms(600 + 700 * n), Fault::NodeDies { node: 0, down: ms(10) });
    }
    let told = story.holds();
    assert!(told.outcome.walked > 20, "{} entries were seen", told.outcome.walked);
}

/// E14 and 8: a client writes without locks, names blocks of others, gives back what it does not hold. Each is refused, and the
/// others, whose every read is compared, notice nothing.
#[test]
fn e14_s8_a_hostile_client_harms_nobody() {
    let told = Story::of(1, 14)
        .clients(&[Work::Hostile, Work::Hostile, Work::Items, Work::Gateway, Work::Names, Work::Names])
        .fault(ms(900), Fault::NodeDies { node: 0, down: ms(50) })
        .until(ms(2500))
        .holds();
    assert!(told.outcome.txns > 20 && told.outcome.ordered > 20, "the others worked");
}

/// L11: applications hold locks of files while leaders die under them. Nobody is granted what somebody else holds.
#[test]
fn l11_file_locks_outlive_their_leaders() {
    for nodes in [1, 3] {
        let mut story = Story::of(nodes, 11).clients(&[Work::FileLocks, Work::FileLocks, Work::FileLocks]);
        let node = if nodes == 1 { 0 } else { LEADER };
        for n in 0..4 {
            story = story.fault(ms(500 + 900 * n), Fault::NodeDies { node, down: ms(30) });
        }
        story.holds();
    }
}

/// A client is stopped for a little longer than it is waited for, again and again, while grants wait in its socket. When it
/// wakes it uses nothing that was another's meanwhile (F1). (Found by the simulation: a lock that had been waited for was
/// used without a look at the lease.)
#[test]
fn f1_a_client_that_slept_uses_nothing() {
    for seed in [53] {
        let mut story = Story::of(1, seed).clients(&[Work::Names, Work::Names, Work::Names, Work::Names]);
        for n in 0..4 {
            let machine = Machine::Client((n % 4) as usize);
            story = story.fault(ms(400 + 450 * n), Fault::Pause { machine, time: ms(895 + 5 * n) });
        }
        story.holds().assert_says(1..100, "reclaims");
    }
}

/// 51, as reads go: the device gives flipped bits and old data. Whoever reads gets an error or what is right (P3).
#[test]
fn s51_reads_that_lie() {
    let mut story = Story::of(1, 151).clients(&[Work::Items, Work::Items, Work::Gateway, Work::Names]);
    for n in 0..6 {
        story = story.fault(ms(900 + 300 * n), Fault::LyingReads { node: 0, operations: 6, old: n % 2 == 1 });
    }
    story.holds();
}
