//! Who leads, and what an earlier leader may still do: 26 to 35, and the members' part of E11. The quorum's machine has stories
//! of its own for each (`net/proto/tests/quorum`); here the engine, its clients and the device take part.

#[cfg(debug_assertions)]
use vellum_base::Mutant;
use vellum_sim::fault::{FOLLOWER, Fault, LEADER, Machine};
use vellum_sim::plan::Work;
use vellum_sim::{Plan, Profile, run};

use crate::{Story, ms};

/// Fencing takes much longer than a heartbeat timeout (200 ms here). The new leader sends heartbeats all the while, so
/// nobody else is elected meanwhile, and nobody serves before the old one is gone.
#[test]
fn s26_a_long_fence_does_not_end_a_leadership() {
    let told = Story::of(3, 26)
        .fencing(ms(1500)..ms(1600), 0, false)
        .fault(ms(500), Fault::Pause { machine: Machine::Node(LEADER), time: ms(4000) })
        .holds();
    told.assert_says(2..3, "is elected in term");
    told.assert_says(2..3, " serves");
    told.assert_says(1..2, "is fenced from the device");
}

/// A follower is not scheduled for longer than the heartbeat timeout. When it wakes, heartbeats wait in its socket: it reads
/// them before it believes its timeout, and unseats nobody.
#[test]
fn s27_a_late_follower_reads_its_heartbeats_first() {
    let told = Story::of(3, 27)
        .fault(ms(500), Fault::Pause { machine: Machine::Node(FOLLOWER), time: ms(700) })
        .fault(ms(1500), Fault::Pause { machine: Machine::Node(FOLLOWER), time: ms(300) })
        .holds();
    told.assert_says(1..2, "is elected in term");
}

/// A member is cut off from the others, and comes back: it has not inflated its term, and the leader stays.
#[test]
fn s28_a_member_that_was_cut_off_unseats_nobody() {
    let told = Story::of(3, 28).fault(ms(500), Fault::Isolated { node: FOLLOWER, time: ms(3000) }).holds();
    told.assert_says(1..2, "is elected in term");
}

/// Followers die and start again at once, around an election: nobody votes twice in a term (the checker of Q9 looks at every
/// block that is written).
#[test]
fn s29_quick_restarts_do_not_vote_twice() {
    let mut story = Story::of(3, 29).fault(ms(500), Fault::NodeDies { node: LEADER, down: ms(0) });
    for n in 0..12 {
        story = story.fault(ms(650 + 25 * n), Fault::NodeDies { node: (n % 3) as usize, down: ms(1) });
    }
    story.holds().assert_says(2..20, "votes for slot");
}

/// A leader takes over while another member starts: each writes its own block and no other one (the checker of Q3).
#[test]
fn s30_nobody_writes_the_block_of_a_member_that_starts() {
    let mut story = Story::of(3, 30);
    for n in 0..6 {
        story = story
            .fault(ms(500 + 600 * n), Fault::NodeDies { node: LEADER, down: ms(200) })
            .fault(ms(510 + 600 * n), Fault::NodeDies { node: FOLLOWER, down: ms(150) });
    }
    story.holds().assert_says(2..20, "has seen off all leaders");
}

/// Every fence fails while the old leader, stopped, may wake and write. Nobody takes over; FENCE is written by nobody. The
/// old leader wakes, learns that it is deposed, stops by itself, and only then somebody serves.
#[test]
fn s31_without_a_fence_there_is_no_takeover() {
    let told = Story::of(3, 31)
        .fencing(ms(1)..ms(5), 1, false)
        .fault(ms(500), Fault::Pause { machine: Machine::Node(LEADER), time: ms(3000) })
        .holds();
    told.assert_says(0..1, "is fenced from the device");
    told.assert_says(1..100, "fails");
    told.assert_says(1..100, "has stopped leading term");
}

/// One leader after the other dies while it has the first one fenced: each has it fenced again, and that it is gone already
/// is no error.
#[test]
fn s32_the_same_leader_is_fenced_by_each_successor() {
    let told = Story::of(5, 32)
        .fencing(ms(150)..ms(200), 0, false)
        .fault(ms(500), Fault::NodeOff { node: LEADER, down: ms(4000) })
        .fault(ms(1000), Fault::NodeDies { node: LEADER, down: ms(3000) })
        .holds();
    told.assert_says(2..20, "orders for term");
}

/// A leader orders a fence and dies before it is carried out. What is left of the order harms nobody later.
#[test]
fn s33_an_order_that_outlives_its_leader() {
    Story::of(3, 33)
        .fencing(ms(600)..ms(700), 0, true)
        .fault(ms(500), Fault::NodeDies { node: LEADER, down: ms(100) })
        .fault(ms(950), Fault::NodeDies { node: LEADER, down: ms(100) })
        .fault(ms(1400), Fault::NodeDies { node: LEADER, down: ms(100) })
        .holds()
        .assert_says(2..20, "orders for term");
}

/// The engine of an elected member does not start (it reads nothing). The member stays one, and its vote is there when
/// another one stands; with one of three off, that vote decides.
#[test]
fn s34_an_engine_that_fails_leaves_the_vote() {
    let told = Story::of(3, 34)
        .fault(ms(500), Fault::NodeReadsFail { node: FOLLOWER, time: ms(4000) })
        .fault(ms(600), Fault::NodeOff { node: LEADER, down: ms(3500) })
        .holds();
    told.assert_says(2..20, " serves");
}

/// A second process is started in a slot while the first one leads, or follows, on a machine that claims the same address (it
/// was cloned). It watches the block, sees that it is written, is refused and has written nothing (Q3); the first one, which
/// heard nothing from others meanwhile, goes on as after any cut, and nothing is lost.
#[test]
fn s35_a_second_process_is_refused_in_a_slot_that_is_in_use() {
    for node in [LEADER, FOLLOWER] {
        let told = Story::of(3, 35).fault(ms(700), Fault::Twin { node, time: ms(1500) }).holds();
        told.assert_says(1..2, "was refused: another process, perhaps on another host, runs in slot");
        told.assert_says(0..1, "gives way");
        assert!(told.outcome.txns > 50, "{} transactions", told.outcome.txns);
    }
}

/// Both are started at once on a device whose blocks are empty: neither can see the other before it writes. Each that finds
/// the other writes no more and says why; a service starts the first one again, and nothing is lost.
#[test]
fn s35_two_processes_are_started_in_one_slot_at_once() {
    let mut refused = 0;
    for seed in 350..354 {
        let told = Story::of(3, seed).fault(ms(0), Fault::Twin { node: 0, time: ms(2500) }).holds();
        refused += told.says("was refused: ") + told.says("gives way: ");
        assert!(told.outcome.txns > 50, "{} transactions", told.outcome.txns);
    }
    assert!(refused >= 4, "{refused} of two in one slot gave way");
}

/// The checker of two writers bites.
#[test]
#[cfg(debug_assertions)]
fn s35_two_writers_of_one_block_are_found() {
    Story::of(3, 350).fault(ms(0), Fault::Twin { node: 0, time: ms(2500) }).breaks(Mutant::ShareSlot, "Q3");
}

/// The leader's block cannot be read by the others (a bad sector), and it is stopped: whoever is elected has the slot fenced,
/// for the block may hide a leader (Q8).
#[test]
fn q8_an_unreadable_block_counts_as_elected() {
    let story = || {
        Story::of(3, 8)
            .fault(ms(490), Fault::BlockUnreadable { node: LEADER, time: ms(2500) })
            .fault(ms(500), Fault::Pause { machine: Machine::Node(LEADER), time: ms(2000) })
    };
    story().holds().assert_says(1..2, "is fenced from the device");
    #[cfg(debug_assertions)]
    story().breaks(Mutant::UnreadableIsNobody, "Q8");
}

/// A follower's machine is suspended for longer than a leader is missed, and hears nothing meanwhile. It wakes, listens, and
/// unseats nobody.
#[test]
fn s27_a_member_that_was_suspended_listens_first() {
    let story = || {
        Story::of(3, 127)
            .fault(ms(500), Fault::Suspended { machine: Machine::Node(FOLLOWER), time: ms(900) })
            .fault(ms(2500), Fault::Suspended { machine: Machine::Node(FOLLOWER), time: ms(600) })
    };
    story().holds().assert_says(1..2, "is elected in term");
    #[cfg(debug_assertions)]
    story().breaks(Mutant::BelieveLateTimeout, "27");
}

/// Two slots: one vote is a majority, so both members may be elected at once. They have different terms, and the second one
/// has the first one fenced before it serves. A leader that was stopped meanwhile wakes, and what it had queued does not land.
#[test]
fn e11_two_members_elect_themselves() {
    for (seed, cuts_off) in [(111, false), (112, true)] {
        let told = Story::of(2, seed)
            .fencing(ms(1)..ms(50), 0, cuts_off)
            .fault(ms(500), Fault::Isolated { node: LEADER, time: ms(1500) })
            .fault(ms(2800), Fault::Pause { machine: Machine::Node(LEADER), time: ms(2000) })
            .fault(ms(5500), Fault::Pause { machine: Machine::Node(LEADER), time: ms(900) })
            .holds();
        told.assert_says(2..20, "is elected in term");
        told.assert_says(1..20, "is fenced from the device");
    }
}

/// With one member of three off, an operator tells another one to stop while clients are mounted.
fn told_to_stop(node: usize) -> Story {
    Story::of(3, 41)
        .clients(&[Work::Gateway, Work::Items, Work::Items])
        .fault(ms(1500), Fault::NodeOff { node: 0, down: ms(3000) })
        .fault(ms(3500), Fault::Stop { node, down: ms(300) })
        .fault(ms(7000), Fault::Stop { node, down: ms(300) })
}

/// U1: it stays, for without it no majority would be left, until it is killed; once all are back, one of them may go.
#[test]
fn u1_members_stay_while_clients_need_them() {
    for node in [LEADER, FOLLOWER] {
        told_to_stop(node).holds().assert_says(1..20, "is told to stop");
    }
}

/// The checker of U1 bites.
#[test]
#[cfg(debug_assertions)]
fn u1_members_that_are_all_let_go_are_found() {
    told_to_stop(LEADER).breaks(Mutant::LetAllGo, "U1");
}

/// Two slots: both may be elected at once, the older one after the newer one has looked at the blocks. The older one finds the
/// newer one's ELECT and never leads (Q8; cluster seed 116 and 146).
#[test]
fn q8_an_older_term_that_is_elected_later_never_leads() {
    for seed in [116, 146] {
        let outcome = run(Plan::draw(seed, Profile::Cluster));
        assert!(outcome.violations.is_empty(), "{:?}\n{}", outcome.violations, outcome.story.join("\n"));
    }
}

/// Clients that come back within the window see no error, whatever becomes of the leaders: any error would end the run.
#[test]
fn failovers_in_a_row_under_work() {
    let mut story = Story::of(3, 7).clients(&[Work::Names, Work::Names, Work::Gateway, Work::Items]);
    for n in 0..4 {
        story = story.fault(ms(500 + 1500 * n), Fault::NodeDies { node: LEADER, down: ms(300) });
    }
    let told = story.holds();
    assert!(told.outcome.ordered > 60, "{} operations", told.outcome.ordered);
    told.assert_says(3..10, " serves");
}
