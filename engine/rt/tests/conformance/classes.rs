//! Scheduling: classes share the core, long computations yield, stalls are seen.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rt::Class;
use rt::sim::World;
use vellum_rt as rt;

/// A computation that checks its slice after every step.
async fn compute(stop: Rc<Cell<bool>>) {
    while !stop.get() {
        World::spend(Duration::from_micros(5));
        rt::yield_if_needed().await;
    }
}

pub async fn a_computation_that_yields_does_not_hold_requests_up() {
    let stop = Rc::new(Cell::new(false));
    let busy: Vec<_> =
        [Class::Compaction, Class::Scrub].map(|class| rt::spawn(class, "computes", compute(stop.clone()))).into();
    let mut worst = Duration::ZERO;
    for _ in 0..50 {
        let began = rt::now();
        rt::spawn(Class::Request, "request", async { rt::yield_now().await }).await.unwrap();
        worst = worst.max(began.elapsed());
    }
    stop.set(true);
    for task in busy {
        task.await.unwrap();
    }
    assert!(worst < Duration::from_millis(100), "a request waited {worst:?}");
}

pub async fn a_stall_is_recorded_with_its_task() {
    rt::spawn(Class::Scrub, "hogs the core", async { World::spend(Duration::from_millis(40)) }).await.unwrap();
    rt::yield_now().await;
    let stats = rt::stats();
    let stall = stats.recent_stalls.iter().find(|stall| stall.task == "hogs the core").expect("the stall is recorded");
    assert!(stall.took >= Duration::from_millis(39)); // a simulated clock may run slow
    assert_eq!(stall.class, Some(Class::Scrub));
    assert!(stats.stalls >= 1);
}

pub async fn time_is_accounted_to_classes() {
    let before = rt::stats().classes[Class::Commit as usize];
    rt::spawn(Class::Commit, "works", async { World::spend(Duration::from_millis(2)) }).await.unwrap();
    rt::yield_now().await;
    let after = rt::stats().classes[Class::Commit as usize];
    assert!(after.polls > before.polls);
    assert!(after.time - before.time >= Duration::from_micros(1990)); // a simulated clock may run slow
}
