//! Random faults, all overlapping; then they end, and a leader must be there in time (Q7).

use std::time::Duration;

use vellum_proto::quorum::QuorumTimers;

use crate::world::{Fencer, World, ms};

/// A minute of trouble, then peace.
pub fn run(seed: u64) -> World {
    let mut world = World::new(seed, 1);
    let slots = 1 + world.prng.below(5) as usize;
    world = World::all_started(seed, slots);
    world.loss = world.prng.below(100);
    world.doubled = world.prng.below(100);
    world.delay.1 = ms(1 + world.prng.below(60));
    for _ in 0..world.prng.below(120) {
        trouble(&mut world);
        let pause = world.prng.below(1500);
        world.run_for(ms(pause));
    }
    peace(&mut world);
    liveness(&mut world);
    world
}

fn trouble(w: &mut World) {
    let node = w.prng.below(w.nodes.len() as u64) as usize;
    let span = w.between((ms(10), ms(6_000)));
    match w.prng.below(16) {
        0 => {
            w.kill(node);
            w.start_in(node, span);
        }
        1 => {
            w.kill(node);
            w.start(node);
        }
        2 | 3 => {
            w.pause(node);
            w.wake_in(node, span);
        }
        4 => w.isolate(node),
        5 => {
            let other = w.prng.below(w.nodes.len() as u64) as usize;
            w.cuts.insert((node, other));
        }
        6 | 7 => w.cuts.clear(),
        8 => w.nodes[node].disk.stalled_until = w.now + span,
        9 => {
            let until = w.now + span;
            w.nodes.iter_mut().for_each(|n| n.disk.stalled_until = until);
        }
        10 => w.nodes[node].disk.reads_fail ^= true,
        11 => w.nodes[node].disk.writes_fail ^= true,
        12 => {
            w.nodes[node].fencer = match w.prng.below(4) {
                0 => Fencer::Fails,
                1 => Fencer::Hangs,
                _ => Fencer::Works { takes: span },
            };
        }
        13 => {
            let slot = w.nodes[node].slot;
            if !w.unreadable.remove(&slot) {
                w.unreadable.insert(slot);
            }
        }
        14 => w.input(node, |m, now| m.resign(now, "a trouble")),
        _ => {
            w.input(node, |m, now| m.leave(now));
            w.start_in(node, span);
        }
    }
    let slow = 1 + w.prng.below(30);
    w.nodes[node].disk.write.1 = ms(slow);
    w.nodes[node].engine_stops_in = ms(w.prng.below(400));
}

fn peace(w: &mut World) {
    w.peace = true;
    w.cuts.clear();
    w.unreadable.clear();
    (w.loss, w.doubled, w.delay.1) = (0, 0, ms(2));
    for node in 0..w.nodes.len() {
        w.wake(node);
        let n = &mut w.nodes[node];
        n.disk =
            crate::world::Disk { write: (ms(0), ms(3)), stalled_until: w.now, writes_fail: false, reads_fail: false };
        n.fencer = Fencer::Works { takes: ms(50) };
        n.engine_stops_in = ms(5);
        w.start(node);
    }
}

/// Q7: pauses that earlier failures earned run out, and then a leader is there and confirms rounds.
fn liveness(w: &mut World) {
    let QuorumTimers { heartbeat_timeout, fence_timeout, .. } = w.timers;
    let limit = 17 * heartbeat_timeout + fence_timeout + Duration::from_secs(10);
    w.run_until(limit, |w| w.leader().is_some());
    w.run_for(ms(3_000));
    let rounds = w.checkers.rounds;
    let took = w.run_until(ms(20_000), |w| w.leader().is_some() && w.checkers.rounds > rounds);
    assert!(took < ms(20_000));
    // And from then on nobody disturbs it.
    w.run_until(ms(20_000), |w| w.leader().is_some());
    w.run_for(ms(4_000));
    let term = w.leader().map(|n| w.term(n));
    w.run_for(ms(10_000));
    assert_eq!(w.leader().map(|n| w.term(n)), term, "seed {}: a healthy leader is replaced\n{}", w.seed, w.tail());
    assert!(term.is_some());
}

#[test]
fn random_runs_keep_the_invariants() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("QUORUM_SEED") {
        run(seed);
        return;
    }
    let (runs, first) = (number("QUORUM_RUNS").unwrap_or(60), 1);
    let mut leads = 0;
    for seed in first..first + runs {
        leads += run(seed).checkers.leads;
    }
    println!("{runs} runs from seed {first}: {leads} leaderships");
    assert!(leads > 2 * runs, "the runs show something");
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    assert_eq!(run(7).trace, run(7).trace);
}
