//! How other systems' lock services failed, told against the lock table: each failure as a story of messages.

use std::time::Instant;

use vellum_base::{Rid, Term};
use vellum_proto::{LockOutput, LockTable};
use vellum_wire::LockMode::{Null, Read, Write};
use vellum_wire::{LockGrant, LockMode, LockName, LockWant};

fn want(group: u64, mode: LockMode) -> LockWant {
    LockWant { name: LockName::Group(group), mode }
}

fn table() -> LockTable {
    LockTable::new(Term(1), 0, 1, false)
}

fn outputs(table: &mut LockTable) -> Vec<LockOutput> {
    std::iter::from_fn(|| table.poll_output()).collect()
}

fn granted(outputs: &[LockOutput]) -> Vec<(u64, u64)> {
    let grants = outputs.iter().filter_map(|output| match output {
        LockOutput::Granted { rid, request, .. } => Some((rid.0, *request)),
        LockOutput::Invalidate { .. } => None,
    });
    grants.collect()
}

/// Scenario 3: the holder's answer and the next waiter's request cross. Elsewhere the second invalidation was lost,
/// because the worker had not yet noted that the first was over. Here an answer serves the whole line, and asks anew.
#[test]
fn scenario_3_an_answer_is_followed_by_the_next_question() {
    let mut t = table();
    t.request(Rid(1), 1, want(1, Write)).unwrap();
    outputs(&mut t);
    for round in 0..100 {
        let (holder, next) = (Rid(1 + round % 3), Rid(1 + (round + 1) % 3));
        t.request(next, 10 + round, want(1, Write)).unwrap();
        let asked = LockOutput::Invalidate { rid: holder, name: LockName::Group(1), mode: Null };
        assert_eq!(outputs(&mut t), [asked], "round {round}");
        t.invalidated(holder, LockName::Group(1));
        assert_eq!(granted(&outputs(&mut t)), [(next.0, 10 + round)], "round {round}");
        // A duplicate of the answer weakens nobody's later grant.
        t.invalidated(holder, LockName::Group(1));
        assert_eq!(t.mode(next, LockName::Group(1)), Write);
    }
}

/// Scenario 4: a lock object that nobody holds is dropped while a request is just finding it. Here request and dropping are
/// inputs of one table, one after the other: whichever comes first, the request is served, and nothing stays behind.
#[test]
fn scenario_4_a_request_finds_a_lock_that_is_just_forgotten() {
    for request_first in [true, false] {
        let mut t = table();
        t.request(Rid(1), 1, want(1, Write)).unwrap();
        outputs(&mut t);
        if request_first {
            t.request(Rid(2), 2, want(1, Write)).unwrap();
            t.unlock(Rid(1), &[want(1, Null)]);
            t.invalidated(Rid(1), LockName::Group(1));
        } else {
            t.unlock(Rid(1), &[want(1, Null)]);
            assert_eq!(t.stats().locks, 0, "it is forgotten");
            t.request(Rid(2), 2, want(1, Write)).unwrap();
        }
        assert_eq!(granted(&outputs(&mut t)), [(2, 2)]);
        t.unlock(Rid(2), &[want(1, Null)]);
        assert_eq!((t.stats().locks, t.stats().clients), (0, 0));
    }
}

/// Scenario 9: a full restart, and nobody of before comes back: write sequences must not begin again at zero, or new items
/// would lose against old ones. [L4, R3]
#[test]
fn scenario_9_l4_write_sequences_grow_over_a_full_restart() {
    let mut newest = 0;
    for term in 1..50 {
        for index in 0..3 {
            let mut t = LockTable::new(Term(term), index, 3, false);
            for n in 0..20 {
                t.request(Rid(1), n, want(n, Write)).unwrap();
            }
            let seqs = outputs(&mut t).into_iter().map(|output| match output {
                LockOutput::Granted { grant: LockGrant { write_seq, .. }, .. } => write_seq,
                other => panic!("{other:?}"),
            });
            let seqs: Vec<u64> = seqs.collect();
            assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "L4 within a term");
            assert!(seqs[0] > newest, "L4 across terms");
            if index == 2 {
                newest = seqs[seqs.len() - 1];
            }
        }
    }
}

/// Scenario 11: a hundred thousand locks are given back at once, each with somebody waiting, while others want locks that
/// have nothing to do with it. Elsewhere a scan of the queue for each of them starved everybody for minutes. Here they come in
/// messages of bounded size, each lock costs the same, and between two messages the others are served. [L8]
#[test]
fn scenario_11_l8_giving_back_everything_at_once_starves_nobody() {
    const LOCKS: u64 = 100_000;
    let mut t = table();
    for group in 0..LOCKS {
        t.request(Rid(1), group, want(group, Write)).unwrap();
        t.request(Rid(2), group, want(group, Read)).unwrap();
    }
    outputs(&mut t);
    let all: Vec<_> = (0..LOCKS).map(|group| want(group, Null)).collect();
    let mut longest = std::time::Duration::ZERO;
    for (n, page) in all.chunks(256).enumerate() {
        let began = Instant::now();
        t.unlock(Rid(1), page);
        assert_eq!(granted(&outputs(&mut t)).len(), page.len());
        // A stranger asks in between, and is served at once.
        let stranger = LOCKS + n as u64;
        t.request(Rid(3), stranger, want(stranger, Write)).unwrap();
        assert_eq!(granted(&outputs(&mut t)), [(3, stranger)]);
        longest = longest.max(began.elapsed());
    }
    assert!(longest.as_secs() < 2, "{longest:?} for one message");
    // A thousand readers in the way of one writer: each answer is cheap.
    for n in 10..1010 {
        t.request(Rid(n), 1, want(1 << 40, Read)).unwrap();
    }
    t.request(Rid(9), 1, want(1 << 40, Write)).unwrap();
    let began = Instant::now();
    for n in 10..1010 {
        t.invalidated(Rid(n), LockName::Group(1 << 40));
    }
    assert_eq!(t.mode(Rid(9), LockName::Group(1 << 40)), Write);
    assert!(began.elapsed().as_secs() < 2);
}

/// READ becomes WRITE without being given up in between: nobody else gets in, the readers are asked to go, and what the one
/// who upgrades has cached stays true. [L1]
#[test]
fn l1_an_upgrade_keeps_what_it_has() {
    let mut t = table();
    for n in 1..=3 {
        t.request(Rid(n), n, want(1, Read)).unwrap();
    }
    outputs(&mut t);
    t.request(Rid(2), 20, want(1, Write)).unwrap();
    t.request(Rid(4), 40, want(1, Write)).unwrap();
    let asked = outputs(&mut t);
    assert_eq!(asked.len(), 2, "the two others, and not the one who upgrades: {asked:?}");
    assert_eq!(t.mode(Rid(2), LockName::Group(1)), Read);
    t.invalidated(Rid(1), LockName::Group(1));
    assert_eq!(granted(&outputs(&mut t)), []);
    t.invalidated(Rid(3), LockName::Group(1));
    let out = outputs(&mut t);
    assert_eq!(granted(&out), [(2, 20)]);
    assert!(out.iter().any(|output| matches!(output, LockOutput::Invalidate { rid: Rid(2), mode: Null, .. })));
    t.invalidated(Rid(2), LockName::Group(1));
    assert_eq!(granted(&outputs(&mut t)), [(4, 40)]);
}
