//! How other systems' lock services failed, told against a node with clients that misbehave in just that way.

mod fake;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fake::{Cluster, TestClient};
use vellum_base::{Bucket, Ino, ItemOp, Key, Rid, Zone};
use vellum_link::LinkError;
use vellum_proto::Timers;
use vellum_proto::fact::LockFact;
use vellum_rt::native::block_on;
use vellum_rt::{Class, sleep, spawn, timeout, yield_now};
use vellum_wire::{
    ErrorCode, FileLock, FileLockMode, FileLockOutcome, FileLockSpace, HeldFileLock, LockMode::*, LockName, LockWant,
    Request, Response,
};

/// Everything that is waited for comes within this, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

fn quick() -> Timers {
    Timers::DEFAULT.faster(20)
}

/// Scenario 5: a client says farewell while its lock recovery is still on its way; the late page makes an ownerless lock
/// that nobody can take. Here what arrives after a farewell is refused, and the release comes behind the pages before it.
#[test]
fn scenario_5_a_recovery_answer_after_the_farewell_leaves_no_lock() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let (a, b) = (cluster.client(1).await, cluster.client(2).await);
        a.lock(&[(1, Write), (2, Write)]).await.unwrap();
        let held: Vec<_> = a.locks.borrow().values().copied().collect();
        cluster.stop_node().await;
        // Its recovery: one page, the farewell, and the rest.
        let conn = a.conn.clone();
        a.conn.on_new_term(Rc::new(move |_| {
            let (conn, held) = (conn.clone(), held.clone());
            Box::pin(async move {
                let first = conn.call_recovery(Request::Reassert { locks: held[..1].to_vec(), last: false }, None);
                let farewell = conn.call_recovery(Request::Farewell, None);
                let late = conn.call_recovery(Request::Reassert { locks: held[1..].to_vec(), last: true }, None);
                assert!(first.await.is_ok());
                assert!(!matches!(late.await, Ok(reply) if reply.body == Response::Reasserted), "after a farewell");
                let _ = farewell.await;
            })
        }));
        cluster.start_node().await;
        timeout(PATIENCE, b.lock(&[(1, Write), (2, Write)])).await.expect("ownerless").unwrap();
        assert_eq!(cluster.disk.borrow().rids.keys().copied().collect::<Vec<_>>(), [Rid(2)]);
    });
}

/// Scenario 7: more invalidations than the engine has workers, each of which waits for a commit that nobody is left to
/// receive. Here an invalidation occupies nobody: a thousand of them are open, and the commits behind them are taken.
#[test]
fn scenario_7_commits_are_received_under_a_flood_of_invalidations() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let (a, b) = (cluster.client(1).await, cluster.client(2).await);
        let groups: Vec<u64> = (1..=1000).collect();
        for page in groups.chunks(100) {
            a.lock(&page.iter().map(|g| (*g, Write)).collect::<Vec<_>>()).await.unwrap();
        }
        for group in &groups {
            a.put(*group, "dirty").await.unwrap();
        }
        a.busy.set(true);
        let wanted: Vec<_> = groups
            .iter()
            .map(|group| {
                let (b, group) = (b.clone(), *group);
                spawn(Class::Request, "wants", async move { b.lock(&[(group, Write)]).await })
            })
            .collect();
        sleep(Duration::from_millis(100)).await;
        // All are asked for, none is answered: a commit and a sync pass all the same.
        timeout(PATIENCE, a.put(500, "last")).await.expect("a commit").unwrap();
        timeout(PATIENCE, a.sync()).await.expect("a sync").unwrap();
        a.unuse();
        for wanted in wanted {
            timeout(PATIENCE, wanted).await.expect("a lock").unwrap().unwrap();
        }
        assert_eq!(b.get(500).await, Some("last".into()));
    });
}

/// Scenario 10: two clients write one entry of an index without a common lock, and the deletion gets a lower version than
/// the item that it deletes. Here indexes are the engine's alone: a client's batch that names one is refused. [L10]
#[test]
fn scenario_10_l10_no_client_writes_an_index() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let a = cluster.client(1).await;
        a.lock(&[(5, Write)]).await.unwrap();
        let ino = Ino::first_of_group(5);
        let index = Key::new(Bucket(ino.bucket()), Zone::Index, ino.0, 1, 0, 0, 0);
        for op in [ItemOp::Put { key: index, value: Bytes::from_static(b"x") }, ItemOp::Delete { key: index }] {
            let client =
                TestClient::connect(cluster.address(), 100 + u64::from(op.len_bytes() as u32), Timers::DEFAULT).await;
            match client.commit(vec![op]).await {
                Err(LinkError::Remote(error)) => assert_eq!(error.code, ErrorCode::NotPermitted),
                other => panic!("{other:?}"),
            }
        }
    });
}

/// Scenario 11 at a whole node: twenty thousand locks come back in messages as long as they may be, and then as many of a
/// client that is gone. However it is done, no turn of the reactor weakens more than a piece of them: a task that only wants
/// its turn gets it in between. [L8]
#[test]
fn scenario_11_l8_no_turn_gives_back_more_than_a_piece() {
    const LOCKS: u64 = 20_000;
    const PIECE: usize = 256;
    block_on(async {
        let (weakened, longest) = (Rc::new(Cell::new(0usize)), Rc::new(Cell::new(0usize)));
        let (count, most) = (weakened.clone(), longest.clone());
        let in_a_row = Rc::new(Cell::new(0usize));
        let counts = in_a_row.clone();
        let _listening = vellum_base::probe::listen(move |fact| {
            if let Some(LockFact::Weakened { .. }) = fact.downcast_ref::<LockFact>() {
                count.set(count.get() + 1);
                counts.set(counts.get() + 1);
                most.set(most.get().max(counts.get()));
            }
        });
        let turns = spawn(Class::Request, "wants its turn", async move {
            loop {
                in_a_row.set(0);
                yield_now().await;
            }
        });
        let cluster = Cluster::start(quick()).await;
        let wants: Vec<(u64, _)> = (1..=LOCKS).map(|group| (group, Write)).collect();
        let (a, b) = (cluster.client(1).await, cluster.client(2).await);
        for client in [&a, &b] {
            weakened.set(0);
            for page in wants.chunks(4096) {
                client.lock(page).await.unwrap();
            }
            if client.conn.rid() == Rid(1) {
                let null = |(group, _): &(u64, _)| LockWant { name: LockName::Group(*group), mode: Null };
                let back: Vec<_> = wants
                    .chunks(4096)
                    .map(|page| a.conn.call(Request::Unlock { to: page.iter().map(null).collect() }, None))
                    .collect();
                for answer in back {
                    timeout(PATIENCE, answer).await.expect("an answer").unwrap();
                }
            } else {
                client.conn.close();
                let c = cluster.client(3).await;
                timeout(PATIENCE, c.lock(&[(1, Write), (LOCKS, Write)])).await.expect("reclaimed").unwrap();
            }
            assert!(weakened.get() as u64 >= LOCKS, "{}", weakened.get());
        }
        assert!(longest.get() <= 2 * PIECE, "{} locks in one turn", longest.get());
        turns.cancel();
    });
}

/// Scenario 13: two clients fall silent together. Taking the locks of one back asks the other, whose socket is dead too;
/// elsewhere the leader took that for its own failure. Here each costs itself its session, and the third goes on.
#[test]
fn scenario_13_two_clients_that_die_together_hold_up_nobody() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let (a, b, c) = (cluster.client(1).await, cluster.client(2).await, cluster.client(3).await);
        a.lock(&[(1, Write), (3, Read)]).await.unwrap();
        b.lock(&[(2, Write), (3, Read)]).await.unwrap();
        // Each waits for the other's lock, and neither will ever answer.
        for (client, group) in [(&a, 2), (&b, 1)] {
            client.busy.set(true);
            let client = client.clone();
            spawn(Class::Request, "waits", async move { drop(client.lock(&[(group, Write)]).await) }).detach();
        }
        sleep(Duration::from_millis(20)).await;
        a.conn.close();
        b.conn.close();
        timeout(PATIENCE, c.lock(&[(1, Write), (2, Write), (3, Write)])).await.expect("both are gone").unwrap();
        c.put(1, "goes on").await.unwrap();
        c.sync().await.unwrap();
        assert_eq!(cluster.disk.borrow().rids.keys().copied().collect::<Vec<_>>(), [Rid(3)]);
    });
}

/// A client that has no lease any more, but file locks and open inodes: it tells the next leader of them, and until it has,
/// nobody is granted, refused, or told that an inode is closed. [L7, L11]
#[test]
fn l11_a_client_with_nothing_but_file_locks_recovers_them() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let (a, b) = (cluster.client(1).await, cluster.client(2).await);
        let ino = Ino::first_of_group(7);
        let lock = |owner, mode| FileLock { space: FileLockSpace::Posix, mode, owner, pid: 1, start: 10, end: 19 };
        let set = async |client: &Rc<TestClient>, lock| {
            let call = client.conn.call(Request::FileLock { ino, lock, ticket: None }, None);
            match call.await.unwrap().body {
                Response::FileLocked { outcome } => outcome,
                other => panic!("{other:?}"),
            }
        };
        let held = lock(4, FileLockMode::Exclusive);
        assert_eq!(set(&a, held).await, FileLockOutcome::Done);
        a.conn.call(Request::Opened { inos: vec![ino] }, None).await.unwrap();
        cluster.stop_node().await;
        let conn = a.conn.clone();
        a.conn.on_new_term(Rc::new(move |_| {
            let conn = conn.clone();
            Box::pin(async move {
                // Slowly, so that the other one asks before.
                sleep(Duration::from_millis(200)).await;
                let files = Request::ReassertFiles { locks: vec![HeldFileLock { ino, lock: held }], opens: vec![ino] };
                conn.call_recovery(files, None).await.unwrap();
                conn.call_recovery(Request::Reassert { locks: vec![], last: true }, None).await.unwrap();
            })
        }));
        cluster.start_node().await;
        let open = async || match b.conn.call(Request::Openers { inos: vec![ino] }, None).await.unwrap().body {
            Response::Openers { open } => open,
            other => panic!("{other:?}"),
        };
        assert_eq!(open().await, [true], "it may be open: not all were asked");
        assert_eq!(set(&b, lock(4, FileLockMode::Shared)).await, FileLockOutcome::Conflict);
        assert_eq!(open().await, [true], "it is open");
        a.conn.call(Request::Closed { inos: vec![ino] }, None).await.unwrap();
        assert_eq!(open().await, [false]);
        // Whoever is granted the group for WRITE is told.
        a.conn.call(Request::Opened { inos: vec![ino] }, None).await.unwrap();
        let wants = vec![vellum_wire::LockWant { name: vellum_wire::LockName::of(ino), mode: Write }];
        match b.conn.call(Request::Lock { wants }, None).await.unwrap().body {
            Response::Granted { opens, .. } => assert_eq!(opens, [ino]),
            other => panic!("{other:?}"),
        }
        // The client dies: its locks and its open inodes with it.
        a.conn.close();
        let freed = async {
            while set(&b, lock(4, FileLockMode::Shared)).await != FileLockOutcome::Done || open().await != [false] {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, freed).await.expect("a dead client's locks are free");
    });
}

/// What a client must not say about files costs it the request or the session, and nobody else anything.
#[test]
fn illegal_file_requests_are_refused() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let a = cluster.client(1).await;
        let ino = Ino::first_of_group(7);
        let lock = FileLock {
            space: FileLockSpace::Flock,
            mode: FileLockMode::Shared,
            owner: 1,
            pid: 0,
            start: 0,
            end: vellum_wire::FILE_LOCK_MAX,
        };
        let bad = [
            Request::FileLock { ino, lock: FileLock { start: 9, end: 8, ..lock }, ticket: None },
            Request::FileLock { ino, lock: FileLock { end: 8, ..lock }, ticket: None },
            Request::FileLock { ino, lock: FileLock { end: u64::MAX, ..lock }, ticket: Some(1) },
            Request::FileLockTest { ino, lock },
            Request::FileLockDone { ticket: 1, outcome: FileLockOutcome::Done },
        ];
        for request in bad {
            match a.conn.call(request.clone(), None).await {
                Err(LinkError::Remote(error)) => assert_eq!(error.code, ErrorCode::Malformed, "{request:?}"),
                other => panic!("{request:?}: {other:?}"),
            }
        }
        let cancel = a.conn.call(Request::FileLockCancel { ino, ticket: 99 }, None).await.unwrap();
        assert_eq!(cancel.body, Response::FileLocked { outcome: FileLockOutcome::NotWaiting });
    });
}
