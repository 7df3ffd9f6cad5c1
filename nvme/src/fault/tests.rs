//! The fault model is what crash tests stand on, so its own semantics are tested first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use vellum_base::prng::Prng;
use vellum_base::{DmaBuf, DmaSlice};

use super::*;
use crate::memory::MemoryDevice;
use crate::testing::block_on;
use crate::{Device, DeviceError, Image, Queue};

const SIZE: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn device(config: FaultConfig) -> (FaultDevice, Rc<dyn Queue>) {
    let device = FaultDevice::new(SIZE, 7, config);
    let queue = device.open_queue(8).unwrap();
    (device, queue)
}

fn recording() -> FaultConfig {
    FaultConfig { record_journal: true, ..FaultConfig::default() }
}

fn block(byte: u8) -> DmaSlice {
    let mut buf = DmaBuf::new(BLOCK);
    buf.fill(byte);
    buf.freeze()
}

fn put(q: &Rc<dyn Queue>, at_block: u64, byte: u8, fua: bool) -> Result<(), DeviceError> {
    block_on(q, q.write(at_block * BLOCK as u64, block(byte), fua))
}

fn get(q: &Rc<dyn Queue>, at_block: u64) -> Result<DmaBuf, DeviceError> {
    block_on(q, q.read(at_block * BLOCK as u64, DmaBuf::new(BLOCK)))
}

fn of(image: &Image, at_block: u64) -> Vec<u8> {
    let mut out = vec![0; BLOCK];
    image.read(at_block * BLOCK as u64, &mut out);
    out
}

fn all(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().all(|b| *b == byte)
}

#[test]
fn flushed_data_is_never_lost_and_unflushed_data_may_be_kept_dropped_or_torn() {
    let (device, q) = device(FaultConfig::default());
    put(&q, 0, 1, false).unwrap();
    put(&q, 1, 1, true).unwrap();
    block_on(&q, q.flush()).unwrap();
    put(&q, 2, 2, false).unwrap();
    put(&q, 3, 3, false).unwrap();
    put(&q, 4, 4, true).unwrap();
    let (mut kept, mut dropped, mut torn, mut out_of_order) = (0, 0, 0, 0);
    for seed in 0..200 {
        let image = device.crash(seed);
        assert!(all(&of(&image, 0), 1) && all(&of(&image, 1), 1), "flushed");
        assert!(all(&of(&image, 4), 4), "FUA, though nothing before it was flushed");
        let (two, three) = (of(&image, 2), of(&image, 3));
        assert!(two.chunks(512).all(|sector| all(sector, 0) || all(sector, 2)), "a sector is never torn");
        kept += usize::from(all(&two, 2));
        dropped += usize::from(all(&two, 0));
        torn += usize::from(!all(&two, 0) && !all(&two, 2));
        out_of_order += usize::from(all(&two, 0) && all(&three, 3));
        assert_eq!(image, device.crash(seed), "a seed gives one image");
    }
    assert!(kept > 10 && dropped > 10 && torn > 10 && out_of_order > 5, "{kept} {dropped} {torn} {out_of_order}");
    let fresh = FaultDevice::from_image(device.crash(3), 1, FaultConfig::default());
    assert!(all(&of(&fresh.visible(), 0), 1));
}

#[test]
fn a_flush_does_not_cover_a_write_that_was_in_flight_when_it_began() {
    let (device, q) = device(FaultConfig { delay: Delay::Polls { min: 0, max: 0 }, ..FaultConfig::default() });
    device.inject(Rule::once(OpKind::Flush, 0..SIZE, Fault::Slow(5)));
    let write = q.write(0, block(1), false);
    let flush = q.flush();
    block_on(&q, write).unwrap();
    block_on(&q, flush).unwrap();
    assert!((0..50).any(|seed| all(&of(&device.crash(seed), 0), 0)), "it may be lost");
    block_on(&q, q.flush()).unwrap();
    assert!((0..50).all(|seed| all(&of(&device.crash(seed), 0), 1)));
}

#[test]
fn an_older_write_never_covers_a_newer_durable_one() {
    let (device, q) = device(FaultConfig::default());
    put(&q, 0, 1, false).unwrap();
    put(&q, 0, 2, true).unwrap();
    assert!((0..100).all(|seed| all(&of(&device.crash(seed), 0), 2)));
}

/// Every sector of every image at every cut is the last flushed version of its block, or a later one that had begun.
#[test]
fn the_journal_gives_every_crash_at_every_cut() {
    let (device, q) = device(recording());
    let mut prng = Prng::new(99);
    const BLOCKS: u64 = 6;
    // By cut: (last flushed version, last begun version) of each block; versions are the bytes of the data.
    let mut promised: BTreeMap<usize, [(u8, u8); BLOCKS as usize]> = BTreeMap::new();
    let mut state = [(0u8, 0u8); BLOCKS as usize];
    promised.insert(0, state);
    for _ in 0..150 {
        let at = prng.below(BLOCKS) as usize;
        if prng.one_in(6) {
            block_on(&q, q.flush()).unwrap();
            state.iter_mut().for_each(|(flushed, begun)| *flushed = *begun);
        } else {
            let fua = prng.one_in(5);
            // What has begun may be on the medium from the first event on; what is promised is so from the last.
            state[at].1 += 1;
            promised.insert(device.cut() + 1, state);
            put(&q, at as u64, state[at].1, fua).unwrap();
            if fua {
                state[at].0 = state[at].1;
            }
        }
        promised.insert(device.cut(), state);
    }
    let journal = device.journal();
    let mut replay = journal.replay();
    let mut dropped = 0;
    loop {
        let (_, bounds) = promised.range(..=replay.cut()).next_back().unwrap();
        for seed in 0..8 {
            let image = replay.crash(seed);
            for (at, (flushed, begun)) in bounds.iter().enumerate() {
                for sector in of(&image, at as u64).chunks(512) {
                    assert!(all(sector, sector[0]), "a sector is whole");
                    assert!((*flushed..=*begun).contains(&sector[0]), "cut {} block {at}", replay.cut());
                    dropped += usize::from(sector[0] < *begun);
                }
            }
        }
        if replay.step().is_none() {
            break;
        }
    }
    assert!(dropped > 1000, "{dropped}");
    assert_eq!(replay.visible(), &device.visible());
    assert_eq!(replay.cut(), device.cut());
    assert_eq!(device.image_after(100, 5), journal.crash_image(100, 5));
}

#[test]
fn rules_hit_what_they_name_and_no_more() {
    let (device, q) = device(FaultConfig::default());
    let bytes = |block: u64| block * BLOCK as u64..(block + 1) * BLOCK as u64;
    put(&q, 1, 1, false).unwrap();
    put(&q, 2, 2, false).unwrap();

    device.inject(Rule::once(OpKind::Read, bytes(1), Fault::Error));
    assert!(all(&get(&q, 2).unwrap(), 2));
    assert!(matches!(get(&q, 1), Err(DeviceError::Io { errno: libc::EIO, at_bytes: 4096, .. })));
    assert!(all(&get(&q, 1).unwrap(), 1), "once");

    device.inject(Rule::always(OpKind::Write, bytes(3), Fault::Error).after(1));
    put(&q, 3, 3, false).unwrap();
    assert!(put(&q, 3, 3, false).is_err() && put(&q, 3, 3, false).is_err());
    device.clear_rules();
    put(&q, 3, 3, false).unwrap();

    device.inject(Rule::once(OpKind::Read, bytes(1), Fault::FlipBit));
    let wrong: u32 = get(&q, 1).unwrap().iter().map(|b| (b ^ 1).count_ones()).sum();
    assert_eq!(wrong, 1);

    device.mark_old();
    put(&q, 1, 9, false).unwrap();
    device.inject(Rule::once(OpKind::Read, bytes(1), Fault::ReadOld));
    assert!(all(&get(&q, 1).unwrap(), 1));
    assert!(all(&get(&q, 1).unwrap(), 9));
    device.inject(Rule::once(OpKind::Read, bytes(1), Fault::ReadFrom(2 * BLOCK as u64)));
    assert!(all(&get(&q, 1).unwrap(), 2));

    device.inject(Rule::once(OpKind::Write, bytes(1), Fault::Lose));
    put(&q, 1, 8, true).unwrap();
    assert!(all(&get(&q, 1).unwrap(), 9), "acknowledged and lost");
    device.inject(Rule::once(OpKind::Write, bytes(1), Fault::Misdirect(5 * BLOCK as u64)));
    put(&q, 1, 7, false).unwrap();
    assert!(all(&get(&q, 1).unwrap(), 9) && all(&get(&q, 5).unwrap(), 7));

    device.flip_bit(4096, 0);
    assert_eq!(get(&q, 1).unwrap()[0], 8, "for good");
    assert_eq!(get(&q, 1).unwrap()[0], 8);
    assert_eq!(device.stats().faults, 8);
}

#[test]
fn a_failed_flush_fails_the_device_for_ever_on_every_queue() {
    let (device, a) = device(FaultConfig::default());
    let b = device.open_queue(4).unwrap();
    put(&a, 0, 1, false).unwrap();
    device.inject(Rule::once(OpKind::Flush, 0..0, Fault::Error));
    device.inject(Rule::once(OpKind::Write, 4096..8192, Fault::Slow(1000)));
    let waiting = b.write(4096, block(2), true);
    assert!(block_on(&a, a.flush()).unwrap_err().is_failed());
    assert!(block_on(&b, waiting).unwrap_err().is_failed(), "what was waiting is not acknowledged");
    for q in [&a, &b, &device.open_queue(1).unwrap()] {
        assert!(block_on(q, q.flush()).unwrap_err().is_failed(), "nobody retries into a lie");
        assert!(get(q, 0).unwrap_err().is_failed());
        assert!(put(q, 0, 1, true).unwrap_err().is_failed());
    }
    assert!((0..50).any(|seed| all(&of(&device.crash(seed), 0), 0)));
}

#[test]
fn a_stalled_device_answers_everything_afterwards() {
    let (device, q) = device(FaultConfig::default());
    device.stall_for(1000);
    let mut write = Some(q.write(0, block(1), false));
    for _ in 0..900 {
        assert_eq!((q.process_completions(), q.in_flight()), (1, 1), "it must be polled on, as nothing announces it");
    }
    block_on(&q, write.take().unwrap()).unwrap();
}

#[test]
fn a_dropped_queue_leaves_its_writes_done_or_torn_or_undone() {
    let mut seen = [0; 3];
    for seed in 0..60 {
        let device = FaultDevice::new(SIZE, seed, FaultConfig::default());
        let q = device.open_queue(1).unwrap();
        drop(q.write(0, block(1), false));
        drop(q);
        let content = of(&device.visible(), 0);
        seen[if all(&content, 0) {
            0
        } else if all(&content, 1) {
            1
        } else {
            2
        }] += 1;
    }
    assert!(seen.iter().all(|n| *n > 5), "{seen:?}");
}

#[test]
fn a_seed_gives_one_run() {
    let run = |seed| {
        let config = FaultConfig { flip_read_one_in: 5, lose_write_one_in: 7, ..recording() };
        let device = FaultDevice::new(SIZE, seed, config);
        let q = device.open_queue(4).unwrap();
        for i in 0..64u64 {
            drop(q.write((i % 16) * 4096, block(i as u8), i % 5 == 0));
            drop(q.read((i % 7) * 4096, DmaBuf::new(BLOCK)));
            q.process_completions();
        }
        while q.in_flight() > 0 {
            q.process_completions();
        }
        let events = format!("{:?}", device.journal().events());
        (events, device.crash(1).to_vec(), device.stats())
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

/// Virtual time as a simulation gives it: a clock and a list of calls, on one thread.
#[derive(Default)]
struct Timeline;

type Call = (u64, Box<dyn FnOnce()>);

thread_local! {
    static NOW: RefCell<u64> = const { RefCell::new(0) };
    static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
}

impl DelayHook for Timeline {
    fn now_ns(&self) -> u64 {
        NOW.with_borrow(|now| *now)
    }
    fn call_at(&self, due_ns: u64, f: Box<dyn FnOnce()>) {
        CALLS.with_borrow_mut(|calls| calls.push((due_ns, f)));
    }
}

/// Advances to the next call; false when there is none.
fn advance() -> bool {
    let next = CALLS.with_borrow_mut(|calls| {
        let index = (0..calls.len()).min_by_key(|i| calls[*i].0)?;
        Some(calls.remove(index))
    });
    let Some((due, f)) = next else { return false };
    NOW.with_borrow_mut(|now| *now = due.max(*now));
    f();
    true
}

#[test]
fn with_virtual_time_an_operation_completes_by_itself_when_its_time_has_come() {
    let delay = Delay::Time { hook: Arc::new(Timeline), min_ns: 10_000, max_ns: 90_000 };
    let (device, q) = device(FaultConfig { delay, ..FaultConfig::default() });
    let writes: Vec<_> = (0..4).map(|i| q.write(i * 4096, block(1), false)).collect();
    assert_eq!(q.process_completions(), 0, "no time has passed, and nobody needs to poll");
    while q.in_flight() > 0 {
        assert!(advance());
    }
    assert!((10_000..=90_000).contains(&NOW.with_borrow(|now| *now)));
    for write in writes {
        block_on(&q, write).unwrap();
    }
    device.stall_for(5_000_000);
    let stall_ends = NOW.with_borrow(|now| *now) + 5_000_000;
    let early = q.flush();
    while q.in_flight() > 0 {
        assert!(advance());
    }
    assert!(NOW.with_borrow(|now| *now) >= stall_ends);
    block_on(&q, early).unwrap();
    // A stall that begins while an operation is in flight.
    let late = q.flush();
    device.stall_for(7_000_000);
    let stall_ends = NOW.with_borrow(|now| *now) + 7_000_000;
    while q.in_flight() > 0 {
        assert!(advance());
    }
    assert!(NOW.with_borrow(|now| *now) >= stall_ends);
    block_on(&q, late).unwrap();
}

#[test]
fn a_discard_leaves_nothing_to_rely_on() {
    let (device, q) = device(FaultConfig::default());
    let mut noise = 0;
    for _ in 0..20 {
        put(&q, 0, 1, true).unwrap();
        block_on(&q, q.discard(0, 4096)).unwrap();
        noise += usize::from(!all(&get(&q, 0).unwrap(), 0));
    }
    assert!((1..20).contains(&noise));
    let memory = MemoryDevice::from_image(device.visible());
    assert_eq!(memory.snapshot(), device.visible());
}
