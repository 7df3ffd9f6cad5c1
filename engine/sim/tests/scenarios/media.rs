//! 50 to 53: what a device does.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use vellum_nvme::fault::{FaultConfig, FaultDevice};
use vellum_nvme::{Device, Image, Queue};
use vellum_rt::sim::{SimConfig, World};
use vellum_sim::fault::{Fault, LEADER, Stray};
use vellum_sim::plan::Work;
use vellum_store::{MkfsOptions, OpenOptions, StoreError, mkfs, open};

use crate::{Story, ms};

/// The engine is killed at many moments under work that keeps logs, segments and the manifest in motion: in seals, flushes,
/// manifest writes, log trims. Each time the next one takes up what was durable.
#[test]
fn s50_kill_in_the_middle_of_everything() {
    let mut story = Story::of(1, 50).clients(&[Work::Items, Work::Items, Work::Gateway]);
    for n in 0..30 {
        story = story.fault(ms(100 + 61 * n), Fault::NodeDies { node: 0, down: ms(3) });
    }
    let told = story.holds();
    assert!(told.outcome.segments > 0, "memtables were flushed to segments");
}

/// mkfs is cut at each of its writes and flushes: there is then a filesystem, whole, or none, and mkfs can be done again.
#[test]
fn s50_power_fails_in_the_middle_of_mkfs() {
    const BYTES: u64 = 64 << 20;
    let config = FaultConfig { journal: true, ..FaultConfig::default() };
    let device = FaultDevice::new(Image::zeroed(BYTES), 50, config);
    in_world(device.as_device(), |device, queue| async move {
        mkfs(&device, &queue, MkfsOptions::default()).await.map(drop)
    })
    .expect("mkfs");
    let (mut none, mut whole) = (0, 0);
    let events = device.journal().len();
    for cut in 0..=events {
        let image = device.image_after(cut, cut as u64);
        let after = FaultDevice::new(image.clone(), 1, FaultConfig::default());
        let opened = in_world(after.as_device(), |device, queue| async move {
            open(&device, &queue, OpenOptions::default()).await.map(|_| ())
        });
        match opened {
            Ok(()) => whole += 1,
            Err(_) => none += 1,
        }
        let again = FaultDevice::new(image, 2, FaultConfig::default());
        let options = MkfsOptions { force: true, ..MkfsOptions::default() };
        in_world(again.as_device(), |device, queue| async move {
            mkfs(&device, &queue, options).await?;
            open(&device, &queue, OpenOptions::default()).await.map(|_| ())
        })
        .unwrap_or_else(|e| panic!("cut {cut} of {events}: {e}"));
    }
    assert!(none > 0 && whole > 0, "{none} {whole}");
}

fn in_world<F: Future<Output = Result<(), StoreError>> + 'static>(
    device: Arc<dyn Device>,
    work: impl FnOnce(Arc<dyn Device>, Rc<dyn Queue>) -> F + 'static,
) -> Result<(), StoreError> {
    let mut world = World::new(1, SimConfig::default());
    let node = world.add_node();
    let on = world.add_reactor(node);
    let ended = Rc::new(RefCell::new(None));
    let to = ended.clone();
    world.block_on(on, ms(600_000), async move {
        let queue = vellum_store::PolledQueue::open(&*device, 32, "device").expect("a queue");
        let result = work(device, queue.clone()).await;
        *to.borrow_mut() = Some(result);
    });
    ended.take().expect("it ends")
}

/// The device stalls for seconds and then answers everything at once, out of order; and power fails in the middle of a
/// stall. Writes tear at sectors and those that no flush covered are lost, in part: that is every power loss of the
/// simulation. (Reads that lie and writes that go astray: `engine/store/tests/faults.rs`.)
#[test]
fn s51_stalls_and_torn_writes() {
    Story::of(1, 51)
        .fault(ms(300), Fault::Stall { operations: 40, time: ms(2500) })
        .fault(ms(3500), Fault::SlowDevice { time: ms(800) })
        .fault(ms(4600), Fault::Stall { operations: 12, time: ms(900) })
        .fault(ms(4900), Fault::PowerLoss { down: ms(10) })
        .fault(ms(5600), Fault::PowerLoss { down: ms(10) })
        .holds();
}

/// Writes are acknowledged and lost, or land somewhere else, and operations fail, under a node that serves (P3). What clients
/// read is right, or an error; and what a crash then leaves is read as it was written once, or not at all.
#[test]
fn s51_what_goes_astray_is_never_wrong_data() {
    let mut errors = 0;
    for seed in 510..514 {
        let mut story = Story::of(1, seed).clients(&[Work::Gateway, Work::Gateway, Work::Items]);
        for n in 0..12 {
            let how = Stray::ALL[(n % 2) as usize];
            story = story.fault(ms(400 + 130 * n), Fault::Astray { node: 0, operations: 5, how });
        }
        errors += story.until(ms(3500)).holds().outcome.errors;
    }
    assert!(errors > 0, "nobody has heard of it");
}

/// A flush fails: nothing that waited for it is acknowledged (the checker of P1 compares with what the device then holds),
/// and the device is not tried again into a lie. With several members too.
#[test]
fn s52_a_flush_fails() {
    for nodes in [1, 3] {
        Story::of(nodes, 52)
            .fault(ms(600), Fault::FlushFails { down: ms(700) })
            .fault(ms(2500), Fault::FlushFails { down: ms(100) })
            .holds();
    }
}

/// A machine is lost with everything on it, and comes back empty: members keep nothing outside of the shared device. One
/// copy of the superblock rots: the other one is read, and mends it.
#[test]
fn s53_a_machine_and_a_superblock_are_lost() {
    Story::of(3, 53)
        .fault(ms(500), Fault::SuperblockRots)
        .fault(ms(600), Fault::NodeOff { node: LEADER, down: ms(500) })
        .fault(ms(2500), Fault::SuperblockRots)
        .fault(ms(2600), Fault::PowerLoss { down: ms(20) })
        .holds();
}
