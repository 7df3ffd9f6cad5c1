//! The NVMe driver on the modelled controller: what it must do with an honest one, and with one that fails in known ways.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use common::*;
use vellum_base::DmaBuf;
use vellum_nvme::driver::NvmeDevice;
use vellum_nvme::emu::{ControllerConfig, Fault, FaultRule, Medium, NamespaceConfig, When};
use vellum_nvme::spec::{AsyncEvent, Status};
use vellum_nvme::testing::block_on;
use vellum_nvme::{Device, DeviceError, IoOp, Queue};

const READ: When = When::IoOpcode(2);
const WRITE: When = When::IoOpcode(1);
const FLUSH: When = When::IoOpcode(0);

fn block(byte: u8) -> vellum_base::DmaSlice {
    DmaBuf::copy_from(&[byte; 4096], true).freeze()
}

#[test]
fn one_doorbell_a_poll_however_many_commands() {
    let (_, device) = simple(ControllerConfig::default());
    let queue = device.queue(64).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let tickets: Vec<_> =
        (0..32).map(|i| queue.submit(IoOp::Read { at_bytes: i * 4096, buf: DmaBuf::new(4096) })).collect();
    assert_eq!(queue.doorbells(), 0, "nothing is told before the poll");
    assert_eq!(queue.process_completions(), 32);
    assert_eq!(queue.doorbells(), 1, "the tail once; the head when the controller could need the room");
    for ticket in tickets {
        assert!(matches!(queue.poll_done(ticket, &mut cx), Poll::Ready((Ok(()), Some(_)))));
    }
    assert_eq!(queue.process_completions(), 0);
    assert_eq!(queue.doorbells(), 1);
    // The ring of completions goes round many times, and never has a completion without room.
    for round in 0..40 {
        let tickets: Vec<_> =
            (0..64).map(|i| queue.submit(IoOp::Read { at_bytes: i * 4096, buf: DmaBuf::new(4096) })).collect();
        assert_eq!(queue.process_completions(), 64, "round {round}");
        for ticket in tickets {
            assert!(matches!(queue.poll_done(ticket, &mut cx), Poll::Ready((Ok(()), Some(_)))));
        }
    }
    assert!((41 + 20..=41 + 40).contains(&queue.doorbells()), "{}", queue.doorbells());
    assert_eq!(device.controller().counters.bounced.load(Relaxed), 0);
}

#[test]
fn shadow_doorbells_leave_the_registers_alone() {
    let (_, device) = simple(ControllerConfig { doorbell_buffers: true, ..ControllerConfig::default() });
    let queue = device.queue(8).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for round in 0..40u64 {
        let ticket = queue.submit(IoOp::Write { at_bytes: round * 4096, data: block(round as u8), fua: false });
        queue.process_completions();
        assert!(matches!(queue.poll_done(ticket, &mut cx), Poll::Ready((Ok(()), None))));
    }
    assert!(queue.doorbells() <= 10, "{} of 80 doorbells were registers", queue.doorbells());
}

#[test]
fn memory_that_the_device_cannot_address_is_copied_and_counted() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    // Larger than any class of the arena, so on the heap.
    let mut large = DmaBuf::new((3 << 20) + 4096);
    large.fill(9);
    block_on(&queue, queue.write(4096, large.freeze(), false)).unwrap();
    assert!(device.controller().counters.bounced.load(Relaxed) > 0);
    let image = model.subsystem().namespace(1).unwrap().medium.image().unwrap().to_vec();
    assert!(image[4096..][..(3 << 20) + 4096].iter().all(|b| *b == 9));
    assert!(image[..4096].iter().chain(&image[(3 << 20) + 8192..]).all(|b| *b == 0));
    let back = block_on(&queue, queue.read(0, DmaBuf::new(4 << 20))).unwrap();
    assert!(back[..] == image[..]);
}

#[test]
fn prp_lists_and_sgls_carry_the_same_data() {
    for sgl in [false, true] {
        let (model, device) = simple(ControllerConfig { sgl, ..ControllerConfig::default() });
        let queue = queue(&device, 4);
        let mut at = 0;
        for pages in [1usize, 2, 3, 8, 9, 128] {
            let mut data = DmaBuf::new(pages * 4096);
            vellum_base::prng::Prng::new(pages as u64).fill(&mut data);
            let data = data.freeze();
            block_on(&queue, queue.write(at, data.clone(), false)).unwrap();
            let image = model.subsystem().namespace(1).unwrap().medium.image().unwrap().to_vec();
            assert!(image[at as usize..][..data.len()] == data[..], "{pages} pages on the medium, SGLs {sgl}");
            let back = block_on(&queue, queue.read(at, DmaBuf::new(data.len()))).unwrap();
            assert!(back[..] == data[..], "{pages} pages read, SGLs {sgl}");
            at += data.len() as u64;
        }
    }
}

#[test]
fn a_media_error_is_the_error_of_one_operation() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    block_on(&queue, queue.write(0, block(1), false)).unwrap();
    model.add_fault(FaultRule::once(READ, Fault::Status(Status::UNRECOVERED_READ.with_do_not_retry())));
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(matches!(err, DeviceError::Command { status, .. } if status.code() == 0x281), "{err}");
    assert!(err.to_string().contains("unrecovered read error"), "{err}");
    assert_eq!(block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap()[..], [1; 4096]);
    // One that may be retried is, and nobody hears of it; one that stays is an error in the end.
    model.add_fault(FaultRule { times: 2, ..FaultRule::once(WRITE, Fault::Status(Status::INTERNAL_ERROR)) });
    block_on(&queue, queue.write(0, block(2), false)).unwrap();
    model.add_fault(FaultRule { times: 9, ..FaultRule::once(WRITE, Fault::Status(Status::WRITE_FAULT)) });
    let err = block_on(&queue, queue.write(0, block(3), false)).unwrap_err();
    assert!(matches!(err, DeviceError::Command { status: Status::WRITE_FAULT, .. }), "{err}");
}

#[test]
fn a_flush_that_fails_fails_the_device_for_ever() {
    let (model, device) = one(ControllerConfig::default(), 512, true);
    let (a, b) = (queue(&device, 4), queue(&device, 4));
    block_on(&a, a.write(0, block(1), false)).unwrap();
    model.add_fault(FaultRule::once(FLUSH, Fault::Status(Status::WRITE_FAULT)));
    let err = block_on(&a, a.flush()).unwrap_err();
    assert!(err.is_failed() && err.to_string().contains("write fault"), "{err}");
    assert!(block_on(&b, b.write(0, block(2), false)).unwrap_err().is_failed(), "on every queue");
    assert!(block_on(&a, a.flush()).unwrap_err().is_failed());
    assert!(device.open_queue(1).is_err());
}

#[test]
fn what_was_flushed_or_fua_survives_power_loss_and_the_rest_may_not() {
    let (model, device) = one(ControllerConfig::default(), 4096, true);
    assert!(device.geometry().volatile_write_cache);
    let queue = queue(&device, 4);
    block_on(&queue, queue.write(0, block(1), false)).unwrap();
    block_on(&queue, queue.flush()).unwrap();
    block_on(&queue, queue.write(4096, block(2), true)).unwrap();
    block_on(&queue, queue.write(8192, block(3), false)).unwrap();
    model.subsystem().lose_power();
    let read = block_on(&queue, queue.read(0, DmaBuf::new(12288))).unwrap();
    assert_eq!((read[0], read[4096], read[8192]), (1, 2, 0), "only what was promised");
}

#[test]
fn a_lost_answer_is_aborted_then_reset_then_given_again() {
    let (model, device) = simple(ControllerConfig::default());
    let (a, b) = (queue(&device, 4), queue(&device, 4));
    model.add_fault(FaultRule::once(WRITE, Fault::Lose));
    block_on(&a, a.write(0, block(7), false)).unwrap();
    let counters = &device.controller().counters;
    assert_eq!((counters.aborts.load(Relaxed), counters.resets.load(Relaxed)), (1, 1));
    assert_eq!(model.aborts(), 1);
    // The other queue was lost in the reset too, and comes back by itself.
    assert_eq!(block_on(&b, b.read(0, DmaBuf::new(4096))).unwrap()[..], [7; 4096]);
}

#[test]
fn a_late_answer_after_the_abort_is_still_the_answer() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    model.add_fault(FaultRule::once(READ, Fault::Late { turns: 25 }));
    block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap();
    let counters = &device.controller().counters;
    assert_eq!((counters.aborts.load(Relaxed), counters.resets.load(Relaxed)), (1, 0));
}

#[test]
fn a_controller_that_resets_itself_or_crashes_is_brought_up_again() {
    for fault in [Fault::Reset, Fault::Fatal] {
        let (model, device) = simple(ControllerConfig { ready_after_reads: 3, ..ControllerConfig::default() });
        let queue = queue(&device, 4);
        block_on(&queue, queue.write(0, block(5), false)).unwrap();
        model.add_fault(FaultRule::once(READ, fault));
        let read = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap();
        assert_eq!(read[..], [5; 4096]);
        assert_eq!(device.controller().counters.resets.load(Relaxed), 1, "{fault:?}");
    }
}

#[test]
fn a_crash_with_acknowledged_writes_in_its_cache_fails_the_device() {
    let (model, device) = one(ControllerConfig::default(), 512, true);
    let queue = queue(&device, 4);
    block_on(&queue, queue.write(0, block(5), false)).unwrap();
    block_on(&queue, queue.flush()).unwrap();
    model.add_fault(FaultRule::once(READ, Fault::Fatal));
    block_on(&queue, queue.read(0, DmaBuf::new(4096))).expect("all was flushed: nothing can be lost");
    block_on(&queue, queue.write(0, block(6), false)).unwrap();
    model.add_fault(FaultRule::once(READ, Fault::Fatal));
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(err.is_failed() && err.to_string().contains("not flushed"), "{err}");
}

#[test]
fn a_controller_that_is_pulled_out_ends_everything_at_once() {
    let (model, device) = simple(ControllerConfig::default());
    let (a, b) = (queue(&device, 8), queue(&device, 8));
    model.add_fault(FaultRule::once(WRITE, Fault::Vanish));
    let writes: Vec<_> = (0..20).map(|i| a.write(i * 4096, block(1), false)).collect();
    for write in writes {
        assert!(block_on(&a, write).unwrap_err().is_failed());
    }
    let err = block_on(&b, b.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(err.is_failed() && err.to_string().contains("removed"), "{err}");
    assert_eq!(device.controller().counters.kept_buffers.load(Relaxed), 0, "what is gone writes nothing");
}

#[test]
fn a_controller_that_never_recovers_is_given_up() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    model.add_fault(FaultRule::one_in(When::Io, 1, Fault::Lose));
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(matches!(err, DeviceError::Io { errno: libc::ETIMEDOUT, .. }) || err.is_failed(), "{err}");
    let mut failed = false;
    for _ in 0..4 {
        failed |= block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err().is_failed();
    }
    assert!(failed, "resets without progress end");
}

#[test]
fn fewer_queues_than_wanted_are_refused_with_a_reason_and_come_back() {
    let (_, device) = simple(ControllerConfig { io_queues: 2, ..ControllerConfig::default() });
    let (a, b) = (queue(&device, 4), queue(&device, 4));
    let err = device.open_queue(4).err().unwrap().to_string();
    assert!(err.contains("all 2 IO queue pairs") && err.contains("--cores"), "{err}");
    block_on(&b, b.write(0, block(1), false)).unwrap();
    drop(a);
    let c = queue(&device, 4);
    assert_eq!(block_on(&c, c.read(0, DmaBuf::new(4096))).unwrap()[0], 1);
}

#[test]
fn two_controllers_share_a_namespace() {
    let subsystem = subsystem(vec![namespace(4096, false), namespace(512, false)], false);
    let open = |nsid| {
        let driver = attach(&model(&subsystem, ControllerConfig::default()), options()).unwrap();
        NvmeDevice::open(driver, nsid, false)
    };
    let err = open(None).err().unwrap().to_string();
    assert!(err.contains("several namespaces"), "{err}");
    let (first, second, other) = (open(Some(1)).unwrap(), open(Some(1)).unwrap(), open(Some(2)).unwrap());
    assert_eq!((first.geometry().lba_bytes, other.geometry().lba_bytes), (4096, 512));
    assert!(first.namespace().shared && first.namespace().nguid == second.namespace().nguid);
    assert_ne!(first.namespace().nguid, other.namespace().nguid);
    assert_ne!(first.controller().info().controller_id, second.controller().info().controller_id);
    let (a, b, c) = (queue(&first, 4), queue(&second, 4), queue(&other, 4));
    block_on(&a, a.write(8192, block(4), false)).unwrap();
    assert_eq!(block_on(&b, b.read(8192, DmaBuf::new(4096))).unwrap()[0], 4);
    assert_eq!(block_on(&c, c.read(8192, DmaBuf::new(4096))).unwrap()[0], 0);
    assert!(open(Some(3)).is_err());
}

#[test]
fn events_are_looked_into() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    let read = || block_on(&queue, queue.read(0, DmaBuf::new(4096)));
    (0..4).for_each(|_| drop(read().unwrap()));
    model.raise(AsyncEvent::new(1, 1, 2));
    (0..8).for_each(|_| drop(read().unwrap()));
    let history = device.controller().history();
    assert!(history.iter().any(|line| line.contains("temperature threshold")), "{history:?}");
    // A namespace event about nothing that concerns us changes nothing; one that takes ours away ends the device.
    model.raise(AsyncEvent::new(2, 0, 4));
    (0..20).for_each(|_| drop(read().unwrap()));
    model.subsystem().set_detached(1, true);
    model.raise(AsyncEvent::new(2, 0, 4));
    let err = (0..40).find_map(|_| read().err().filter(DeviceError::is_failed)).expect("the namespace is gone");
    assert!(err.to_string().contains("namespace 1"), "{err}");
}

#[test]
fn health_and_error_log_are_read() {
    let (_, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    block_on(&queue, queue.write(0, block(1), false)).unwrap();
    let controller = device.controller();
    let smart = controller.smart().unwrap();
    assert_eq!(smart.temperature_kelvin.get(), 300);
    assert_eq!(vellum_nvme::spec::SmartLog::counter(smart.host_writes), 1);
    let absent = controller.namespace(99).unwrap_err().to_string();
    assert!(absent.contains("namespace 99 is not there"), "{absent}");
    let log = controller.error_log().unwrap();
    assert!(log.iter().any(|entry| entry.nsid.get() == 99), "{log:?}");
}

#[test]
fn discard_and_write_zeroes_do_what_they_say() {
    let (model, device) = simple(ControllerConfig::default());
    let raw = std::rc::Rc::new(device.queue(4).unwrap());
    let queue: std::rc::Rc<dyn Queue> = raw.clone();
    for at in 0..4 {
        block_on(&queue, queue.write(at * 4096, block(1), false)).unwrap();
    }
    block_on(&queue, queue.discard(0, 4096)).unwrap();
    let ticket = raw.write_zeroes(8192, 4096);
    queue.process_completions();
    assert!(matches!(raw.poll_done(ticket, &mut Context::from_waker(Waker::noop())), Poll::Ready((Ok(()), None))));
    let image = model.subsystem().namespace(1).unwrap().medium.image().unwrap().to_vec();
    assert_eq!([0, 4096, 8192, 12288].map(|at| image[at]), [0, 1, 0, 1]);
}

#[test]
fn formatting_changes_the_lba_size_and_is_noticed() {
    let (_, device) = simple(ControllerConfig::default());
    let controller = device.controller().clone();
    assert_eq!(device.namespace().formats, [512, 4096]);
    controller.format(1, 1).unwrap();
    assert_eq!(controller.namespace(1).unwrap().lba_bytes(), 4096);
    assert!(controller.format(1, 9).is_err());
}

#[test]
fn an_operation_that_nobody_waits_for_keeps_its_memory_until_it_is_answered() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 4);
    model.add_fault(FaultRule::once(READ, Fault::Late { turns: 5 }));
    let buf = DmaBuf::new(4096);
    let at = buf.as_ptr() as usize;
    drop(queue.read(0, buf));
    queue.process_completions();
    let fresh: Vec<_> = (0..8).map(|_| DmaBuf::new(4096)).collect();
    assert!(fresh.iter().all(|buf| buf.as_ptr() as usize != at), "the device still owns it");
    while queue.in_flight() > 0 {
        queue.process_completions();
    }
    assert_eq!(DmaBuf::new(4096).as_ptr() as usize, at, "and now it is free again");
}

#[test]
fn a_queue_dropped_with_commands_at_the_device_waits_for_them() {
    let (model, device) = simple(ControllerConfig::default());
    let queue = queue(&device, 8);
    model.add_fault(FaultRule::one_in(WRITE, 1, Fault::Late { turns: 9 }));
    for i in 0..8 {
        drop(queue.write(i * 4096, block(8), false));
    }
    queue.process_completions();
    drop(queue);
    let image = model.subsystem().namespace(1).unwrap().medium.image().unwrap().to_vec();
    assert!(image[..8 * 4096].iter().all(|b| *b == 8));
    assert!(device.open_queue(1).is_ok());
}

#[test]
fn a_namespace_of_one_terabyte_is_discarded_in_ranges() {
    let size_bytes = 20u64 << 40; // more than 2^32 LBAs
    let null = NamespaceConfig { size_bytes, lba_bytes: 512, medium: Medium::Null };
    let driver = attach(&model(&subsystem(vec![null], false), ControllerConfig::default()), options()).unwrap();
    let device = NvmeDevice::open(driver, None, false).unwrap();
    assert_eq!(device.geometry().size_bytes, size_bytes);
    let queue = queue(&device, 1);
    block_on(&queue, queue.discard(0, size_bytes)).unwrap();
    block_on(&queue, queue.read(size_bytes - 4096, DmaBuf::new(4096))).unwrap();
}

#[test]
fn two_hosts_fight_for_a_namespace_and_a_reset_changes_nothing() {
    use vellum_nvme::Reservations;
    use vellum_nvme::spec::ReservationType::{ExclusiveAccess, WriteExclusiveRegistrantsOnly};
    const KIND: vellum_nvme::spec::ReservationType = WriteExclusiveRegistrantsOnly;
    let subsystem = subsystem(vec![namespace(512, false)], false);
    let attach_one = || {
        let model = model(&subsystem, ControllerConfig::default());
        (model.clone(), NvmeDevice::open(attach(&model, options()).unwrap(), None, false).unwrap())
    };
    let ((model_a, a), (_, b)) = (attach_one(), attach_one());
    let (queue_a, queue_b) = (queue(&a, 4), queue(&b, 4));
    let write = |queue: &std::rc::Rc<dyn Queue>| block_on(queue, queue.write(0, block(1), false));
    let is_conflict = |result: Result<(), DeviceError>| {
        let err = result.unwrap_err();
        assert!(err.is_taken_away() && err.to_string().contains("reservation conflict"), "{err}");
    };
    assert!(a.acquire(1, KIND).unwrap_err().to_string().contains("invalid field"), "before it has said who it is");
    a.register([1; 16], 0xa).unwrap();
    a.acquire(0xa, KIND).unwrap();
    is_conflict(write(&queue_b));
    is_conflict(block_on(&queue_b, queue_b.discard(0, 4096)));
    block_on(&queue_b, queue_b.read(0, DmaBuf::new(4096))).expect("reads are free");
    b.register([2; 16], 0xb).unwrap();
    write(&queue_b).unwrap();
    is_conflict(b.acquire(0xb, KIND));
    // The controller forgets its host in a reset; the driver says it again before the queue is back.
    model_a.add_fault(FaultRule::once(READ, Fault::Reset));
    block_on(&queue_a, queue_a.read(0, DmaBuf::new(4096))).unwrap();
    assert_eq!(a.controller().counters.resets.load(Relaxed), 1);
    write(&queue_a).expect("the same host as before");
    // A write that the controller had taken and not begun when its host was preempted does not land.
    model_a.add_fault(FaultRule::once(WRITE, Fault::Late { turns: 3 }));
    let late = queue_a.write(4096, block(9), false);
    queue_a.process_completions();
    b.preempt(0xb, 0xa, KIND).unwrap();
    is_conflict(block_on(&queue_a, late));
    let image = subsystem.namespace(1).unwrap().medium.image().unwrap().to_vec();
    assert!(image[4096..8192].iter().all(|byte| *byte == 0), "nothing of it is on the medium");
    is_conflict(b.preempt(0xb, 0xa, KIND));
    is_conflict(a.unregister(0xa));
    let report = b.report().unwrap();
    assert_eq!(report.kind, Some(KIND));
    assert_eq!(report.registrants.len(), 1);
    assert!(report.registrants[0].holds && report.registrants[0].key == 0xb && report.registrants[0].host == [2; 16]);
    // A new key takes the place of the old one; the reservation stays.
    b.register([2; 16], 0xbb).unwrap();
    is_conflict(b.acquire(0xb, KIND));
    b.acquire(0xbb, KIND).expect("held already");
    assert!(a.acquire(1, ExclusiveAccess).unwrap_err().is_taken_away());
    b.unregister(0xbb).unwrap();
    assert_eq!(b.report().unwrap().kind, None);
    write(&queue_a).expect("nobody reserves it any more");
}
