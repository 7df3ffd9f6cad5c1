//! What every backend promises, held against a plain array: random operations, many in flight, no two of them overlapping.

mod common;

use std::rc::Rc;

use proptest::prelude::*;
use vellum_base::prng::Prng;
use vellum_base::{BLOCK_SIZE, DmaBuf};
use vellum_nvme::emu::{ControllerConfig, Fault, FaultRule, When};
use vellum_nvme::fault::{FaultConfig, FaultDevice};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::testing::block_on;
use vellum_nvme::{Device, DeviceError, Image, OpenMode, Queue, open};

const BLOCKS: usize = 1024;

/// Runs rounds of operations that do not overlap within a round, and checks every read against the model.
fn run(queues: &[Rc<dyn Queue>], seed: u64, rounds: usize) {
    let mut prng = Prng::new(seed);
    let mut model = vec![0u8; BLOCKS * BLOCK_SIZE];
    for round in 0..rounds {
        let mut at_block = prng.below(16) as usize;
        let (mut writes, mut reads, mut flushes) = (Vec::new(), Vec::new(), Vec::new());
        while at_block < BLOCKS {
            let max_len = (BLOCKS - at_block).min(if prng.one_in(20) { 400 } else { 8 });
            let len = (1 + prng.below(max_len as u64) as usize) * BLOCK_SIZE;
            let at = at_block * BLOCK_SIZE;
            let q = &queues[prng.below(queues.len() as u64) as usize];
            match prng.below(8) {
                0..=3 => {
                    let mut data = DmaBuf::new(len);
                    prng.fill(&mut data);
                    model[at..at + len].copy_from_slice(&data);
                    writes.push((q, q.write(at as u64, data.freeze(), prng.one_in(10))));
                }
                4..=6 => reads.push((q, at, q.read(at as u64, DmaBuf::new(len)))),
                _ => flushes.push((q, q.flush())),
            }
            if prng.one_in(8) {
                q.process_completions();
            }
            at_block += len / BLOCK_SIZE + prng.below(32) as usize;
        }
        for (q, write) in writes {
            block_on(q, write).unwrap();
        }
        for (q, at, read) in reads {
            let read = block_on(q, read).unwrap();
            assert!(read[..] == model[at..at + read.len()], "seed {seed} round {round}: {} at {at}", read.len());
        }
        for (q, flush) in flushes {
            block_on(q, flush).unwrap();
        }
    }
    assert!(queues.iter().all(|q| q.in_flight() == 0));
    let q = &queues[0];
    assert!(block_on(q, q.read(0, DmaBuf::new(model.len()))).unwrap()[..] == model[..]);
}

fn two_queues(device: &dyn Device) -> Vec<Rc<dyn Queue>> {
    vec![device.open_queue(16).unwrap(), device.open_queue(4).unwrap()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_an_array(seed: u64) {
        run(&two_queues(&MemoryDevice::new((BLOCKS * BLOCK_SIZE) as u64)), seed, 4);
    }

    #[test]
    fn an_honest_fault_device_is_an_array(seed: u64) {
        let device = FaultDevice::new(Image::zeroed((BLOCKS * BLOCK_SIZE) as u64), seed, FaultConfig::default());
        run(&two_queues(&device), seed, 4);
    }

    #[test]
    fn a_controller_is_an_array(seed: u64, mdts in 0u8..4, sgl: bool, doorbell_buffers: bool, large_lbas: bool, cache: bool) {
        let config = ControllerConfig { mdts, sgl, doorbell_buffers, seed, ..ControllerConfig::default() };
        let (_, device) = common::one(config, if large_lbas { 4096 } else { 512 }, cache);
        run(&two_queues(&device), seed, 4);
    }

    #[test]
    fn a_controller_that_is_late_forgetful_and_resets_is_an_array(seed: u64, doorbell_buffers: bool) {
        let faults = vec![
            FaultRule::one_in(When::Io, 1000, Fault::Reset),
            FaultRule::one_in(When::Io, 1000, Fault::LoseCompletion),
            FaultRule::one_in(When::Io, 1000, Fault::Duplicate),
            FaultRule::one_in(When::Io, 3, Fault::Reorder { max_turns: 12 }),
        ];
        let config = ControllerConfig { faults, doorbell_buffers, seed, ..ControllerConfig::default() };
        let (_, device) = common::one(config, 512, false);
        run(&two_queues(&device), seed, 3);
    }
}

#[test]
fn a_file_is_an_array() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    std::fs::File::create(&path).unwrap().set_len((BLOCKS * BLOCK_SIZE) as u64).unwrap();
    for seed in 0..4 {
        std::fs::File::create(&path).unwrap().set_len((BLOCKS * BLOCK_SIZE) as u64).unwrap();
        match open(path.to_str().unwrap(), OpenMode { exclusive: true, ..OpenMode::default() }) {
            Ok(device) => run(&two_queues(&*device), seed, 3),
            Err(err @ (DeviceError::NoDirectIo { .. } | DeviceError::Ring { .. })) => eprintln!("SKIPPED: {err}"),
            Err(err) => panic!("{err}"),
        }
    }
}
