//! Failures that such systems met, one story each; numbers are those of the specification's scenarios.

use vellum_base::Slot;

use crate::world::{World, ms};

#[test]
fn one_slot_leads_at_once() {
    let mut w = World::all_started(1, 1);
    let took = w.run_until(ms(100), |w| w.leader() == Some(0));
    assert!(took < ms(50), "{took:?}");
    let _ = Slot(0);
}

#[test]
fn three_slots_elect_one_leader_and_another_when_it_dies() {
    let mut w = World::all_started(2, 3);
    w.run_until(ms(2_000), |w| w.leader().is_some());
    let first = w.leader().unwrap();
    w.run_for(ms(5_000));
    assert_eq!(w.leader(), Some(first));
    w.kill(first);
    let took = w.run_until(ms(3_500), |w| w.leader().is_some());
    assert_ne!(w.leader(), Some(first));
    println!("failover after {took:?}");
}
