//! Controllers that lie. Whatever one answers, the driver reports no success for what failed, keeps to its memory, does
//! not panic and does not wait for ever. A failing seed is printed.

mod common;

use std::panic::AssertUnwindSafe;

use common::*;
use vellum_base::DmaBuf;
use vellum_base::prng::Prng;
use vellum_nvme::driver::NvmeDevice;
use vellum_nvme::emu::{ControllerConfig, Fault, FaultRule, When};
use vellum_nvme::spec::Status;
use vellum_nvme::testing::block_on;
use vellum_nvme::{Device, DeviceError};

fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("NVME_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}

fn each_seed(count: u64, run: impl Fn(u64)) {
    for seed in seeds(count) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("NVME_SEED={seed} reproduces this");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Writes and reads at random with canaries around every buffer. A success must be true; an error may be any.
fn work(device: &dyn Device, prng: &mut Prng, rounds: u32) -> Result<(), DeviceError> {
    const BLOCKS: u64 = 64;
    let queue = device.open_queue(8)?;
    // None: a failed write left it unknown.
    let mut model: Vec<Option<u8>> = vec![Some(0); BLOCKS as usize];
    let canaries: Vec<DmaBuf> = (0..16).map(|_| DmaBuf::copy_from(&[0xc5; 4096], true)).collect();
    for round in 0..rounds {
        let at = prng.below(BLOCKS);
        let byte = round as u8;
        if prng.one_in(2) {
            let data = DmaBuf::copy_from(&[byte; 4096], true).freeze();
            let written = block_on(&queue, queue.write(at * 4096, data, false));
            model[at as usize] = written.is_ok().then_some(byte);
            if written.is_err_and(|err| err.is_failed()) {
                break;
            }
        } else {
            match block_on(&queue, queue.read(at * 4096, DmaBuf::new(4096))) {
                Ok(buf) => {
                    if let Some(byte) = model[at as usize] {
                        assert!(buf.iter().all(|b| *b == byte), "block {at} in round {round}");
                    }
                }
                Err(err) if err.is_failed() => break,
                Err(_) => {}
            }
        }
    }
    assert!(canaries.iter().all(|buf| buf.iter().all(|b| *b == 0xc5)), "memory that was not lent was written");
    Ok(())
}

#[test]
fn whatever_goes_wrong_with_io_success_is_true() {
    const FAULTS: [Fault; 11] = [
        Fault::Status(Status::UNRECOVERED_READ),
        Fault::Status(Status::LBA_OUT_OF_RANGE.with_do_not_retry()),
        Fault::Lose,
        Fault::LoseCompletion,
        Fault::WrongPhase,
        Fault::UnknownCid,
        Fault::Duplicate,
        Fault::WrongQueue,
        Fault::Scribble,
        Fault::Reset,
        Fault::Fatal,
    ];
    each_seed(60, |seed| {
        let mut prng = Prng::new(seed);
        let mut faults = vec![FaultRule::one_in(When::Io, 5, Fault::Reorder { max_turns: 6 })];
        for _ in 0..1 + prng.below(3) {
            let fault = FAULTS[prng.below(FAULTS.len() as u64) as usize];
            faults.push(FaultRule::one_in(When::Io, 10 + prng.below(60) as u32, fault));
        }
        let config = ControllerConfig {
            seed,
            faults,
            mdts: prng.below(3) as u8,
            sgl: prng.one_in(2),
            doorbell_buffers: prng.one_in(2),
            ready_after_reads: prng.below(4) as u32,
            ..ControllerConfig::default()
        };
        let (_, device) = one(config, if prng.one_in(2) { 512 } else { 4096 }, prng.one_in(2));
        drop(work(&device, &mut prng, 120));
    });
}

#[test]
fn garbage_from_the_admin_queue_is_refused_or_harmless() {
    each_seed(150, |seed| {
        let mut prng = Prng::new(seed);
        let one_in = 1 + prng.below(4) as u32;
        let faults = vec![FaultRule::one_in(When::Admin, one_in, Fault::Garble)];
        let model = model(
            &subsystem(vec![namespace(512, false)], false),
            ControllerConfig { seed, faults, ..Default::default() },
        );
        let Ok(driver) = attach(&model, options()) else { return };
        let nsid = prng.one_in(2).then_some(1);
        let _ = (driver.smart().is_ok(), driver.error_log().is_ok(), driver.namespace_ids().is_ok());
        let Ok(device) = NvmeDevice::open(driver, nsid, false) else { return };
        let geometry = device.geometry();
        assert!(geometry.size_bytes.is_multiple_of(4096) && geometry.max_transfer_bytes >= 4096, "{geometry:?}");
        assert!(matches!(geometry.lba_bytes, 512 | 4096), "{geometry:?}");
        let Ok(queue) = device.open_queue(4) else { return };
        // Beyond the true end of the namespace the controller says so, and within a claimed one we pass it on.
        let last = geometry.size_bytes - 4096;
        let _ = block_on(&queue, queue.read(last, DmaBuf::new(4096)));
    });
}

#[test]
fn admin_commands_that_fail_or_vanish_end_in_an_error() {
    each_seed(80, |seed| {
        let mut prng = Prng::new(seed);
        let faults = [
            Fault::Lose,
            Fault::WrongPhase,
            Fault::Duplicate,
            Fault::UnknownCid,
            Fault::Scribble,
            Fault::Fatal,
            Fault::Vanish,
            Fault::Status(Status::INTERNAL_ERROR),
            Fault::Late { turns: 400 },
        ];
        let fault = faults[prng.below(faults.len() as u64) as usize];
        let rule = FaultRule { skip: prng.below(12) as u32, times: 2, ..FaultRule::once(When::Admin, fault) };
        let config = ControllerConfig { seed, faults: vec![rule], ..ControllerConfig::default() };
        let model = model(&subsystem(vec![namespace(512, false)], false), config);
        let Ok(driver) = attach(&model, options()) else { return };
        let Ok(device) = NvmeDevice::open(driver, Some(1), false) else { return };
        drop(work(&device, &mut prng, 40));
    });
}

#[test]
fn a_reset_that_brings_back_something_else_is_not_trusted() {
    // After a reset the identity is garbage each time: the driver must not go on with it.
    let (model, device) = simple(ControllerConfig::default());
    let queue = device.open_queue(4).unwrap();
    model.add_fault(FaultRule::one_in(When::AdminOpcode(6), 1, Fault::Garble));
    model.add_fault(FaultRule::once(When::Io, Fault::Reset));
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(err.is_failed(), "{err}");
}
