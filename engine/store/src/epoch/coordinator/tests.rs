use super::*;
use vellum_base::{ChunkIndex, LogId};

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

fn new(reactors: usize) -> Coordinator {
    let start = Start { term: Term(1), fsid: Fsid([1; 16]), first_epoch: Epoch(100), first_number: 1, base_hash: 7 };
    Coordinator::new(reactors, true, false, Ring::new(vec![ChunkIndex(1)], 256), &start)
}

/// Takes an epoch with one part to the end of its flush.
fn flush_one(c: &mut Coordinator, epoch: u64, number: u64) -> Option<Command> {
    assert_eq!(c.next(at(0)), Some(Command::Close(Epoch(epoch))));
    c.part_ready(Epoch(epoch), part(), Vec::new());
    assert!(matches!(c.next(at(0)), Some(Command::Seal { number: n, .. }) if n == number));
    c.part_written(Epoch(epoch));
    c.seal_written(number);
    assert_eq!(c.next(at(0)), Some(Command::Flush));
    c.flushed()
}

#[test]
fn behind_a_gate_nothing_is_acknowledged_that_was_not_confirmed_after_its_flush() {
    let mut c = Coordinator { gated: true, ..new(1) };
    c.want(Epoch(100));
    assert_eq!(flush_one(&mut c, 100, 1), Some(Command::Confirm));
    assert_eq!((c.next(at(0)), c.durable_seal().0), (None, 0));
    // The next one is written meanwhile; the open question was asked before its flush and does not speak for it.
    c.want(Epoch(101));
    assert_eq!(flush_one(&mut c, 101, 2), None);
    assert_eq!(c.next(at(0)), None);
    assert_eq!(c.confirmed(), Some(Command::Durable(Epoch(100))));
    assert_eq!(c.durable_seal().0, 1);
    assert_eq!(c.next(at(0)), Some(Command::Confirm));
    assert!(!c.is_idle());
    assert_eq!(c.confirmed(), Some(Command::Durable(Epoch(101))));
    assert!(c.is_idle() && c.confirmed().is_none());
}

#[test]
fn without_the_gate_nothing_waits_for_it() {
    let mut c = Coordinator { gated: true, ..new(1) };
    c.want(Epoch(100));
    assert_eq!(flush_one(&mut c, 100, 1), Some(Command::Confirm));
    assert_eq!(c.ungate(), Some(Command::Durable(Epoch(100))));
    assert_eq!((c.confirmed(), c.ungate()), (None, None));
    c.want(Epoch(101));
    assert_eq!(flush_one(&mut c, 101, 2), Some(Command::Durable(Epoch(101))));
}

#[test]
fn an_epoch_without_changes_does_not_pass_one_that_is_not_confirmed() {
    let mut c = Coordinator { gated: true, ..new(1) };
    c.want(Epoch(100));
    assert_eq!(flush_one(&mut c, 100, 1), Some(Command::Confirm));
    c.want(Epoch(101));
    assert_eq!(c.next(at(0)), Some(Command::Close(Epoch(101))));
    c.part_ready(Epoch(101), None, Vec::new());
    assert_eq!(c.next(at(0)), None);
    assert_eq!(c.confirmed(), Some(Command::Durable(Epoch(100))));
    assert_eq!(c.next(at(0)), Some(Command::Confirm));
    assert_eq!(c.confirmed(), Some(Command::Durable(Epoch(101))));
}

fn part() -> Option<PartRef> {
    Some(PartRef { log: LogId(1), place: 0, addr: BlockAddr(5), len_blocks: 1, crc: 2 })
}

#[test]
fn an_epoch_goes_through_its_life_and_waiters_gather_in_the_next() {
    let mut c = new(2);
    c.dirty(Epoch(100), at(0));
    assert_eq!(c.next(at(1)), None);
    c.want(Epoch(100));
    assert_eq!(c.next(at(1)), Some(Command::Close(Epoch(100))));
    c.dirty(Epoch(101), at(1));
    c.want(Epoch(101));
    c.part_ready(Epoch(100), part(), Vec::new());
    assert_eq!(c.next(at(1)), None, "the second reactor's part is not placed, and nobody closes the next");
    c.part_ready(Epoch(100), None, Vec::new());
    assert!(matches!(c.next(at(1)), Some(Command::Seal { number: 1, .. })));
    c.seal_written(1);
    assert_eq!(c.next(at(1)), None, "the part is not written");
    c.part_written(Epoch(100));
    assert_eq!(c.next(at(1)), Some(Command::Flush));
    assert_eq!(c.next(at(1)), None);
    assert_eq!(c.flushed(), Some(Command::Durable(Epoch(100))));
    assert_eq!(c.next(at(1)), Some(Command::Close(Epoch(101))));
}

fn sealed(command: Option<Command>) -> Seal {
    let Some(Command::Seal { block, addr, .. }) = command else { panic!("{command:?} is no seal") };
    Seal::decode(&block[..], addr, &Fsid([1; 16])).unwrap().0
}

#[test]
fn a_seal_lists_a_little_new_data_and_shares_its_flush() {
    let mut c = new(2);
    c.want(Epoch(100));
    assert_eq!(c.next(at(0)), Some(Command::Close(Epoch(100))));
    c.part_ready(Epoch(100), part(), vec![BlockRange::new(50, 2), BlockRange::new(40, 1)]);
    c.part_ready(Epoch(100), part(), vec![BlockRange::new(41, 3)]);
    let seal = sealed(c.next(at(0)));
    assert_eq!(seal.new_data, vec![BlockRange::new(40, 4), BlockRange::new(50, 2)]);
}

#[test]
fn much_new_data_is_flushed_before_its_seal_is_written() {
    let scattered = (0..=MAX_NEW_DATA as u64).map(|i| BlockRange::new(2 * i, 1)).collect();
    for new_data in [vec![BlockRange::new(1, MAX_NEW_BLOCKS as u32 + 1)], scattered] {
        much_is_flushed(new_data);
    }
}

fn much_is_flushed(new_data: Vec<BlockRange>) {
    let mut c = new(1);
    c.want(Epoch(100));
    assert_eq!(c.next(at(0)), Some(Command::Close(Epoch(100))));
    c.part_ready(Epoch(100), part(), new_data);
    assert_eq!(c.next(at(0)), Some(Command::FlushData(Epoch(100))));
    assert_eq!(c.next(at(0)), None);
    c.data_flushed(Epoch(100));
    assert_eq!(sealed(c.next(at(0))).new_data, Vec::new());
}

#[test]
fn epochs_without_changes_are_durable_without_io() {
    let mut c = new(1);
    c.want(Epoch(100));
    assert_eq!(c.next(at(0)), Some(Command::Close(Epoch(100))));
    c.part_ready(Epoch(100), None, Vec::new());
    assert_eq!(c.next(at(0)), Some(Command::Durable(Epoch(100))));
    assert_eq!(c.next(at(1000)), None);
    assert_eq!(c.deadline(), None);
}

#[test]
fn the_timer_closes_up_to_a_bound_and_the_flush_covers_only_what_was_written_before_it() {
    let mut c = new(1);
    for e in 100..104 {
        c.dirty(Epoch(e), at(0));
        assert_eq!(c.deadline(), Some(at(5)));
        assert_eq!(c.next(at(5)), Some(Command::Close(Epoch(e))));
        c.part_ready(Epoch(e), part(), Vec::new());
        let number = e - 99;
        assert!(matches!(c.next(at(5)), Some(Command::Seal { number: n, .. }) if n == number));
    }
    c.dirty(Epoch(104), at(5));
    assert_eq!(c.next(at(50)), None, "four are in flight");
    assert_eq!(c.deadline(), None);
    for e in [101, 100] {
        c.part_written(Epoch(e));
        c.seal_written(e - 99);
    }
    assert_eq!(c.next(at(50)), Some(Command::Flush));
    c.part_written(Epoch(102));
    c.seal_written(3);
    assert_eq!(c.next(at(6)), None);
    assert_eq!(c.flushed(), Some(Command::Durable(Epoch(101))));
    assert_eq!(c.next(at(6)), Some(Command::Flush));
    assert_eq!(c.durable_seal().0, 2);
}

#[test]
fn after_quiet_a_seal_confirms_and_then_there_is_peace() {
    let mut c = new(1);
    c.dirty(Epoch(100), at(0));
    c.next(at(5));
    c.part_ready(Epoch(100), part(), Vec::new());
    c.next(at(5));
    c.part_written(Epoch(100));
    c.seal_written(1);
    assert_eq!(c.next(at(5)), Some(Command::Flush));
    c.flushed();
    let later = at(5) + CONFIRM_AFTER;
    assert_eq!(c.deadline(), Some(later));
    assert_eq!(c.next(later), Some(Command::Close(Epoch(101))));
    c.part_ready(Epoch(101), None, Vec::new());
    let seal = sealed(c.next(later));
    assert_eq!((seal.durable_number, seal.parts.len()), (1, 0));
    c.seal_written(2);
    assert_eq!(c.next(later), Some(Command::Flush));
    c.flushed();
    assert_eq!(c.deadline(), None);
}

#[test]
fn in_a_run_that_ends_no_epoch_comes_after_the_last_changes_however_long_it_takes() {
    let mut c = new(1);
    c.want(Epoch(100));
    assert_eq!(flush_one(&mut c, 100, 1), Some(Command::Durable(Epoch(100))));
    c.ends();
    assert_eq!((c.next(at(1000)), c.deadline()), (None, None));
}

#[test]
fn a_full_ring_of_seals_asks_for_flushes_and_stops_until_the_floor_moves() {
    let mut c = new(1);
    let mut asked = Vec::new();
    let mut e = 100;
    loop {
        c.dirty(Epoch(e), at(0));
        match c.next(at(10)) {
            Some(Command::Close(_)) => {}
            Some(Command::FlushThrough(epoch)) => {
                asked.push(epoch);
                continue;
            }
            _ => break,
        }
        c.part_ready(Epoch(e), part(), Vec::new());
        c.next(at(10));
        c.part_written(Epoch(e));
        c.seal_written(e - 99);
        assert_eq!(c.next(at(10)), Some(Command::Flush));
        c.flushed();
        e += 1;
    }
    assert!(e - 100 < 256 && e - 100 > 200, "{e}");
    assert!(!asked.is_empty() || c.next_flush_through().is_some());
    let (number, _) = c.new_floor(Epoch(150), 1).unwrap();
    assert_eq!(number, 51);
    c.set_floor(number);
    assert_eq!(c.next(at(10)), Some(Command::Close(Epoch(e))));
}
