//! 42 and the epochs' E4 and E5.

use vellum_sim::fault::{Fault, LEADER, Machine};
use vellum_sim::plan::Work;

use crate::{Story, ms};

/// Files are open in one gateway and unlinked in another, and gateways die: the last close, and the scans for orphans of the
/// living, delete the same inodes. Blocks are freed once (the check of the whole device after the run).
#[test]
fn s42_two_deleters_of_one_inode() {
    let mut story = Story::of(1, 42).clients(&[Work::Names, Work::Names, Work::Names, Work::Gateway]);
    for n in 0..8 {
        story = story.fault(ms(400 + 350 * n), Fault::ClientDies { client: (n % 4) as usize });
    }
    story = story.fault(ms(2000), Fault::Pause { machine: Machine::Client(1), time: ms(1800) });
    let told = story.holds();
    told.assert_says(3..40, "which is dead");
}

/// A seal could be durable while the file data that its extents name is not; power fails, the gateway lives and sends only
/// its batches again. The recovery counts no such epoch.
#[test]
fn e4_a_durable_seal_has_its_data() {
    let mut story = Story::of(1, 4).clients(&[Work::Gateway, Work::Gateway, Work::Items]);
    for n in 0..6 {
        story = story.fault(ms(300 + 400 * n), Fault::PowerLoss { down: ms(40) });
    }
    story.holds();
}

/// Recovery finds a complete seal that no flush covered, and takes it. Power fails again at once, many times: what a
/// recovery has built upon is durable first.
#[test]
fn e5_power_fails_in_the_middle_of_recoveries() {
    let mut story = Story::of(1, 5).clients(&[Work::Items, Work::Items, Work::Gateway]);
    for n in 0..20 {
        story = story.fault(ms(300 + 150 * (n / 2) + 7 * (n % 2)), Fault::PowerLoss { down: ms(2) });
    }
    story.holds();
}

/// The same for leaders that die one after the other in their recoveries, on a device that goes on.
#[test]
fn e5_leaders_die_in_the_middle_of_recoveries() {
    let mut story = Story::of(3, 55);
    for n in 0..5 {
        story = story.fault(ms(500 + 450 * n), Fault::NodeDies { node: LEADER, down: ms(50) });
    }
    story.holds();
}

/// Two gateways, names and items share files whose blocks are moved under them all the time, while clients and the power
/// fail: every read has its checksum, every change its place, and a gateway that has an old place in its cache gives it back
/// before the blocks are anybody's.
#[test]
fn s48_data_are_moved_under_gateways() {
    for seed in [48, 480] {
        let mut story = Story::of(1, seed).moving().clients(&[Work::Gateway, Work::Gateway, Work::Names, Work::Items]);
        story = story.until(ms(6000));
        for n in 0..3 {
            story = story.fault(ms(700 + 900 * n), Fault::PowerLoss { down: ms(40) });
            story = story.fault(ms(1000 + 900 * n), Fault::ClientDies { client: n as usize });
        }
        let told = story.holds();
        assert!(told.says("are moved") > 5, "{}", told.outcome.story.join("\n"));
    }
}

/// The same over leaders that die: a move is whole or was never there.
#[test]
fn s48_leaders_die_while_they_move_data() {
    let mut story = Story::of(3, 481).moving().clients(&[Work::Gateway, Work::Gateway, Work::Items]);
    for n in 0..3 {
        story = story.fault(ms(900 + 1500 * n), Fault::NodeDies { node: LEADER, down: ms(50) });
    }
    let told = story.holds();
    assert!(told.says("are moved") > 3, "{}", told.outcome.story.join("\n"));
}
