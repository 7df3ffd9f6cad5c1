//! Failures that such systems met, one story each; numbers are those of the specification's scenarios. They are plain
//! functions too, so that `mutants.rs` can run them with a bug switched on.

use std::time::Duration;

use vellum_base::{Slot, Term};
use vellum_format::quorum::EventKind;
use vellum_proto::quorum::QuorumRole;

use crate::world::{Fencer, World, ms};

fn led(seed: u64, slots: usize) -> (World, usize) {
    let mut w = World::all_started(seed, slots);
    w.run_until(ms(3_000), |w| w.leader().is_some());
    w.run_for(ms(1_000));
    let leader = w.leader().expect("it keeps the leadership");
    (w, leader)
}

fn others(w: &World, node: usize) -> Vec<usize> {
    (0..w.nodes.len()).filter(|n| *n != node).collect()
}

#[test]
fn one_slot_leads_at_once_and_again_after_kill_9() {
    let mut w = World::all_started(1, 1);
    let took = w.run_until(ms(100), |w| w.leader() == Some(0));
    assert!(took < ms(50), "{took:?}");
    w.kill(0);
    w.run_for(ms(10));
    w.start(0);
    // Its own earlier run is fenced first: that takes the fencer's 20 ms.
    assert!(w.run_until(ms(200), |w| w.leader() == Some(0)) < ms(100));
    w.run_for(ms(60_000));
    assert_eq!(w.checkers.leads, 2);
}

/// Detection takes the heartbeat timeout, all that follows much less than a second, as a median.
#[test]
fn a_dead_leader_is_replaced_within_a_second_of_detection() {
    let mut times = Vec::new();
    for seed in 0..40 {
        let (mut w, leader) = led(seed, 3);
        w.kill(leader);
        times.push(w.run_until(ms(5_000), |w| w.leader().is_some()));
    }
    times.sort();
    println!("failover: median {:?}, longest {:?}", times[20], times[39]);
    assert!(times[20] < w_timeout() + ms(1_000) && times[39] < ms(4_000));
}

fn w_timeout() -> Duration {
    vellum_proto::quorum::QuorumTimers::DEFAULT.heartbeat_timeout
}

#[test]
fn a_leader_that_resigns_is_followed_at_once_and_fenced_by_nobody() {
    for seed in 0..10 {
        let (mut w, leader) = led(seed, 3);
        w.input(leader, |m, now| m.resign(now, "an operator wishes it"));
        let took = w.run_until(ms(1_500), |w| w.leader().is_some_and(|n| n != leader));
        assert!(took < ms(800), "{took:?}");
        assert!(w.nodes[leader].machine.is_some(), "it stays a member");
        assert!(!w.trace.iter().any(|line| line.contains("fences")), "{}", w.tail());
    }
}

#[test]
fn members_that_leave_write_end_and_a_fresh_start_is_quick() {
    let (mut w, leader) = led(4, 3);
    for node in [others(&w, leader)[0], others(&w, leader)[1], leader] {
        w.input(node, |m, now| m.leave(now));
        w.run_for(ms(200));
        assert!(w.nodes[node].machine.is_none(), "{node}\n{}", w.tail());
    }
    assert!(Slot::all().take(3).all(|s| w.block(s).block().is_some_and(|b| b.running().is_none())));
    (0..3).for_each(|n| w.start(n));
    assert!(w.run_until(ms(2_000), |w| w.leader().is_some()) < ms(1_000), "nobody is waited for");
    assert!(!w.trace.iter().any(|line| line.contains("fences")));
}

/// 26: fencing takes long, and heartbeats go on meanwhile.
#[test]
pub fn s26_slow_fencing_lets_nobody_else_be_elected() {
    for seed in 0..5 {
        let (mut w, leader) = led(seed, 3);
        w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Works { takes: ms(9_000) });
        w.kill(leader);
        w.run_until(ms(4_000), |w| (0..3).any(|n| w.role(n) == Some(QuorumRole::Fencing)));
        let next = (0..3).find(|n| w.role(*n) == Some(QuorumRole::Fencing)).unwrap();
        let term = w.term(next);
        w.run_until(ms(9_500), |w| w.leader().is_some());
        assert_eq!((w.leader(), w.term(next)), (Some(next), term), "the one that fenced\n{}", w.tail());
    }
}

/// 27: a follower that was not scheduled finds its timeout long past; the heartbeats that it slept through are lost.
#[test]
pub fn s27_a_late_follower_does_not_believe_its_timeout() {
    for seed in 0..10 {
        let (mut w, leader) = led(seed, 2);
        let follower = others(&w, leader)[0];
        let term = w.term(leader);
        w.cuts.insert((leader, follower));
        w.pause(follower);
        w.run_for(ms(10_000));
        w.cuts.clear();
        w.wake(follower);
        w.run_for(ms(3_000));
        assert_eq!((w.leader(), w.term(follower)), (Some(leader), term), "{}", w.tail());
    }
}

/// 28, Q10: a member that is cut off neither inflates its term nor unseats the leader when it is back.
#[test]
fn s28_an_isolated_member_comes_back_and_disturbs_nobody() {
    for seed in 0..10 {
        let (mut w, leader) = led(seed, 3);
        let term = w.term(leader);
        let lost = others(&w, leader)[0];
        w.isolate(lost);
        w.run_for(ms(60_000));
        assert_eq!(w.term(lost), term, "its term is what it was");
        w.cuts.clear();
        w.run_for(ms(5_000));
        assert_eq!((w.leader(), w.term(leader)), (Some(leader), term));
    }
}

/// 29, Q9: a member is killed around its vote, at every moment, and starts again at once.
#[test]
fn s29_a_member_that_restarts_quickly_does_not_vote_twice() {
    for moment in 0..120 {
        let mut w = World::new(moment, 3);
        w.nodes.iter_mut().for_each(|n| n.disk.write = (ms(3), ms(6)));
        (0..3).for_each(|n| w.start(n));
        w.run_for(ms(240 + moment));
        for node in 0..3 {
            w.kill(node);
            w.start(node);
        }
        w.run_until(ms(8_000), |w| w.leader().is_some());
    }
}

/// 31, Q8: the fencer fails. Nobody leads, the error is shown; when it works again, somebody does.
#[test]
fn s31_a_failed_fence_is_never_a_success() {
    for fencer in [Fencer::Fails, Fencer::Hangs] {
        let (mut w, leader) = led(31, 3);
        w.nodes.iter_mut().for_each(|n| n.fencer = fencer);
        w.pause(leader);
        w.run_for(ms(20_000));
        assert_eq!(w.leader(), Some(leader), "only the paused one believes that it leads\n{}", w.tail());
        if fencer == Fencer::Fails {
            let error = |n: usize| w.nodes[n].machine.as_ref().and_then(|m| m.status(w.now).error);
            assert!(others(&w, leader).into_iter().any(|n| error(n).is_some_and(|e| e.contains("the script failed"))));
        }
        w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Works { takes: ms(10) });
        w.run_until(ms(120_000), |w| w.leader().is_some_and(|n| !w.nodes[n].paused));
    }
}

/// 31: one member's fencer is broken; it gives up and another member's works.
#[test]
fn s31_another_members_fencer_is_tried() {
    for seed in 0..6 {
        let (mut w, leader) = led(seed, 3);
        let broken = others(&w, leader)[0];
        w.nodes[broken].fencer = Fencer::Fails;
        w.kill(leader);
        w.run_until(ms(15_000), |w| w.leader().is_some());
    }
}

/// 32, F5: a second leader dies before its FENCE; the third fences the first once more, and that succeeds.
#[test]
fn s32_the_same_run_is_fenced_by_two_leaders() {
    let (mut w, leader) = led(32, 3);
    w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Works { takes: ms(300) });
    w.kill(leader);
    w.run_until(ms(4_000), |w| (0..3).any(|n| w.role(n) == Some(QuorumRole::Fencing)));
    let second = (0..3).find(|n| w.role(*n) == Some(QuorumRole::Fencing)).unwrap();
    w.kill(second);
    w.start_in(second, ms(100));
    w.run_until(ms(8_000), |w| w.leader().is_some());
    assert!(w.trace.iter().filter(|line| line.contains("fences")).count() >= 2);
}

/// 34: the engine does not start on one node. The member stays and votes; the others lead with its help.
#[test]
fn s34_an_engine_that_fails_leaves_a_member_that_votes() {
    let mut w = World::new(34, 3);
    w.nodes[0].engine_fails = true;
    w.start(0);
    w.start(1);
    w.run_until(ms(30_000), |w| w.leader() == Some(1) && w.nodes[1].engine.is_some_and(|e| e.serves));
    w.run_for(ms(60_000));
    assert_eq!(w.leader(), Some(1), "node 2 was never started: without node 0 there is no majority");
}

/// 35, Q3: a second process is started in a slot, on another host. It watches the block, sees the first one write, and
/// is refused before it has written anything.
#[test]
pub fn s35_a_node_is_refused_in_a_slot_that_is_in_use() {
    for seed in 0..10 {
        let (mut w, leader) = led(35 + seed, 3);
        let twin = w.add_node(Slot((seed % 3) as u8));
        w.watch = true;
        w.start(twin);
        let block = |w: &World| w.block(w.nodes[twin].slot).block().unwrap().get(EventKind::Begin).unwrap().rid;
        let before = block(&w);
        w.run_until(ms(6_000), |w| w.nodes[twin].failed.is_some());
        assert_eq!((block(&w), w.leader()), (before, Some(leader)));
        // One whose run was killed in place is let in.
        let lost = others(&w, leader).into_iter().find(|n| *n != twin).unwrap();
        w.kill(lost);
        w.start(lost);
        w.run_for(ms(8_000));
        assert_eq!(w.role(lost), Some(QuorumRole::Follower));
    }
}

/// 35: both are started at once, so neither can see the other before it writes. One finds out and writes no more, also when
/// each write lands before a read that was begun with it: the block is read before it is written. (Found by the simulation.)
#[test]
pub fn s35_two_nodes_start_in_one_slot_at_once() {
    for seed in 0..10 {
        let mut w = World::new(seed, 3);
        let twin = w.add_node(Slot(0));
        w.checkers.two_writers = true;
        w.nodes.iter_mut().for_each(|n| n.disk.write = (Duration::ZERO, Duration::from_micros(5)));
        [1, 2, 0, twin].into_iter().for_each(|n| w.start(n));
        w.run_until(ms(10_000), |w| w.nodes[0].failed.is_some() || w.nodes[twin].failed.is_some());
        w.run_for(ms(10_000));
        w.run_until(ms(20_000), |w| w.leader().is_some());
    }
}

/// E11: both members of a two-slot cluster elect themselves at once; one leads, and the other is not even killed.
#[test]
pub fn e11_two_members_elect_themselves_in_one_round() {
    let mut duels = 0;
    for seed in 0..60 {
        let mut w = World::new(seed, 2);
        w.cuts.extend([(0, 1), (1, 0)]);
        (0..2).for_each(|n| w.start(n));
        w.nodes.iter_mut().for_each(|n| n.disk.write = (ms(40), ms(60)));
        w.run_for(ms(370));
        w.cuts.clear();
        duels += u64::from((0..2).all(|n| w.term(n) > Term::NONE));
        w.run_until(ms(6_000), |w| w.leader().is_some());
        w.run_for(ms(4_000));
        assert!(w.leader().is_some());
    }
    assert!(duels > 5, "{duels}");
}

/// E11: a leader is paused, deposed and fenced; what it had sent to the device lands before its fence is confirmed.
#[test]
fn e11_a_paused_leaders_queued_writes_land_before_the_next_leads() {
    for seed in 0..20 {
        let slots = 2 + seed as usize % 2;
        let (mut w, leader) = led(seed, slots);
        w.nodes[leader].disk.stalled_until = w.now + ms(2_500);
        w.run_for(ms(100));
        w.pause(leader);
        w.wake_in(leader, ms(3_000 + 100 * seed));
        w.run_until(ms(8_000), |w| w.leader().is_some_and(|n| n != leader));
        w.run_for(ms(5_000));
    }
}

/// A paused leader wakes in a cluster that could not fence it: it stops before it acknowledges anything, and says STOP,
/// which is all that the next leader needed.
#[test]
fn a_leader_that_wakes_deposed_stops_and_its_stop_ends_the_fencing() {
    let (mut w, leader) = led(12, 3);
    w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Fails);
    w.pause(leader);
    w.run_for(ms(6_000));
    w.wake(leader);
    w.run_until(ms(30_000), |w| w.leader().is_some_and(|n| n != leader));
    assert!(w.nodes[leader].machine.is_some(), "nobody was killed");
    let block = w.block(w.nodes[leader].slot);
    assert!(block.block().unwrap().unstopped().is_none());
}

/// The leader is cut off from all others: it stops by itself after the heartbeat timeout.
#[test]
pub fn a_leader_without_a_majority_stops() {
    for seed in 0..10 {
        let (mut w, leader) = led(seed, 3);
        w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Fails);
        w.isolate(leader);
        w.run_until(ms(2_400), |w| w.leader() != Some(leader));
        w.run_until(ms(4_000), |w| w.leader().is_some());
    }
}

/// Q9: the leader's path to the device stalls while the followers' works.
#[test]
pub fn q9_a_leader_whose_writes_stall_resigns() {
    for seed in 0..10 {
        let (mut w, leader) = led(seed, 3);
        w.nodes[leader].disk.stalled_until = w.now + ms(60_000);
        w.run_until(ms(8_000), |w| w.role(leader) != Some(QuorumRole::Leading));
        // It is alive and knows the newer term, but its STOP cannot be written: it is fenced after the grace, and that
        // waits for its last write.
        w.run_until(ms(70_000), |w| w.leader().is_some_and(|n| n != leader));
    }
}

/// Q9: when the device stalls for everybody, nobody does better.
#[test]
fn q9_a_device_that_stalls_for_all_unseats_nobody() {
    let (mut w, leader) = led(9, 3);
    let (term, until) = (w.term(leader), w.now + ms(20_000));
    w.nodes.iter_mut().for_each(|n| n.disk.stalled_until = until);
    w.run_for(ms(30_000));
    assert_eq!((w.leader(), w.term(leader)), (Some(leader), term), "{}", w.tail());
}

/// Q9: on a slow device elections take longer than ten durable votes.
#[test]
fn q9_elections_wait_for_slow_devices() {
    let mut w = World::new(10, 3);
    w.nodes.iter_mut().for_each(|n| n.disk.write = (ms(300), ms(400)));
    (0..3).for_each(|n| w.start(n));
    w.run_until(ms(30_000), |w| w.leader().is_some());
    let status = |w: &World, n: usize| w.nodes[n].machine.as_ref().unwrap().status(w.now);
    w.run_for(ms(20_000));
    for node in 0..3 {
        let latency = status(&w, node).write_latency;
        assert!(latency >= ms(300) && latency <= ms(402), "{latency:?}");
    }
    assert_eq!(w.checkers.leads, 1, "{}", w.tail());
}

/// The gate: whatever round a leader begins that nobody hears, or that it begins when it wakes deposed, is not confirmed.
#[test]
pub fn rounds_that_no_majority_answered_are_not_confirmed() {
    let (mut w, leader) = led(13, 3);
    w.nodes.iter_mut().for_each(|n| n.fencer = Fencer::Fails);
    assert!(w.nodes[leader].confirmed > 0, "a healthy leader's are");
    w.isolate(leader);
    w.run_for(ms(5));
    let confirmed = w.nodes[leader].confirmed;
    w.run_for(ms(1_500));
    assert_eq!(
        (w.leader(), w.nodes[leader].confirmed),
        (Some(leader), confirmed),
        "it leads, and acknowledges nothing"
    );
    w.cuts.clear();
    w.run_for(ms(100));
    assert!(w.nodes[leader].confirmed > confirmed, "what waited is confirmed by the next round");

    w.pause(leader);
    w.run_for(ms(5_000));
    w.wake(leader);
    let round = std::cell::Cell::new(0);
    w.input(leader, |m, now| round.set(m.begin_round(now)));
    w.run_for(ms(50));
    assert!(w.leader() != Some(leader) && w.nodes[leader].confirmed < round.get());
}

/// A block that nobody can read counts as elected: its member is fenced before anybody leads.
#[test]
fn an_unreadable_block_counts_as_elected() {
    let (mut w, leader) = led(14, 3);
    w.unreadable.insert(w.nodes[leader].slot);
    w.pause(leader);
    w.run_until(ms(8_000), |w| w.leader().is_some_and(|n| n != leader));
    assert!(w.trace.iter().any(|line| line.contains("fences") && line.contains("None")), "{}", w.tail());
}

#[test]
fn a_follower_records_the_terms_it_hears_of() {
    let (w, leader) = led(15, 3);
    for node in 0..3 {
        let block = w.block(w.nodes[node].slot);
        let term = block.block().and_then(|b| b.get(EventKind::Term)).unwrap().term;
        assert_eq!(term, w.term(leader));
    }
}

/// The record of heartbeat delays shows a network that stutters.
#[test]
fn long_gaps_between_heartbeats_are_recorded() {
    let (mut w, leader) = led(16, 3);
    let follower = others(&w, leader)[0];
    w.run_for(ms(5_000));
    let gaps = |w: &World| {
        let status = w.nodes[follower].machine.as_ref().unwrap().status(w.now);
        let delays = &status.peers.iter().find(|p| p.slot == w.nodes[leader].slot).unwrap().delays;
        (delays.longest().map_or(Duration::ZERO, |l| l.0), delays.counts().iter().skip(3).sum::<u64>())
    };
    let quiet = gaps(&w);
    assert!(quiet.0 < ms(200) && quiet.1 == 0, "{quiet:?}");
    w.cuts.insert((leader, follower));
    w.run_for(ms(900));
    w.cuts.clear();
    w.run_for(ms(500));
    let loud = gaps(&w);
    assert!(loud.0 > ms(800) && loud.0 < ms(1_100) && loud.1 == 1, "{loud:?}");
}

fn ask_to_leave(w: &mut World, node: usize, mounted: bool) {
    for n in 0..w.nodes.len() {
        w.input(n, |m, _| m.set_mounted(mounted));
    }
    w.input(node, |m, now| m.ask_to_leave(now));
    w.run_for(ms(50));
}

fn has_left(w: &World, node: usize) -> bool {
    w.nodes[node].machine.is_none() || w.role(node) == Some(QuorumRole::Over)
}

/// U1: three members, somebody is mounted. One may leave; the second stays however often it asks, leader or not, until
/// nobody is mounted any more. U2: then all leave, the last one too, and nobody is fenced.
#[test]
fn u1_who_leaves_while_anyone_is_mounted_leaves_a_majority() {
    for seed in 0..8 {
        let (mut w, leader) = led(seed, 3);
        let followers = others(&w, leader);
        // The leader goes first in half of the runs.
        let first = if seed % 2 == 0 { followers[0] } else { leader };
        for _ in 0..40 {
            ask_to_leave(&mut w, first, true);
        }
        assert!(has_left(&w, first), "seed {seed}: a majority stays\n{}", w.tail());
        w.run_until(ms(3_000), |w| w.leader().is_some());
        let rest = others(&w, first);
        for _ in 0..100 {
            rest.iter().for_each(|node| ask_to_leave(&mut w, *node, true));
        }
        assert!(rest.iter().all(|node| !has_left(&w, *node)), "seed {seed}: they are needed\n{}", w.tail());
        assert!(w.leader().is_some(), "seed {seed}: and serve");
        for _ in 0..20 {
            rest.iter().for_each(|node| ask_to_leave(&mut w, *node, false));
        }
        assert!(rest.iter().all(|node| has_left(&w, *node)), "seed {seed}: nobody is mounted\n{}", w.tail());
        let fences: u64 = w.trace.iter().filter(|line| line.contains("fence")).count() as u64;
        assert_eq!(fences, 0, "seed {seed}\n{}", w.tail());
    }
}

/// U1 with one slot and with two: the only member stays as long as anyone is mounted; of two, one may go.
#[test]
fn u1_a_last_member_waits_for_the_last_mount() {
    for slots in [1, 2] {
        let (mut w, leader) = led(3, slots);
        if let Some(other) = others(&w, leader).first().copied() {
            ask_to_leave(&mut w, other, true);
            assert!(has_left(&w, other), "the other one serves alone");
            w.run_for(ms(3_000));
        }
        for _ in 0..40 {
            ask_to_leave(&mut w, leader, true);
        }
        assert_eq!(w.leader(), Some(leader));
        for _ in 0..5 {
            ask_to_leave(&mut w, leader, false);
        }
        assert!(has_left(&w, leader), "{}", w.tail());
    }
}

/// A member that was let go and comes back counts again; one that is told to leave without asking goes at once.
#[test]
fn u1_a_new_run_of_a_slot_counts_again() {
    let (mut w, leader) = led(5, 3);
    let [one, other] = others(&w, leader)[..] else { panic!() };
    ask_to_leave(&mut w, one, true);
    assert!(has_left(&w, one));
    ask_to_leave(&mut w, other, true);
    assert!(!has_left(&w, other));
    w.kill(one);
    w.start(one);
    w.run_for(ms(1_000));
    for _ in 0..3 {
        ask_to_leave(&mut w, other, true);
    }
    assert!(has_left(&w, other), "{}", w.tail());
    w.input(leader, |m, now| m.leave(now));
    w.run_for(ms(500));
    assert!(has_left(&w, leader), "an operator's word");
}
