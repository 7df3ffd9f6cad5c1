//! Each fault does what its name says; and no crash image breaks the contract of flush and FUA (a model, by seed).

use std::cell::RefCell;
use std::task::{Context, Waker};
use std::time::Duration;

use vellum_base::prng::Prng;
use vellum_base::{DmaBuf, DmaSlice};

use super::*;
use crate::testing::block_on;
use crate::{IoFuture, IoOp};

const BLOCK: usize = BLOCK_SIZE;

fn device(blocks: u64, rules: Vec<Rule>) -> (FaultDevice, Rc<dyn Queue>) {
    let config = FaultConfig { rules, journal: true, ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(blocks * BLOCK as u64), 1, config);
    let queue = device.open_queue(8).unwrap();
    (device, queue)
}

fn filled(byte: u8) -> DmaSlice {
    DmaBuf::copy_from(&[byte; BLOCK], true).freeze()
}

fn byte_at(image: &Image, at: u64) -> u8 {
    let mut byte = [0];
    image.read(at, &mut byte);
    byte[0]
}

#[test]
fn a_flush_keeps_what_was_complete_and_a_crash_may_lose_the_rest() {
    let (device, q) = device(4, Vec::new());
    block_on(&q, q.write(0, filled(1), false)).unwrap();
    block_on(&q, q.flush()).unwrap();
    block_on(&q, q.write(0, filled(2), false)).unwrap();
    block_on(&q, q.write(4096, filled(3), true)).unwrap();
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let image = device.crash(seed);
        assert_eq!((byte_at(&image, 4096), byte_at(&image, 8191)), (3, 3), "FUA is kept");
        match (byte_at(&image, 0), byte_at(&image, 4095)) {
            (1, 1) => old += 1,
            (2, 2) => new += 1,
            (1 | 2, 1 | 2) => torn += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(old > 10 && new > 10 && torn > 10, "{old} {new} {torn}");
    let now = block_on(&q, q.read(0, DmaBuf::new(BLOCK))).unwrap();
    assert_eq!(now[0], 2, "the living device has lost nothing");
}

#[test]
fn a_flush_does_not_cover_a_write_that_was_in_flight_beside_it() {
    let (device, q) = device(1, Vec::new());
    let (write, flush) = (q.write(0, filled(1), false), q.flush());
    block_on(&q, async { (write.await.unwrap(), flush.await.unwrap()) });
    assert!((0..50).any(|seed| byte_at(&device.crash(seed), 0) == 0));
}

#[test]
fn what_a_dead_process_had_in_flight_lands_at_once_or_never() {
    let (mut landed, mut lost) = (0, 0);
    for _ in 0..20 {
        let (device, q) = device(8, Vec::new());
        for i in 0..8 {
            drop(q.write(i * 4096, filled(1), false));
        }
        drop(q);
        device.process_died();
        let now = device.snapshot();
        let q = device.open_queue(1).unwrap();
        block_on(&q, q.flush()).unwrap();
        assert_eq!(device.crash(3), now, "it is settled");
        landed += (0..8).filter(|i| byte_at(&now, i * 4096) == 1).count();
        lost += (0..8).filter(|i| byte_at(&now, i * 4096) == 0).count();
    }
    assert!(landed > 0 && lost > 0);
}

/// Story: a process is killed with writes on their way; they land while others work, until it is fenced.
#[test]
fn a_killed_process_writes_until_it_is_fenced() {
    let (mut late, mut settled) = (0, 0);
    for seed in 0..40 {
        let device = FaultDevice::new(Image::zeroed(64 * BLOCK as u64), seed, FaultConfig::default());
        let (dead, living) = (device.opened_by(ProcessId(1)), device.opened_by(ProcessId(2)));
        let q = dead.open_queue(8).unwrap();
        (0..8).for_each(|i| drop(q.write(i * 4096, filled(1), false)));
        drop(q);
        dead.process_killed();
        let landed = |image: &Image| (0..8).filter(|i| byte_at(image, i * 4096) == 1).count();
        assert_eq!(landed(&device.snapshot()), 0, "on its way");
        let q = living.open_queue(8).unwrap();
        for _ in 0..20 {
            block_on(&q, q.write(60 * 4096, filled(2), false)).unwrap();
        }
        late += landed(&device.snapshot());
        device.fence(ProcessId(1));
        let fenced = device.snapshot();
        settled += landed(&fenced);
        for _ in 0..20 {
            block_on(&q, q.write(60 * 4096, filled(2), false)).unwrap();
        }
        assert_eq!(device.snapshot(), fenced, "nothing lands after the fence");
    }
    assert!(late > 0 && settled > late, "{late} {settled}");
}

#[test]
fn a_fenced_process_is_refused_while_others_go_on() {
    let (device, _) = device(4, Vec::new());
    let (paused, living) = (device.opened_by(ProcessId(1)), device.opened_by(ProcessId(2)));
    let (p, l) = (paused.open_queue(2).unwrap(), living.open_queue(2).unwrap());
    let on_its_way = p.write(0, filled(1), false);
    device.fence(ProcessId(1));
    assert!(block_on(&p, on_its_way).is_err(), "whether it landed is not known");
    assert!(block_on(&p, p.write(4096, filled(1), false)).is_err());
    assert!(block_on(&p, p.read(4096, DmaBuf::new(BLOCK))).is_err());
    block_on(&l, l.write(8192, filled(2), false)).unwrap();
    let image = device.snapshot();
    assert_eq!([4096, 8192].map(|at| byte_at(&image, at)), [0, 2]);
}

#[test]
fn a_rule_may_be_one_process_s() {
    let error = Rule::always(Fault::Error { errno: libc::EIO }, On::Writes, 0..u64::MAX).by(ProcessId(1));
    let (device, q) = device(2, vec![error]);
    let other = device.opened_by(ProcessId(1)).open_queue(1).unwrap();
    assert!(block_on(&other, other.write(0, filled(1), false)).is_err());
    block_on(&q, q.write(0, filled(1), false)).unwrap();
}

#[test]
fn a_failed_flush_is_for_ever() {
    let rule = Rule::once(Fault::Error { errno: libc::EIO }, On::Flushes, 0..0).after(1);
    let (device, q) = device(1, vec![rule]);
    block_on(&q, q.flush()).unwrap();
    let other = device.open_queue(1).unwrap();
    assert!(block_on(&q, q.flush()).unwrap_err().is_failed());
    assert!(block_on(&q, q.flush()).unwrap_err().is_failed());
    assert!(block_on(&other, other.write(0, filled(1), false)).unwrap_err().is_failed());
    assert!(device.open_queue(1).is_err());
}

#[test]
fn errors_are_once_or_always_and_at_their_place() {
    let error = Fault::Error { errno: libc::EIO };
    let rules = vec![Rule::once(error, On::Reads, 0..1), Rule::always(error, On::Writes, 8191..8192)];
    let (_, q) = device(4, rules);
    assert!(block_on(&q, q.read(0, DmaBuf::new(BLOCK))).is_err());
    block_on(&q, q.read(0, DmaBuf::new(BLOCK))).unwrap();
    for _ in 0..2 {
        assert!(block_on(&q, q.write(4096, filled(1), false)).is_err());
    }
    block_on(&q, q.write(8192, filled(1), false)).unwrap();
}

#[test]
fn reads_and_writes_that_lie() {
    let rules = vec![
        Rule::once(Fault::Lose, On::Writes, 0..1),
        Rule::once(Fault::Misdirect { by_bytes: 4096 }, On::Writes, 4096..4097),
    ];
    let (device, q) = device(4, rules);
    block_on(&q, q.write(0, filled(1), false)).unwrap();
    block_on(&q, q.write(4096, filled(2), false)).unwrap();
    let image = device.snapshot();
    assert_eq!([0, 4096, 8192].map(|at| byte_at(&image, at)), [0, 0, 2]);
    device.add_rule(Rule::once(Fault::FlipBit, On::Reads, 0..u64::MAX));
    let read = |at| block_on(&q, q.read(at, DmaBuf::new(BLOCK))).unwrap();
    let ones = |buf: &DmaBuf| buf.iter().map(|b| b.count_ones()).sum::<u32>();
    assert_eq!([ones(&read(0)), ones(&read(0))], [1, 0]);
    device.flip_bit(5, 3);
    assert_eq!(read(0)[5], 8);
    device.add_rule(Rule::once(Fault::OldData, On::Reads, 0..u64::MAX));
    assert_eq!([read(8192)[0], read(8192)[0]], [0, 2], "first the medium, then the cache");
}

#[test]
fn with_a_hook_completions_come_in_their_own_time() {
    type Timers = Arc<Mutex<Vec<(Duration, Waker)>>>;
    let timers = Timers::default();
    let set = timers.clone();
    let hook: DelayHook = Arc::new(move |delay, waker| set.lock().unwrap().push((delay, waker)));
    let stall = Duration::from_secs(3);
    let rules = vec![Rule::once(Fault::Stall { time: stall }, On::Writes, 0..1)];
    let config = FaultConfig { hook: Some(hook), rules, ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(1 << 16), 1, config);
    let q = device.open_queue(8).unwrap();
    let mut writes: Vec<IoFuture> =
        (0..3).map(|i| q.start(IoOp::Write { at_bytes: i * 4096, data: filled(i as u8 + 1), fua: false })).collect();
    assert_eq!((q.process_completions(), q.in_flight()), (0, 3), "nothing is due, and nobody need poll");
    let mut timers = std::mem::take(&mut *timers.lock().unwrap());
    assert!(timers[0].0 >= stall && timers[1].0 < stall);
    timers.swap_remove(1).1.wake();
    assert_eq!(q.process_completions(), 1);
    let mut cx = Context::from_waker(Waker::noop());
    let ready: Vec<bool> = writes.iter_mut().map(|w| std::pin::Pin::new(w).poll(&mut cx).is_ready()).collect();
    assert_eq!(ready, [false, true, false]);
    assert_eq!([0, 4096].map(|at| byte_at(&device.snapshot(), at)), [0, 2]);
}

/// A write of the model: where, when it began and ended, whether it must be kept.
#[derive(Clone)]
struct Known {
    id: u64,
    sectors: std::ops::Range<u64>,
    began: usize,
    ended: usize,
    fua: bool,
}

/// Every sector of a crash image holds a write that no durable write certainly replaced.
fn check_cut(journal: &Journal, cut: usize, seed: u64) {
    let (mut writes, mut durable): (Vec<Known>, Vec<u64>) = Default::default();
    let mut flushes = Vec::new();
    for (turn, event) in journal.events()[..cut].iter().enumerate() {
        match event {
            Event::Write { id, at_bytes, payload, fua } => {
                let first = at_bytes / SECTOR_BYTES as u64;
                let sectors = first..first + payload.len_bytes() / SECTOR_BYTES as u64;
                writes.push(Known { id: *id, sectors, began: turn, ended: usize::MAX, fua: *fua });
            }
            Event::Written { id } => {
                let write = writes.iter_mut().find(|w| w.id == *id).unwrap();
                write.ended = turn;
                durable.extend(write.fua.then_some(write.id));
            }
            Event::Flush { id } => {
                let covered: Vec<u64> = writes.iter().filter(|w| w.ended < turn).map(|w| w.id).collect();
                flushes.push((*id, covered));
            }
            Event::Flushed { id } => durable.extend(&flushes.iter().find(|(f, _)| f == id).unwrap().1),
            _ => {}
        }
    }
    let image = journal.image_after(cut, seed);
    for sector in 0..image.len_bytes() / SECTOR_BYTES as u64 {
        let mut tag = [0; 8];
        image.read(sector * SECTOR_BYTES as u64, &mut tag);
        let tag = u64::from_le_bytes(tag);
        let here: Vec<&Known> = writes.iter().filter(|w| w.sectors.contains(&sector)).collect();
        let kept = here.iter().filter(|w| durable.contains(&w.id));
        let replaced_before = kept.map(|w| w.began).max();
        if tag == 0 {
            assert!(replaced_before.is_none(), "cut {cut} seed {seed}: sector {sector} lost a durable write");
            continue;
        }
        let found = here.iter().find(|w| w.id + 1 == tag).expect("a write of this sector");
        let replaced = replaced_before.is_some_and(|began| found.ended < began);
        assert!(!replaced, "cut {cut} seed {seed}: sector {sector} went back to write {}", found.id);
    }
}

fn run_model(seed: u64) {
    const BLOCKS: u64 = 12;
    let mut prng = Prng::new(seed);
    let config = FaultConfig { journal: true, ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(BLOCKS * BLOCK as u64), seed, config);
    let queues = [device.open_queue(4).unwrap(), device.open_queue(4).unwrap()];
    let running: RefCell<Vec<IoFuture>> = RefCell::default();
    for id in 0..120u64 {
        let q = &queues[prng.below(2) as usize];
        let op = match prng.below(8) {
            0 => IoOp::Flush,
            1 => IoOp::Read { at_bytes: 0, buf: DmaBuf::new(BLOCK) },
            _ => {
                let len = 1 + prng.below(3);
                let mut data = DmaBuf::new(len as usize * BLOCK);
                for sector in data.chunks_mut(SECTOR_BYTES) {
                    sector[..8].copy_from_slice(&(id + 1).to_le_bytes());
                }
                let at_bytes = prng.below(BLOCKS - len) * BLOCK as u64;
                IoOp::Write { at_bytes, data: data.freeze(), fua: prng.one_in(5) }
            }
        };
        running.borrow_mut().push(q.start(op));
        if prng.one_in(2) {
            queues[prng.below(2) as usize].process_completions();
        }
        if prng.one_in(10) {
            let waiting = running.take();
            crate::testing::block_on_all(&queues, async {
                for io in waiting {
                    io.await.0.unwrap();
                }
            });
        }
    }
    let journal = device.journal();
    for cut in 0..=journal.len() {
        check_cut(&journal, cut, seed ^ cut as u64);
    }
}

/// Story: whatever is in flight, overlaps, flushes or does not, a crash loses nothing durable and brings nothing back.
#[test]
fn model_no_crash_breaks_the_contract() {
    for seed in 0..20 {
        run_model(seed);
    }
}

#[test]
fn a_seed_gives_one_run() {
    let images = [1, 1, 2].map(|seed| {
        let device = FaultDevice::new(Image::zeroed(1 << 16), seed, FaultConfig::default());
        let q = device.open_queue(8).unwrap();
        let writes: Vec<_> = (0..8).map(|i| q.write(0, filled(i + 1), false)).collect();
        block_on(&q, async {
            for write in writes {
                write.await.unwrap();
            }
        });
        (byte_at(&device.snapshot(), 0), device.crash(7))
    });
    assert_eq!(images[0], images[1]);
}
