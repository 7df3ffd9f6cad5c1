//! The real thing: native reactors, real sockets, the real store on a device in memory.

mod fake;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::TestClient;
use fake::nodes::formatted;
use vellum_base::{Batch, BatchNo, DmaBuf, Ino, ItemOp, Key, View};
use vellum_format::Inode;
use vellum_link::{Address, LinkError};
use vellum_nvme::Device;
use vellum_nvme::memory::MemoryDevice;
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::{Class, sleep, spawn, timeout};
use vellum_server::{Node, NodeError, NodeOptions};
use vellum_store::OpenOptions;
use vellum_wire::{LockMode::*, Request, Response};

fn options(reactors: usize, listen: &[&str]) -> NodeOptions {
    NodeOptions {
        listen: listen.iter().map(|at| at.parse().unwrap()).collect(),
        cores: vec![None; reactors],
        timers: Timers::DEFAULT.faster(10),
        store: OpenOptions { cache_bytes: 8 << 20, memtable_bytes: 8 << 20, ..OpenOptions::default() },
        ..NodeOptions::default()
    }
}

/// The n-th inode of a group in some bucket.
fn ino(bucket: u64, n: u64) -> Ino {
    Ino((bucket << 56) | (1 << 10) | n)
}

fn put(ino: Ino, size: u64) -> ItemOp {
    ItemOp::Put { key: Inode::key(ino), value: Inode { mode: 0o100644, nlink: 1, size, ..Inode::default() }.encode() }
}

async fn size_of(client: &TestClient, ino: Ino) -> Option<u64> {
    let keys: Vec<Key> = vec![Inode::key(ino)];
    let reply = client.conn.call(Request::Get { keys, view: View::Applied }, None).await.unwrap();
    let Response::Items { values } = reply.body else { panic!() };
    values[0].as_ref().map(|value| Inode::decode(value).unwrap().size)
}

async fn connect(address: Address, rid: u64) -> Rc<TestClient> {
    TestClient::connect(address, rid, Timers::DEFAULT.faster(10)).await
}

#[test]
fn clients_of_every_transport_share_one_filesystem() {
    for reactors in 1..=3 {
        let device = formatted();
        let dir = tempfile::tempdir().unwrap();
        let unix = format!("unix:{}/s", dir.path().display());
        let node = Node::start(device.clone(), options(reactors, &[&unix, "tcp:127.0.0.1:0"])).unwrap();
        let mut addresses: Vec<_> = node.up().endpoints.iter().cloned().map(Address::Net).collect();
        addresses.push(Address::InProcess(node.dialer()));
        block_on(async {
            let mut clients = Vec::new();
            for (i, address) in addresses.iter().cycle().take(6).enumerate() {
                clients.push(connect(address.clone(), 0x1234_5678 * (i as u64 + 1)).await);
            }
            // Each in turn adds one to inodes of all buckets: only coherent locks count right.
            let rounds = 30;
            let mut tasks = Vec::new();
            for client in &clients {
                let client = client.clone();
                tasks.push(spawn(Class::Request, "adder", async move {
                    for round in 0..rounds {
                        let buckets = [round * 3 % 256, 128 + round % 128];
                        let groups: Vec<_> = buckets.iter().map(|b| (ino(*b, 0).group(), Write)).collect();
                        client.lock_and_use(&groups).await.unwrap();
                        let mut ops = Vec::new();
                        for bucket in buckets {
                            let at = ino(bucket, 5);
                            ops.push(put(at, size_of(&client, at).await.unwrap_or(0) + 1));
                        }
                        client.commit(ops).await.unwrap();
                        client.unuse();
                    }
                }));
            }
            for task in tasks {
                timeout(Duration::from_secs(60), task).await.expect("no lost wakeup").unwrap();
            }
            let mut sum = 0;
            for bucket in 0..256 {
                sum += size_of(&clients[0], ino(bucket, 5)).await.unwrap_or(0);
            }
            assert_eq!(sum, 2 * rounds * clients.len() as u64, "{reactors} reactors");
            // A key without its lock is refused, whichever reactor owns it.
            for bucket in [3, 100, 250] {
                let refused = clients[1].commit(vec![put(ino(bucket, 900), 1)]).await;
                let groups = [(ino(bucket, 0).group(), Write)];
                if refused.is_ok() {
                    assert_eq!(clients[1].locks.borrow()[&vellum_wire::LockName::Group(groups[0].0)].mode, Write);
                } else {
                    assert!(matches!(refused, Err(LinkError::Remote(_))));
                    clients[1].next_batch.set(clients[1].next_batch.get() - 1);
                }
            }
            for client in clients {
                client.conn.farewell().await.unwrap();
            }
        });
        node.shutdown().unwrap();
    }
}

#[test]
fn a_killed_node_comes_back_with_its_clients() {
    let device = formatted();
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let node = std::cell::RefCell::new(Some(Node::start(device.clone(), options(2, &[&unix])).unwrap()));
    block_on(async {
        let address = || Address::Net(unix.parse().unwrap());
        let a = connect(address(), 0xa1).await;
        let b = connect(address(), 0xb2b2_b2b2).await;
        a.lock(&[(ino(1, 0).group(), Write), (ino(200, 0).group(), Write)]).await.unwrap();
        for n in 1..=20 {
            a.commit(vec![put(ino(1, 1), n), put(ino(200, 1), n)]).await.unwrap();
            if n % 7 == 0 {
                a.sync().await.unwrap();
            }
        }
        node.take().unwrap().kill().unwrap();
        let late = {
            let a = a.clone();
            spawn(Class::Request, "late", async move { a.commit(vec![put(ino(1, 1), 21)]).await })
        };
        *node.borrow_mut() = Some(Node::start(device.clone(), options(1, &[&unix])).unwrap());
        timeout(Duration::from_secs(10), late).await.unwrap().unwrap().unwrap();
        assert_eq!((size_of(&a, ino(1, 1)).await, size_of(&a, ino(200, 1)).await), (Some(21), Some(20)));
        b.lock(&[(ino(1, 0).group(), Read)]).await.unwrap();
        assert_eq!(size_of(&b, ino(1, 1)).await, Some(21));
        assert_eq!((a.conn.greeting().term.0, node.borrow().as_ref().unwrap().up().term.0), (2, 2));
        let data = DmaBuf::zeroed(64 << 10).freeze();
        let reply = a.conn.call(Request::WriteData, Some(data)).await.unwrap();
        let Response::Written { ranges } = reply.body else { panic!() };
        let reply = b.conn.call(Request::ReadData { ranges }, None).await.unwrap();
        assert_eq!(reply.payload.unwrap().len(), 64 << 10);
        a.conn.farewell().await.unwrap();
        b.conn.farewell().await.unwrap();
    });
    let started = Instant::now();
    node.take().unwrap().shutdown().unwrap();
    let node = Node::start(device, options(2, &[&unix])).unwrap();
    block_on(async {
        let c = connect(Address::InProcess(node.dialer()), 0xc3).await;
        c.lock(&[(ino(1, 0).group(), Write)]).await.unwrap(); // nobody is left to wait for
        assert_eq!(size_of(&c, ino(1, 1)).await, Some(21));
    });
    assert!(started.elapsed() < Duration::from_secs(1));
    node.shutdown().unwrap();
}

/// Set in the process that [`a_client_elsewhere`] is: where to connect.
const ELSEWHERE: &str = "VELLUM_TEST_CONNECT";

/// Not a test: the client in a process of its own, which holds a lock until it is killed.
#[test]
fn a_client_elsewhere() {
    let Ok(at) = std::env::var(ELSEWHERE) else { return };
    block_on(async {
        let client = TestClient::connect(Address::Net(at.parse().unwrap()), 0xe15e, Timers::DEFAULT).await;
        client.lock(&[(ino(1, 0).group(), Write)]).await.unwrap();
        client.commit(vec![put(ino(1, 1), 1)]).await.unwrap();
        client.sync().await.unwrap();
        println!("locked");
        sleep(Duration::from_secs(60)).await;
    });
}

/// A process of this test's binary that has the lock of bucket 1.
fn holder(at: &str) -> std::process::Child {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_client_elsewhere", "--nocapture"])
        .env(ELSEWHERE, at)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("locked")));
    child
}

fn slow(reactors: usize, listen: &[&str]) -> NodeOptions {
    NodeOptions { timers: Timers::DEFAULT, ..options(reactors, listen) }
}

/// Much less than the windows of [`slow`], in which the lock comes if nobody sees that its holder is dead.
const AT_ONCE: Duration = Duration::from_secs(3);

#[test]
fn a_client_of_the_engines_process_is_not_waited_for() {
    let device = formatted();
    let node = Node::start(device.clone(), slow(2, &[])).unwrap();
    block_on(async {
        let a = connect(Address::InProcess(node.dialer()), 0xa1).await;
        let b = connect(Address::InProcess(node.dialer()), 0xb2b2_b2b2_b2b2_b2b2).await;
        a.lock(&[(ino(1, 0).group(), Write)]).await.unwrap();
        a.commit(vec![put(ino(1, 1), 7)]).await.unwrap();
        a.sync().await.unwrap();
        b.lock(&[(ino(9, 0).group(), Write)]).await.unwrap();
        node.kill().unwrap();
    });
    let node = Node::start(device, slow(2, &[])).unwrap();
    block_on(async {
        let c = connect(Address::InProcess(node.dialer()), 0xc3).await;
        let wants = [(ino(1, 0).group(), Write), (ino(9, 0).group(), Write)];
        timeout(AT_ONCE, c.lock(&wants)).await.expect("nobody to wait for").unwrap();
        assert_eq!(size_of(&c, ino(1, 1)).await, Some(7));
        c.conn.farewell().await.unwrap();
    });
    node.shutdown().unwrap();
}

#[test]
fn a_client_whose_process_died_is_reclaimed_when_its_socket_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let node = Node::start(formatted(), slow(2, &[&unix])).unwrap();
    let mut child = holder(&unix);
    block_on(async {
        let c = connect(Address::Net(unix.parse().unwrap()), 0xc3).await;
        child.kill().unwrap(); // it stays a zombie until it is waited for
        timeout(AT_ONCE, c.lock(&[(ino(1, 0).group(), Write)])).await.expect("its holder is dead").unwrap();
        assert_eq!(size_of(&c, ino(1, 1)).await, Some(1));
        c.conn.farewell().await.unwrap();
    });
    child.wait().unwrap();
    node.shutdown().unwrap();
}

#[test]
fn after_a_restart_the_dead_are_not_waited_for_and_the_living_are() {
    let device = formatted();
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let node = Node::start(device.clone(), slow(2, &[&unix])).unwrap();
    let mut child = holder(&unix);
    node.kill().unwrap();
    let node = Node::start(device.clone(), slow(1, &[])).unwrap(); // nobody can connect, so the child can't return
    block_on(async {
        let c = connect(Address::InProcess(node.dialer()), 0xc3).await;
        let group = [(ino(1, 0).group(), Write)];
        let lock = c.lock(&group);
        let mut lock = std::pin::pin!(lock);
        let early = timeout(Duration::from_millis(500), &mut lock).await;
        assert!(early.is_err(), "granted while the holder of before lives");
        child.kill().unwrap(); // within the window: seen at once
        timeout(AT_ONCE, lock).await.expect("its holder is dead").unwrap();
        assert_eq!(size_of(&c, ino(1, 1)).await, Some(1));
        c.conn.farewell().await.unwrap();
    });
    child.wait().unwrap();
    node.shutdown().unwrap();
}

#[test]
fn a_node_that_cannot_start_says_why() {
    let empty: Arc<dyn Device> = Arc::new(MemoryDevice::new(64 << 20));
    let error = Node::start(empty, options(2, &[])).err().unwrap();
    assert!(matches!(error, NodeError::Store(_)), "{error}");
    let error = Node::start(formatted(), options(2, &["unix:/no/such/folder/s"])).err().unwrap();
    assert!(matches!(error, NodeError::Listen { .. }), "{error}");
    let error = Node::start(formatted(), options(1, &["tcp:0.0.0.0:0"])).err().unwrap();
    assert!(error.to_string().contains("keys"), "{error}");
}

/// Batches that are pipelined arrive in order and once, also when the socket breaks all the time.
#[test]
fn pipelined_batches_survive_broken_sockets() {
    let device = formatted();
    let node = Node::start(device, options(2, &["tcp:127.0.0.1:0"])).unwrap();
    let address = Address::Net(node.up().endpoints[0].clone());
    block_on(async {
        let a = connect(address, 0xcafe).await;
        a.lock(&[(ino(9, 0).group(), Write)]).await.unwrap();
        let mut calls = Vec::new();
        for n in 1..=400u64 {
            let batch = Batch { number: BatchNo(n), ops: vec![put(ino(9, 2), n)] };
            calls.push((n, a.conn.call(Request::Commit { batch }, None)));
            if n % 40 == 0 {
                sleep(Duration::from_millis(3)).await;
                a.conn.break_socket();
            }
        }
        let mut last = 0;
        for (n, call) in calls {
            let Response::Committed { number, epoch } = call.await.unwrap().body else { panic!() };
            assert!(number.0 == n && epoch.0 >= last);
            last = epoch.0;
        }
        assert_eq!(size_of(&a, ino(9, 2)).await, Some(400));
    });
    node.shutdown().unwrap();
}

/// Not a benchmark to quote: a look at what one request costs. `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "prints rates"]
fn rates() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", dir.path().display());
    let node = Node::start(formatted(), options(1, &[&unix])).unwrap();
    for address in [Address::Net(unix.parse().unwrap()), Address::InProcess(node.dialer())] {
        block_on(async {
            let client = connect(address.clone(), vellum_rt::random_u64()).await;
            for depth in [1, 32] {
                let started = Instant::now();
                let n = 20_000;
                let mut running = std::collections::VecDeque::new();
                for i in 0..n {
                    let keys = vec![Inode::key(ino(i % 256, i))];
                    running.push_back(client.conn.call(Request::Get { keys, view: View::Applied }, None));
                    if running.len() == depth {
                        running.pop_front().unwrap().await.unwrap();
                    }
                }
                for call in running {
                    call.await.unwrap();
                }
                let rate = n as f64 / started.elapsed().as_secs_f64();
                println!("{address:?}: depth {depth}: {rate:.0} gets/s");
            }
            let started = Instant::now();
            let data = DmaBuf::zeroed(1 << 20).freeze();
            for _ in 0..100 {
                let reply = client.conn.call(Request::WriteData, Some(data.clone())).await.unwrap();
                let Response::Written { ranges } = reply.body else { panic!() };
                client.conn.call(Request::ReadData { ranges }, None).await.unwrap();
            }
            let rate = 200.0 / started.elapsed().as_secs_f64();
            println!("{address:?}: {rate:.0} MiB/s written and read, one at a time");
        });
    }
    node.shutdown().unwrap();
}
