//! Compactions in three steps: what is reserved, what a runner elsewhere sends back, and what is believed of it
//! (C1 to C3, and the scenarios that they answer).

use std::collections::BTreeSet;

use bytes::Bytes;
use vellum_base::prng::Prng;
use vellum_base::{BlockRange, Epoch, KeyRange, SegmentId};
use vellum_format::SegmentMeta;
use vellum_nvme::memory::MemoryDevice;
use vellum_rt::native::block_on;

use super::{DEVICE_BYTES, KEYS, Lab, key};
use crate::lsm::{Cancel, CompactionJob, ItemWrite, LsmError, Outcome, Plan, execute};
use crate::polled::PolledQueue;

/// A lab with `runs` runs in level 0, each with other versions of all keys.
async fn with_runs(device: &MemoryDevice, runs: u64, copies: u8) -> Lab {
    let mut lab = Lab::with_copies(7, device, copies);
    more_runs(&mut lab, 0..runs).await;
    lab
}

async fn more_runs(lab: &mut Lab, rounds: std::ops::Range<u64>) {
    for round in rounds {
        for i in 0..KEYS {
            match (i + round) % 7 {
                0 => lab.apply(lab.epoch, ItemWrite::Delete { key: key(i) }),
                _ => lab.put(key(i), Bytes::from(vec![(i + round) as u8; 80])),
            }
        }
        let range = KeyRange { first: key(round * 9), last: key(round * 9 + 5) };
        lab.apply(lab.epoch, ItemWrite::DeleteRange { range });
        let closed = lab.close_epoch();
        lab.env.oldest.set(Epoch(closed.0.saturating_sub(1)));
        lab.shard.freeze(closed);
        lab.flush().await;
    }
}

/// Another process: a queue of its own, and the bytes of the job.
async fn elsewhere(device: &MemoryDevice, plan: &Plan) -> Result<Outcome, LsmError> {
    let queue = PolledQueue::open(device, 16, "runner").unwrap();
    let job = CompactionJob::decode(&plan.job().encode().unwrap()).unwrap();
    assert_eq!(job, **plan.job());
    let outcome = execute(&queue, &job, &Cancel::default()).await?;
    Ok(Outcome::decode(&outcome.encode().unwrap()).unwrap())
}

fn no_leak(lab: &Lab) {
    let live: u64 = lab
        .levels
        .iter()
        .flatten()
        .flat_map(|m| m.ranges.iter().chain(&m.mirror))
        .map(|r| u64::from(r.len_blocks))
        .sum();
    assert_eq!(lab.env.allocated.borrow().blocks(), live, "blocks that no segment holds");
}

#[test]
fn c1_scenario_40_inputs_are_in_one_compaction_only() {
    block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = with_runs(&device, 4, 1).await;
        let pick = lab.shard.pick_compaction().expect("four runs are enough");
        assert!(lab.shard.pick_compaction().is_none() && lab.shard.pick_everything().is_none());
        drop(pick);
        let plan = lab.shard.plan(lab.shard.pick_compaction().expect("a dropped pick takes nothing")).await.unwrap();
        let first = elsewhere(&device, &plan).await.unwrap();
        assert!(lab.shard.pick_everything().is_none(), "not while it is planned");
        let edit = plan.into_edit_of(first).await;
        assert!(lab.shard.pick_everything().is_none(), "nor before its edit is installed");
        // Scenario 40: a run that comes meanwhile does not bring the old ones into a second job.
        more_runs(&mut lab, 4..8).await;
        assert!(lab.shard.pick_compaction().is_none());
        lab.install(edit);
        no_leak(&lab);
        lab.compact(100).await;
        no_leak(&lab);
        lab.compare(&mut Prng::new(1), 1).await;
    });
}

#[test]
fn c2_the_result_is_the_newest_of_each_key_scenario_38() {
    block_on(async {
        for copies in [1, 2] {
            let device = MemoryDevice::new(DEVICE_BYTES);
            let mut lab = with_runs(&device, 3, copies).await;
            let mut random = Prng::new(2);
            for round in 1..12 {
                // All of level 0 or none of it: never one of two runs that hold versions of a key.
                while let Some(pick) = lab.shard.pick_compaction() {
                    let edit = match pick.into_move() {
                        Ok(edit) => edit,
                        Err(pick) => {
                            let plan = lab.shard.plan(pick).await.unwrap();
                            let runs: BTreeSet<_> = lab.levels[0].iter().map(|m| m.run).collect();
                            let taken: BTreeSet<_> =
                                plan.job().inputs().map(|m| m.run).filter(|run| *run > Epoch::NONE).collect();
                            assert!(taken.is_empty() || taken == runs);
                            let outcome = elsewhere(&device, &plan).await.unwrap();
                            plan.into_edit_of(outcome).await
                        }
                    };
                    lab.install(edit);
                    lab.compare(&mut random, round).await;
                }
                more_runs(&mut lab, round * 2..round * 2 + 2).await;
                lab.compare(&mut random, round).await;
            }
            no_leak(&lab);
        }
    });
}

impl Plan {
    async fn into_edit_of(self, outcome: Outcome) -> crate::lsm::Edit {
        let verified = self.verify(outcome).await.unwrap();
        self.into_edit(verified)
    }
}

#[test]
fn c3_an_outcome_that_does_not_fit_changes_nothing_and_leaks_nothing() {
    block_on(async {
        type Forge = fn(&mut Outcome, &CompactionJob);
        let forgeries: [(&str, Forge); 15] = [
            // Scenario 39: entries lost or doubled by a merge that lost its place.
            ("entries unread", |o, _| o.read.entries -= 1),
            ("entries read twice", |o, _| o.read.entries += 1),
            ("range tombstones unread", |o, _| o.read.range_tombstones -= 1),
            ("more came out", |o, _| o.segments[0].entries += 1 << 40),
            ("one is missing, and its blocks with it", |o, _| o.segments[0].entries += 1),
            ("another id", |o, _| o.segments[0].id = SegmentId(1)),
            ("an id twice", |o, _| o.segments[1].id = o.segments[0].id),
            ("another's blocks", |o, j| o.segments[0].ranges = j.sources[0][0].ranges.clone()),
            ("blocks twice", |o, _| o.segments[1].ranges = o.segments[0].ranges.clone()),
            ("too few blocks", |o, _| o.segments[0].ranges[0].len_blocks -= 1),
            ("keys before its inputs", |o, _| o.segments[0].first = vellum_base::Key::MIN),
            ("keys after its inputs", |o, _| o.segments.last_mut().unwrap().last = vellum_base::Key::MAX),
            ("out of order", |o, _| o.segments.swap(0, 1)),
            ("level 0", |o, _| o.segments[0].run = Epoch(3)),
            ("another checksum", |o, _| o.segments[0].index = o.segments[0].filter),
        ];
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = with_runs(&device, 4, 1).await;
        for (what, forge) in forgeries {
            let plan = lab.shard.plan(lab.shard.pick_compaction().unwrap()).await.unwrap();
            let mut outcome = elsewhere(&device, &plan).await.unwrap();
            assert!(outcome.segments.len() > 1);
            forge(&mut outcome, plan.job());
            match plan.verify(outcome).await {
                Err(LsmError::Misfit(_)) => {}
                Err(e) => panic!("{what}: {e}"),
                Ok(_) => panic!("{what}: it was believed"),
            }
            drop(plan);
            no_leak(&lab);
            lab.compare(&mut Prng::new(4), 4).await;
        }
        lab.compact(100).await;
        assert!(lab.levels[0].is_empty(), "and the same inputs are merged in the end");
        no_leak(&lab);
    });
}

#[test]
fn c3_an_outcome_is_believed_only_when_it_stands_on_the_same_device() {
    block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = with_runs(&device, 4, 2).await;
        let plan = lab.shard.plan(lab.shard.pick_compaction().unwrap()).await.unwrap();
        // A runner with a copy of the device: all is right, but not here.
        let copy = MemoryDevice::from_image(device.snapshot());
        let outcome = elsewhere(&copy, &plan).await.unwrap();
        assert!(plan.verify(outcome).await.is_err());
        // Acknowledged, and the second copy of one segment did not reach the medium.
        let outcome = elsewhere(&device, &plan).await.unwrap();
        let meta = outcome.segments[1].clone();
        let mut image = device.snapshot();
        let (footer, _) = meta.locate(1, meta.len_bytes - 4096).unwrap();
        image.write(footer, &[0; 4096]);
        device.restore(image);
        assert!(plan.verify(outcome).await.is_err());
        let again = elsewhere(&device, &plan).await.unwrap();
        let edit = plan.into_edit_of(again).await;
        lab.install(edit);
        no_leak(&lab);
        lab.compare(&mut Prng::new(5), 5).await;
    });
}

#[test]
fn c3_scenario_39_a_job_that_is_cancelled_or_fails_midway_leaves_nothing_half_done() {
    block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = with_runs(&device, 4, 1).await;
        let plan = lab.shard.plan(lab.shard.pick_compaction().unwrap()).await.unwrap();
        let queue = PolledQueue::open(&device, 16, "runner").unwrap();
        let cancel = Cancel::default();
        let (job, runner, token) = (plan.job().clone(), queue.clone(), cancel.clone());
        let task = vellum_rt::spawn(vellum_rt::Class::Compaction, "runner", async move {
            let result = execute(&runner, &job, &token).await;
            (result, runner.in_flight())
        });
        while queue.in_flight() == 0 {
            vellum_rt::yield_now().await;
        }
        cancel.cancel();
        assert_eq!(task.await.unwrap(), (Err(LsmError::Cancelled), 0));
        // Less space, or fewer ids, than the outputs take.
        for shrink in [|j: &mut CompactionJob| j.space.truncate(1), |j: &mut CompactionJob| j.ids = 1] {
            let mut job = (**plan.job()).clone();
            shrink(&mut job);
            job.space[0].len_blocks = job.space[0].len_blocks.min(20);
            assert_eq!(execute(&queue, &job, &Cancel::default()).await, Err(LsmError::Ids));
            assert_eq!(queue.in_flight(), 0);
        }
        // An input that is not what the manifest says.
        let mut job = (**plan.job()).clone();
        job.sources[1][0].id = SegmentId(99);
        let error = execute(&queue, &job, &Cancel::default()).await.unwrap_err();
        assert!(matches!(error, LsmError::Corrupt { .. }) && queue.in_flight() == 0, "{error}");
        drop(plan);
        no_leak(&lab);
        lab.compact(100).await;
        lab.compare(&mut Prng::new(6), 6).await;
    });
}

#[test]
fn scenario_47_the_space_of_a_lost_runner_is_nobodys_until_it_is_quiet() {
    block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let mut lab = with_runs(&device, 4, 1).await;
        let plan = lab.shard.plan(lab.shard.pick_compaction().unwrap()).await.unwrap();
        let late = plan.job().clone();
        let withheld = plan.withhold();
        assert!(withheld.blocks() > 0);
        // The request goes to the next one, with other blocks, and is installed.
        let again = lab.shard.plan(lab.shard.pick_compaction().expect("the inputs are free")).await.unwrap();
        let of = |space: &[BlockRange]| space.iter().map(|r| r.start.0).collect::<Vec<_>>();
        assert!(of(&again.job().space).iter().all(|start| !of(&late.space).contains(start)));
        assert!(again.job().first_id.0 >= late.first_id.0 + late.ids, "ids are never given twice");
        let outcome = elsewhere(&device, &again).await.unwrap();
        let edit = again.into_edit_of(outcome).await;
        lab.install(edit);
        // The lost one writes on, long after its inputs are gone and overwritten: it hits nothing that counts.
        let queue = PolledQueue::open(&device, 16, "runner").unwrap();
        drop(execute(&queue, &late, &Cancel::default()).await);
        lab.compare(&mut Prng::new(8), 8).await;
        withheld.release();
        no_leak(&lab);
    });
}

#[test]
fn jobs_and_outcomes_survive_their_bytes_and_nothing_else_is_believed() {
    block_on(async {
        let device = MemoryDevice::new(DEVICE_BYTES);
        let lab = with_runs(&device, 4, 2).await;
        let plan = lab.shard.plan(lab.shard.pick_compaction().unwrap()).await.unwrap();
        let outcome = elsewhere(&device, &plan).await.unwrap();
        let (job, done) = (plan.job().encode().unwrap(), outcome.encode().unwrap());
        for bytes in [&job, &done] {
            for cut in (0..bytes.len()).step_by(7) {
                let cut = &bytes[..cut];
                assert!(CompactionJob::decode(cut).is_err() && Outcome::decode(cut).is_err());
            }
        }
        let mut random = Prng::new(9);
        for _ in 0..4000 {
            let mut bytes = if random.one_in(2) { job.clone() } else { done.clone() };
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
            // Neither panics, whatever is in it.
            drop(CompactionJob::decode(&bytes));
            drop(Outcome::decode(&bytes));
        }
        let long = CompactionJob { sources: vec![vec![SegmentMeta::default(); 20_000]], ..(**plan.job()).clone() };
        assert!(long.encode().is_none(), "what does not fit a message is not handed over");
    });
}
