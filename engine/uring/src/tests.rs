//! Lanes on a real ring: nothing is lost, nothing reaches another, and one system call sleeps and submits.
#![allow(unsafe_code)] // entries that point to memory of the test

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::types::Fd;
use crate::{Answer, Kind, Lane, Ring, current, install, opcode, squeue};

const LONG: Duration = Duration::from_secs(10);

fn ring(entries: u32, kind: Kind) -> Option<Rc<Ring>> {
    Ring::new(entries, kind).inspect_err(|err| eprintln!("SKIPPED: no io_uring: {err}")).ok().map(Rc::new)
}

fn push(lane: &Lane, entry: squeue::Entry, key: u64) {
    // SAFETY: the tests' entries are polls and nops, which point to no memory.
    unsafe { lane.push(entry, key) };
}

fn nop(lane: &Lane, key: u64) {
    push(lane, opcode::Nop::new().build(), key);
}

/// What came for the lane until now.
fn taken(lane: &Lane) -> Vec<Answer> {
    let mut answers = Vec::new();
    lane.take(&mut answers);
    answers
}

#[test]
fn each_lane_gets_its_own_answers_and_a_full_queue_loses_nothing() {
    let Some(ring) = ring(4, Kind::Waited) else { return };
    let lanes: Vec<Lane> = (0..3).map(|_| Lane::new(&ring, 0).unwrap()).collect();
    // Thirty times what the submission queue holds, and more than the completion queue does.
    for key in 0..120 {
        nop(&lanes[key as usize % 3], key);
    }
    let mut seen = [const { Vec::new() }; 3];
    while lanes.iter().any(|lane| lane.in_flight() > 0) {
        ring.wait(Some(LONG)).unwrap();
        ring.reap();
        for (lane, seen) in lanes.iter().zip(&mut seen) {
            seen.extend(taken(lane).iter().map(|answer| answer.key));
        }
    }
    for (index, seen) in seen.iter_mut().enumerate() {
        seen.sort_unstable();
        assert_eq!(*seen, (0..120).filter(|key| key % 3 == index as u64).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_held_back_goes_with_the_wait() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    let lane = Lane::new(&ring, 0).unwrap();
    ring.hold_back(true);
    nop(&lane, 7);
    lane.look().unwrap();
    assert!(ring.has_unsubmitted() && taken(&lane).is_empty());
    ring.wait(Some(LONG)).unwrap();
    ring.reap();
    assert_eq!(taken(&lane), [Answer { key: 7, result: 0, more: false }]);
    assert!(!ring.has_unsubmitted() && lane.in_flight() == 0);
}

#[test]
fn a_lane_that_looks_does_not_let_the_owner_sleep_over_anothers_answer() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    let (one, two) = (Lane::new(&ring, 0).unwrap(), Lane::new(&ring, 0).unwrap());
    nop(&one, 1);
    while taken(&one).is_empty() {
        two.look().unwrap(); // sorts what is the first lane's
        if one.in_flight() == 0 {
            let start = Instant::now();
            ring.wait(Some(LONG)).unwrap();
            assert!(start.elapsed() < LONG, "there is an answer that its owner has not seen");
        }
    }
    // Seen by the owner, and taken by nobody: that is no reason to stay awake.
    nop(&two, 2);
    two.look().unwrap();
    ring.reap();
    let start = Instant::now();
    ring.wait(Some(Duration::from_millis(20))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn an_entry_can_be_cancelled_and_one_with_many_answers_counts_until_its_last() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    let lane = Lane::new(&ring, 0).unwrap();
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    push(&lane, opcode::PollAdd::new(Fd(bell.as_raw_fd()), libc::POLLIN as u32).multi(true).build(), 3);
    for _ in 0..3 {
        rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        ring.wait(Some(LONG)).unwrap();
        ring.reap();
        let [Answer { key: 3, result, more: true }] = taken(&lane)[..] else { panic!("one ring, one answer") };
        assert_eq!((result & i32::from(libc::POLLIN), lane.in_flight()), (i32::from(libc::POLLIN), 1));
    }
    lane.cancel(3);
    assert!(lane.drain(LONG), "a cancelled poll ends");
    assert_eq!(taken(&lane), [Answer { key: 3, result: -libc::ECANCELED, more: false }]);
}

#[test]
fn an_index_is_used_again_only_when_nothing_of_its_lane_is_left() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let gone = Lane::new(&ring, 0).unwrap();
    push(&gone, opcode::PollAdd::new(Fd(bell.as_raw_fd()), libc::POLLIN as u32).build(), 5);
    ring.enter().unwrap();
    assert!(!gone.drain(Duration::from_millis(5)), "nobody rings");
    drop(gone);
    let next = Lane::new(&ring, 0).unwrap();
    rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
    ring.wait(Some(LONG)).unwrap();
    ring.reap();
    assert_eq!(taken(&next), [], "the answer was for another");
    let format = |lane: &Lane| format!("{lane:?}");
    assert_eq!((format(&next), format(&Lane::new(&ring, 0).unwrap())), ("Lane(1)".into(), "Lane(0)".into()));
}

#[test]
fn a_registered_file_is_closed_with_its_lane() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    let (read, write) = rustix::pipe::pipe().unwrap();
    let lane = Lane::new(&ring, 0).unwrap();
    if lane.register(write.as_raw_fd()).is_none() {
        eprintln!("SKIPPED: this kernel's io_uring has no sparse file tables");
        return;
    }
    drop(write);
    rustix::io::ioctl_fionbio(&read, true).unwrap();
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Err(rustix::io::Errno::AGAIN), "the ring keeps it open");
    drop(lane);
    let start = Instant::now();
    while rustix::io::read(&read, &mut [0; 1]) == Err(rustix::io::Errno::AGAIN) {
        assert!(start.elapsed() < LONG, "the ring still has it");
        std::thread::yield_now();
    }
}

#[test]
fn a_watched_ring_announces_its_answers() {
    let Some(ring) = ring(8, Kind::Watched) else { return };
    let lane = Lane::new(&ring, 0).unwrap();
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    push(&lane, opcode::PollAdd::new(Fd(bell.as_raw_fd()), libc::POLLIN as u32).build(), 9);
    lane.look().unwrap();
    let readable = |timeout_ms| {
        let mut entry = libc::pollfd { fd: ring.wake_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd on the stack.
        unsafe { libc::poll(&mut entry, 1, timeout_ms) == 1 }
    };
    assert!(!readable(0));
    rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
    assert!(readable(10_000));
    lane.look().unwrap();
    assert_eq!(taken(&lane).len(), 1);
}

#[test]
fn the_current_ring_is_the_threads_own_while_it_is_installed() {
    let Some(ring) = ring(8, Kind::Waited) else { return };
    assert!(current().is_none());
    let installed = install(&ring);
    assert!(current().is_some_and(|current| Rc::ptr_eq(&current, &ring)));
    assert!(std::thread::spawn(|| current().is_none()).join().unwrap());
    drop(installed);
    assert!(current().is_none());
}
