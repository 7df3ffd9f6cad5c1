//! Compaction in a whole store: it may fall behind, fail, or be done by somebody else, and writers go on (C3, C4).

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use vellum_base::ItemOp;
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, Queue};
use vellum_rt::native::block_on;
use vellum_store::lsm::{Cancel, CompactionJob, LocalFuture, Outcome, execute};
use vellum_store::{CheckOptions, CompactionStatus, Helped, Helpers, OpenOptions, Prefer, Store, StoreStatus};

fn small(reactors: usize) -> OpenOptions {
    OpenOptions { memtable_bytes: 1 << 20, ..options(reactors) }
}

/// Commits `batches` batches of 40 items over many buckets, `from` on.
async fn write(store: &Rc<Store>, client: &mut Client, from: u64, batches: u64) {
    for n in from..from + batches {
        let inos = (n * 40..n * 40 + 40).map(|i| ino(i as u8, 2 + i % 700));
        let ops: Vec<ItemOp> = inos
            .flat_map(|ino| [put(inline_key(ino), Bytes::from(vec![n as u8; 600])), put_inode(ino, &inode(600, n))])
            .collect();
        client.commit(store, ops).await.unwrap();
    }
}

async fn check_clean(device: &Arc<dyn Device>) {
    let q = queue(device);
    let report = vellum_store::check(device, &q, CheckOptions { data: true }).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if done().await {
            return;
        }
        vellum_rt::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 30 s");
}

/// What a helper does with a job.
#[derive(Clone, Copy, PartialEq)]
enum Deed {
    Right,
    Fails,
    /// Never answers, and is quiet when `Lab::quiet` says so.
    Dies,
    /// Answers with something else.
    Forges,
    Sits,
}

/// Runs jobs on a queue of its own, as another process would.
struct Lab {
    queue: Rc<dyn Queue>,
    deed: Cell<Deed>,
    taken: Cell<usize>,
    distrusted: Cell<usize>,
    quiet: Rc<Cell<bool>>,
    lost: RefCell<Vec<Rc<CompactionJob>>>,
}

impl Lab {
    fn quiet(&self) -> LocalFuture<'static, ()> {
        let quiet = self.quiet.clone();
        Box::pin(async move {
            while !quiet.get() {
                vellum_rt::sleep(Duration::from_millis(2)).await;
            }
        })
    }
}

impl Helpers for Lab {
    fn slots(&self) -> usize {
        2
    }

    fn take(&self, job: Rc<CompactionJob>) -> Option<LocalFuture<'static, Helped>> {
        self.taken.set(self.taken.get() + 1);
        let (queue, deed, quiet) = (self.queue.clone(), self.deed.get(), self.quiet());
        if deed == Deed::Dies {
            self.lost.borrow_mut().push(job.clone());
        }
        Some(Box::pin(async move {
            match deed {
                Deed::Fails => return Helped::Failed { reason: "no hands".into() },
                Deed::Dies => return Helped::Lost { reason: "its process is gone".into(), quiet },
                Deed::Sits => std::future::pending().await,
                Deed::Right | Deed::Forges => {}
            }
            let job = CompactionJob::decode(&job.encode().unwrap()).unwrap();
            let mut outcome = execute(&queue, &job, &Cancel::default()).await.unwrap();
            if deed == Deed::Forges {
                outcome = Outcome { segments: Vec::new(), ..outcome };
                outcome.read.entries += 1;
            }
            Helped::Done { helper: 7, outcome }
        }))
    }

    fn distrust(&self, helper: u64, _: &str) -> LocalFuture<'static, ()> {
        assert_eq!(helper, 7);
        self.distrusted.set(self.distrusted.get() + 1);
        self.quiet()
    }
}

#[test]
fn c3_whatever_becomes_of_a_helper_the_store_goes_on_and_nothing_leaks() {
    for reactors in [1, 2] {
        block_on(async {
            let device = memory(512 * MIB);
            make(&device).await;
            let (stores, _) =
                start(&device, OpenOptions { memtable_bytes: 16 << 20, ..options(reactors) }).await.unwrap();
            let store = &stores[0];
            let queue = queue(&device);
            let lab = Rc::new(Lab {
                queue: queue.clone(),
                deed: Cell::new(Deed::Right),
                taken: Cell::new(0),
                distrusted: Cell::new(0),
                quiet: Rc::default(),
                lost: RefCell::default(),
            });
            stores.iter().for_each(|s| s.set_helpers(lab.clone(), Prefer::Helpers));
            let mut client = Client::open(store, RID).await;
            for (round, deed) in [Deed::Dies, Deed::Forges, Deed::Fails, Deed::Right].into_iter().enumerate() {
                lab.deed.set(deed);
                write(store, &mut client, round as u64 * 100, 100).await;
                let open = store.status().await.unwrap().open_epoch;
                store.wait_durable(open).await.unwrap();
                let sum = |f: fn(&CompactionStatus) -> u64, status: &StoreStatus| -> u64 {
                    status.reactors.iter().map(|r| f(&r.compactions)).sum()
                };
                match deed {
                    // The request of one that dies goes to the next one.
                    Deed::Dies | Deed::Right => {
                        let task = {
                            let store = store.clone();
                            vellum_rt::spawn(vellum_rt::Class::Request, "all", async move { store.compact_all().await })
                        };
                        if deed == Deed::Dies {
                            until("one is lost", async || sum(|c| c.lost, &store.status().await.unwrap()) > 0).await;
                            assert!(sum(|c| c.withheld_blocks, &store.status().await.unwrap()) > 0);
                            lab.deed.set(Deed::Right);
                        }
                        task.await.unwrap().unwrap();
                        assert!(sum(|c| c.done_elsewhere, &store.status().await.unwrap()) > 0);
                    }
                    _ => drop(store.compact_all().await.expect_err("its outcome is not believed")),
                }
            }
            assert!(lab.distrusted.get() > 0 && !lab.lost.borrow().is_empty());
            let withheld =
                |status: &StoreStatus| -> u64 { status.reactors.iter().map(|r| r.compactions.withheld_blocks).sum() };
            lab.quiet.set(true);
            until("what was withheld is free", async || withheld(&store.status().await.unwrap()) == 0).await;
            lab.deed.set(Deed::Sits);
            for n in 0..400u64 {
                let i = n * 40 % 700;
                let found = get(store, inline_key(ino((n * 40) as u8, 2 + i))).await;
                assert!(found.is_some_and(|v| v.len() == 600), "item {n}");
            }
            store.shutdown().await.unwrap();
            check_clean(&device).await;
        });
    }
}

#[test]
fn c4_compaction_that_falls_behind_slows_writers_and_says_so_and_never_stops_them_scenario_48() {
    block_on(async {
        let device = memory(512 * MIB);
        make(&device).await;
        let (stores, _) = start(&device, small(1)).await.unwrap();
        let store = &stores[0];
        store.hold_compactions(true); // merging has stopped
        let mut client = Client::open(store, RID).await;
        let mut debts = Vec::new();
        for n in 0..260 {
            let begun = vellum_rt::now();
            write(store, &mut client, n * 4, 4).await;
            assert!(begun.elapsed() < Duration::from_secs(30), "writers are never stopped");
            debts.push(store.status().await.unwrap().reactors[0].compaction_debt);
            if debts.last().is_some_and(|debt| *debt > 1.2) {
                break;
            }
        }
        let status = store.status().await.unwrap();
        let one = &status.reactors[0];
        assert!(one.compaction_debt > 0.9 && one.slowed_batches > 0, "{one:?}");
        assert!(one.write_bound_bytes_per_s.is_some_and(|bytes| (500_000..2_000_000).contains(&bytes)), "{one:?}");
        assert!(debts.iter().any(|debt| (0.1..0.9).contains(debt)), "smoothly: {debts:?}");
        // Merging goes on: writers are as fast as before.
        store.hold_compactions(false);
        until("the debt is paid", async || store.status().await.unwrap().reactors[0].compaction_debt == 0.0).await;
        write(store, &mut client, 9000, 2).await;
        let open = store.status().await.unwrap().open_epoch;
        store.wait_durable(open).await.unwrap();
        let before = store.status().await.unwrap().reactors[0].slowed_batches;
        write(store, &mut client, 10_000, 20).await;
        let after = store.status().await.unwrap();
        assert_eq!((after.reactors[0].slowed_batches, after.reactors[0].write_bound_bytes_per_s), (before, None));
        store.shutdown().await.unwrap();
        check_clean(&device).await;
    });
}

/// A compaction whose input is bad was begun again at once, for ever: a core was busy with it, and the log filled.
#[test]
fn a_compaction_that_fails_rests_before_it_is_tried_again() {
    block_on(async {
        let memory = MemoryDevice::new(256 * MIB);
        let device: Arc<dyn Device> = Arc::new(memory.clone());
        make(&device).await;
        let (stores, _) = start(&device, small(1)).await.unwrap();
        let store = &stores[0];
        store.hold_compactions(true);
        let mut client = Client::open(store, RID).await;
        write(store, &mut client, 0, 300).await;
        let open = store.status().await.unwrap().open_epoch;
        store.wait_durable(open).await.unwrap();
        // A flush on its way would be lost with what is restored below.
        until("all is flushed", async || store.status().await.unwrap().reactors[0].frozen_tables == 0).await;
        // Rot in every segment.
        let image = memory.snapshot();
        let mut spoiled = memory.snapshot();
        let mut block = vec![0u8; 4096];
        for at in (0..image.len_bytes()).step_by(4096) {
            image.read(at, &mut block);
            if block[..4] == vellum_format::segment::block::MAGIC.to_le_bytes() {
                spoiled.write(at + 2000, &[0x5a; 8]);
            }
        }
        memory.restore(spoiled);
        store.hold_compactions(false);
        until("it fails", async || store.status().await.unwrap().reactors[0].compactions.failed > 0).await;
        let (before, begun) = (store.status().await.unwrap().reactors[0].compactions.failed, vellum_rt::now());
        vellum_rt::sleep(Duration::from_millis(600)).await;
        let now = store.status().await.unwrap();
        let all = &now.reactors[0].compactions;
        // Each of 8 shards rests a quarter of a second at least; without that it would be thousands.
        let most = 8 * (begun.elapsed().as_millis() as u64 / 250 + 2);
        assert!(all.failed <= before + most, "{most} at most: {all:?}");
        assert!(all.resting_shards > 0 && all.last_error.as_ref().is_some_and(|e| e.contains("segment")), "{all:?}");
        memory.restore(image);
        until("it is whole again", async || store.status().await.unwrap().reactors[0].compactions.done > 0).await;
    });
}
