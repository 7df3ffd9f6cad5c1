//! A store behind a gate: what was flushed is acknowledged when the node is confirmed to lead still, and never once it is
//! known that it does not.

mod common;

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use common::*;
use vellum_rt::native::block_on;
use vellum_rt::{Class, sleep, spawn};
use vellum_store::{CommitError, Deposed, Gate, GateFuture, OpenOptions, Store, StoreError};

#[derive(Default, Debug)]
struct Verdict {
    given: Option<Result<(), Deposed>>,
    waits: Option<Waker>,
}

/// Answers when the test says so.
#[derive(Default, Debug)]
struct Held {
    asked: AtomicUsize,
    verdict: Mutex<Verdict>,
}

impl Held {
    fn decide(&self, verdict: Option<Result<(), Deposed>>) {
        let waker = {
            let mut state = self.verdict.lock().unwrap();
            state.given = verdict;
            state.waits.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

#[derive(Debug)]
struct Door(Arc<Held>);

impl Gate for Door {
    fn confirm(&self) -> GateFuture {
        let held = self.0.clone();
        held.asked.fetch_add(1, SeqCst);
        Box::pin(std::future::poll_fn(move |cx| {
            let mut state = held.verdict.lock().unwrap();
            match state.given.clone() {
                Some(verdict) => Poll::Ready(verdict),
                None => {
                    state.waits = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

/// A store of two reactors with one client, made while the gate is open.
async fn gated(held: &Arc<Held>) -> (Rc<Store>, Client) {
    let device = memory(64 * MIB);
    make(&device).await;
    held.decide(Some(Ok(())));
    let options = OpenOptions { gate: Some(Arc::new(Door(held.clone()))), ..options(2) };
    let (stores, _) = start(&device, options).await.unwrap();
    let client = Client::open(&stores[0], RID).await;
    assert!(held.asked.load(SeqCst) > 0, "a client record is an acknowledgement too");
    (stores[0].clone(), client)
}

#[test]
fn an_epoch_is_acknowledged_after_the_gate_and_not_before() {
    block_on(async {
        let held = Arc::<Held>::default();
        let (store, mut client) = gated(&held).await;
        held.decide(None);
        let epoch = client.commit(&store, vec![put_inode(ino(1, 2), &inode(1, 1))]).await.unwrap();
        let waiter = store.clone();
        let wait = spawn(Class::Request, "fsync", async move { waiter.wait_durable(epoch).await });
        sleep(Duration::from_millis(100)).await;
        assert!(!wait.is_finished() && store.durable_epoch() < epoch, "it is flushed, and not confirmed");
        // What was committed later does not slip through either.
        let later = client.commit(&store, vec![put_inode(ino(200, 3), &inode(1, 1))]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert!(store.durable_epoch() < epoch);
        held.decide(Some(Ok(())));
        wait.await.unwrap().unwrap();
        store.wait_durable(later).await.unwrap();
        store.shutdown().await.unwrap();
    });
}

#[test]
fn a_deposed_store_acknowledges_nothing_and_takes_nothing() {
    block_on(async {
        let held = Arc::<Held>::default();
        let (store, mut client) = gated(&held).await;
        held.decide(None);
        let epoch = client.commit(&store, vec![put_inode(ino(1, 2), &inode(1, 1))]).await.unwrap();
        let waiter = store.clone();
        let wait = spawn(Class::Request, "fsync", async move { waiter.wait_durable(epoch).await });
        sleep(Duration::from_millis(50)).await;
        held.decide(Some(Err(Deposed("slot 2 leads in term 34".into()))));
        let failed = wait.await.unwrap().unwrap_err();
        assert!(matches!(&failed, StoreError::Failed(why) if why.contains("term 34")), "{failed}");
        assert!(store.durable_epoch() < epoch);
        let refused = client.commit(&store, vec![put_inode(ino(1, 3), &inode(1, 1))]).await;
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Failed(_)))), "{refused:?}");
        assert!(store.shutdown().await.is_err());
    });
}

/// The last members of a cluster leave together: nobody is left who could confirm, and nobody who would be told.
#[test]
fn a_shutdown_needs_no_confirmation() {
    block_on(async {
        let held = Arc::<Held>::default();
        let (store, mut client) = gated(&held).await;
        held.decide(None);
        client.commit(&store, vec![put_inode(ino(1, 2), &inode(1, 1))]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        let stopping = store.clone();
        let stop = spawn(Class::Request, "shutdown", async move { stopping.shutdown().await });
        sleep(Duration::from_millis(100)).await;
        held.decide(Some(Err(Deposed("no majority".into()))));
        stop.await.unwrap().unwrap();
    });
}
