//! Small histories by hand.

use vellum_base::Rid;

use super::*;

const A: Rid = Rid(1);
const B: Rid = Rid(2);

fn history(ops: &[(Rid, Op, Answer, u64, u64)]) -> Ops {
    let mut all = Ops::default();
    for (rid, op, answer, called, answered) in ops {
        all.called(*rid, op.clone(), *called);
        if *answered != u64::MAX {
            all.answered(*rid, answer.clone(), *answered);
        }
    }
    all
}

fn is_fine(ops: &Ops) -> bool {
    matches!(ops.check(), Verdict::Linearizable { .. })
}

#[test]
fn overlapping_operations_may_take_effect_in_any_order_and_others_not() {
    let made = (A, Op::Create(1), Answer::File(7), 0, 10);
    let none = (B, Op::Lookup(1), Answer::NotThere, 5, 8);
    assert!(is_fine(&history(&[made.clone(), none])));
    let too_late = (B, Op::Lookup(1), Answer::NotThere, 11, 12);
    assert!(!is_fine(&history(&[made.clone(), too_late])), "it was made before");
    let there = (B, Op::Lookup(1), Answer::File(7), 11, 12);
    let again = (B, Op::Create(1), Answer::There, 13, 14);
    assert!(is_fine(&history(&[made, there, again])));
}

#[test]
fn a_stale_read_and_a_lost_append_are_found() {
    let made = (A, Op::Create(1), Answer::File(7), 0, 1);
    let a = (A, Op::Append(7, vec![1]), Answer::Done, 2, 5);
    let b = (B, Op::Append(7, vec![2]), Answer::Done, 3, 6);
    let read = |content: &[u8]| (A, Op::Read(7), Answer::Content(content.to_vec()), 7, 8);
    for good in [[1, 2], [2, 1]] {
        assert!(is_fine(&history(&[made.clone(), a.clone(), b.clone(), read(&good)])));
    }
    for bad in [&[][..], &[1], &[2], &[1, 1], &[1, 2, 2]] {
        assert!(!is_fine(&history(&[made.clone(), a.clone(), b.clone(), read(bad)])), "{bad:?}");
    }
}

#[test]
fn a_dead_client_may_lose_a_suffix_and_nothing_that_it_synced() {
    let made = (A, Op::Create(1), Answer::File(7), 0, 1);
    let moved = (A, Op::Rename(1, 2), Answer::Done, 2, 3);
    let at_old = (B, Op::Lookup(1), Answer::File(7), 4, 5);
    let nowhere = [(B, Op::Lookup(1), Answer::NotThere, 4, 5), (B, Op::Lookup(2), Answer::NotThere, 6, 7)];
    let mut ops = history(&[made.clone(), moved.clone(), at_old.clone()]);
    assert!(!is_fine(&ops), "it lives");
    ops.died(A);
    assert!(is_fine(&ops), "the rename is lost");
    ops.synced(A, 2);
    assert!(!is_fine(&ops), "it was synced");
    let mut ops = history(&[made, moved, nowhere[0].clone(), nowhere[1].clone()]);
    ops.died(A);
    assert!(is_fine(&ops), "both are lost");
    ops.synced(A, 1);
    assert!(!is_fine(&ops), "half a rename");
}

#[test]
fn content_is_written_back_in_its_own_order() {
    let ops = [
        (A, Op::Create(1), Answer::File(7), 0, 1),
        (A, Op::Append(7, vec![1]), Answer::Done, 2, 3),
        (A, Op::Unlink(2), Answer::NotThere, 4, 5),
        (A, Op::Rename(1, 2), Answer::Done, 6, 7),
        (B, Op::Lookup(2), Answer::File(7), 10, 11),
        (B, Op::Read(7), Answer::Content(vec![]), 12, 13),
    ];
    let mut lost = history(&ops);
    lost.synced(A, 1);
    assert!(!is_fine(&lost), "it lives");
    lost.died(A);
    assert!(is_fine(&lost), "the rename was sent, the content was not");
    lost.synced(A, 2);
    assert!(!is_fine(&lost), "it was synced");
}

/// A rename that changed nothing where it is tried first may have been another one.
#[test]
fn a_rename_is_no_look() {
    let ops = [
        (A, Op::Create(1), Answer::File(7), 0, 1),
        (A, Op::Link(7, 2), Answer::Done, 2, 3),
        (A, Op::Unlink(2), Answer::Done, 4, 9),
        (B, Op::Rename(1, 2), Answer::Done, 4, 9),
        (A, Op::Lookup(1), Answer::NotThere, 10, 11),
        (A, Op::Lookup(2), Answer::File(7), 12, 13),
    ];
    assert!(is_fine(&history(&ops)));
}

/// What is too much at once is decided part by part: many appends to several files, and nothing wrong; or in one of them.
#[test]
fn parts_are_decided_when_the_whole_is_not() {
    let many = |last: &[u8]| {
        let mut ops = Ops::default();
        for file in 0..6u64 {
            ops.called(A, Op::Create(file as u8), 2 * file);
            ops.answered(A, Answer::File(file), 2 * file + 1);
            for n in 0..4 {
                let rid = Rid(10 + 10 * file + n);
                ops.called(rid, Op::Append(file, vec![n as u8]), 20);
                ops.answered(rid, Answer::Done, 90);
            }
        }
        for (n, file) in (0..6u64).enumerate() {
            let (at, content) = (100 + 2 * n as u64, if file == 5 { last } else { &[3, 2, 1, 0] });
            ops.called(B, Op::Read(file), at);
            ops.answered(B, Answer::Content(content.to_vec()), at + 1);
        }
        ops.check_within(20_000)
    };
    assert!(matches!(many(&[0, 2, 1, 3]), Verdict::Linearizable { .. }));
    assert!(matches!(many(&[0, 2, 1]), Verdict::Broken { .. }));
}

/// Sixteen appends at once and a read that saw none of them: every subset of them is a state.
#[test]
fn a_search_that_takes_too_long_decides_nothing() {
    let mut ops = history(&[(A, Op::Create(1), Answer::File(7), 0, 1)]);
    for n in 0..16 {
        let rid = Rid(10 + n);
        ops.called(rid, Op::Append(7, vec![n as u8]), 2);
        ops.answered(rid, Answer::Done, 9);
    }
    ops.called(B, Op::Read(7), 10);
    ops.answered(B, Answer::Content(vec![]), 11);
    assert_eq!(ops.check_within(100_000), Verdict::GaveUp);
}

#[test]
fn what_was_under_way_may_have_happened() {
    let made = (A, Op::Create(1), Answer::File(7), 0, 1);
    let open = (A, Op::Unlink(1), Answer::Unknown, 2, u64::MAX);
    for found in [Answer::File(7), Answer::NotThere] {
        let mut ops = history(&[made.clone(), open.clone(), (B, Op::Lookup(1), found, 10, 11)]);
        ops.synced(A, 1);
        ops.died(A);
        assert!(is_fine(&ops));
    }
}
