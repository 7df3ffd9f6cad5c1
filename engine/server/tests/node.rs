//! Clients against a node of one reactor over a store in memory.

mod fake;

use std::rc::Rc;
use std::time::Duration;

use fake::{Cluster, TestClient};
use vellum_base::{BlockRange, DmaBuf, Rid};
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError};
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::{Class, now, sleep, spawn, timeout};
use vellum_wire::{AdminRequest, ErrorCode, LockMode::*, LockName, Refusal, Request, Response, WireError};

fn quick() -> Timers {
    Timers::DEFAULT.faster(20)
}

fn code<T: std::fmt::Debug>(result: Result<T, LinkError>) -> ErrorCode {
    match result {
        Err(LinkError::Remote(WireError { code, .. })) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_clients_are_one_filesystem() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let a = cluster.client(1).await;
        let b = TestClient::connect(Address::InProcess(cluster.dialer()), 2, Timers::DEFAULT).await;
        a.lock(&[(5, Write)]).await.unwrap();
        for n in 0..50 {
            a.put(5, &format!("{n}")).await.unwrap();
        }
        b.lock(&[(5, Read)]).await.unwrap();
        assert_eq!((a.invalidated.get(), b.get(5).await), (1, Some("49".into())));
        assert_eq!(a.locks.borrow()[&LockName::Group(5)].mode, Read, "the writer keeps reading");
        let seqs = (a.locks.borrow()[&LockName::Group(5)].write_seq, b.locks.borrow()[&LockName::Group(5)].write_seq);
        assert!(seqs.0 < seqs.1);
        // L10: what is not under a WRITE lock of this term is refused.
        assert_eq!(code(a.put(5, "sneaky").await), ErrorCode::NotPermitted);
        assert_eq!(b.get(5).await, Some("49".into()));
        assert_eq!(code(a.sync().await), ErrorCode::NotPermitted, "a refused batch is not durable");
    });
}

#[test]
fn many_clients_take_many_locks() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let mut tasks = Vec::new();
        for n in 1..=8u64 {
            let client = cluster.client(n).await;
            tasks.push(spawn(Class::Request, "client", async move {
                for round in 0..60u64 {
                    let first = (n * 7 + round * 5) % 6;
                    let mode = if round % 3 == 0 { Write } else { Read };
                    let wants = [(first, mode), (first + 1, Write), (first + 9, Read)];
                    client.lock(&wants).await.unwrap();
                }
                client.conn.farewell().await.unwrap();
            }));
        }
        for task in tasks {
            timeout(Duration::from_secs(20), task).await.expect("no lost wakeup").unwrap();
        }
        assert!(cluster.disk.borrow().rids.is_empty(), "farewell leaves no record");
    });
}

#[test]
fn data_go_and_come_and_durability_is_told() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let a = cluster.client(1).await;
        let mut buf = DmaBuf::zeroed(1 << 20);
        buf[77] = 7;
        let reply = a.conn.call(Request::WriteData, Some(buf.freeze())).await.unwrap();
        let Response::Written { ranges } = reply.body else { panic!() };
        let data = a.conn.call(Request::ReadData { ranges }, None).await.unwrap().payload.unwrap();
        assert!(data.len() == 1 << 20 && data[77] == 7);
        let odd = a.conn.call(Request::WriteData, Some(DmaBuf::zeroed(5000).freeze())).await;
        assert_eq!(code(odd), ErrorCode::Malformed);
        let huge = Request::ReadData { ranges: vec![BlockRange::new(1, u32::MAX)] };
        assert_eq!(code(a.conn.call(huge, None).await), ErrorCode::Malformed);
        // Nobody asks, and still the client hears of its epoch soon, so that it can drop its batch.
        a.lock(&[(1, Write)]).await.unwrap();
        let epoch = a.put(1, "x").await.unwrap();
        let told = now();
        let before = vellum_base::Epoch(epoch.0 - 1);
        let durable = timeout(Duration::from_millis(500), a.conn.wait_durable_advance(before)).await.unwrap().unwrap();
        assert!(durable >= epoch && told.elapsed() < Duration::from_millis(500));
        assert!(a.sync().await.unwrap() >= epoch);
    });
}

#[test]
fn a_client_that_dies_is_reclaimed_and_never_comes_back() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let a = cluster.client(1).await;
        let b = cluster.client(2).await;
        a.lock(&[(3, Write)]).await.unwrap();
        let a = Rc::try_unwrap(a).ok().expect("the only user");
        let greeted = a.conn.greeting();
        drop(a); // kill -9
        timeout(Duration::from_secs(5), b.lock(&[(3, Write)])).await.unwrap().unwrap();
        assert_eq!(cluster.disk.borrow().rids.keys().copied().collect::<Vec<_>>(), [Rid(2)]);
        // N6: the same rid with its term is refused.
        let mut raw = std::os::unix::net::UnixStream::connect(match cluster.address() {
            Address::Net(vellum_rt::net::Endpoint::Unix(path)) => path,
            _ => unreachable!(),
        })
        .unwrap();
        let greeting = vellum_wire::Greeting {
            fsid: greeted.fsid,
            protocol: vellum_wire::PROTOCOL,
            term: greeted.term,
            rid: Rid(1),
            flags: 0,
        };
        let mut out = Vec::new();
        vellum_wire::Frame::unsequenced(vellum_wire::Body::Greeting(greeting), 0, vellum_base::Epoch(0))
            .encode_head(&mut out);
        std::io::Write::write_all(&mut raw, &out).unwrap();
        sleep(Duration::from_millis(100)).await;
        let mut answer = [0; vellum_wire::HEADER_LEN];
        std::io::Read::read_exact(&mut raw, &mut answer).unwrap();
        let header = vellum_wire::FrameHeader::decode(&answer).unwrap();
        assert_eq!(header.kind, vellum_wire::FrameKind::Refused);
    });
}

/// Locks, batches and calls survive the leader; nobody is granted anything before the survivors are back (L7, N9).
#[test]
fn clients_recover_with_the_next_leader() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let a = cluster.client(1).await;
        let b = cluster.client(2).await;
        a.lock(&[(1, Write), (2, Write), (3, Read)]).await.unwrap();
        b.lock(&[(3, Read), (4, Write)]).await.unwrap();
        a.put(1, "before").await.unwrap();
        cluster.stop_node().await;
        // While nobody serves: a batch and a lock request that conflicts.
        let waiting = {
            let a = a.clone();
            spawn(Class::Request, "put", async move { a.put(2, "during").await })
        };
        let conflict = {
            let b = b.clone();
            spawn(Class::Request, "lock", async move { b.lock(&[(2, Write)]).await })
        };
        sleep(Duration::from_millis(60)).await;
        cluster.start_node().await;
        waiting.await.unwrap().unwrap();
        conflict.await.unwrap().unwrap();
        assert_eq!(b.get(2).await, Some("during".into()));
        assert_eq!(b.get(1).await, Some("before".into()));
        assert_eq!(a.conn.greeting().term.0, 2);
        a.put(1, "after").await.unwrap();
        assert_eq!(a.sync().await.map(|_| ()), Ok(()));
        assert_eq!(b.locks.borrow()[&LockName::Group(2)].write_seq >> 40, 2, "L4");
    });
}

#[test]
fn who_does_not_return_holds_up_grants_only_for_the_window() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let a = cluster.client(1).await;
        let b = cluster.client(2).await;
        a.lock(&[(1, Write)]).await.unwrap();
        cluster.stop_node().await;
        drop(a);
        let started = now();
        cluster.start_node().await;
        assert_eq!(b.get(1).await, None, "what needs no new lock is served");
        b.lock(&[(9, Read)]).await.unwrap();
        let took = started.elapsed();
        assert!(took >= quick().recovery_window && took < quick().recovery_window * 3, "{took:?}");
        assert_eq!(cluster.disk.borrow().rids.keys().copied().collect::<Vec<_>>(), [Rid(2)]);
    });
}

/// An operator gives up a client that has not come back to the new leader: it is let in no more, and reclaimed when the window
/// is over, until which it may believe in its lease.
#[test]
fn a_client_is_given_up_before_it_comes_back() {
    block_on(async {
        let cluster = Cluster::start(quick()).await;
        let (a, b) = (cluster.client(1).await, cluster.client(2).await);
        a.lock(&[(1, Write)]).await.unwrap();
        cluster.stop_node().await;
        drop(a);
        cluster.start_node().await;
        let evict = |rid| Request::Admin { what: AdminRequest::Evict { rid: Rid(rid) } };
        b.conn.call(evict(1), None).await.unwrap();
        let options = ConnectOptions { timers: quick(), ..ConnectOptions::default() };
        let back = Connection::open(cluster.address(), Identity { rid: Rid(1), fsid: None }, options).await;
        assert!(matches!(back.err(), Some(LinkError::Refused(Refusal::Fenced))), "it is let in no more");
        assert!(cluster.disk.borrow().rids.contains_key(&Rid(1)), "its record stays until the window is over");
        b.lock(&[(1, Write)]).await.unwrap();
        assert_eq!(cluster.disk.borrow().rids.keys().copied().collect::<Vec<_>>(), [Rid(2)]);
        assert!(b.conn.call(evict(1), None).await.is_err(), "there is no such client any more");
    });
}

#[test]
fn status_tells_clients_locks_and_bounds() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let a = cluster.client(0xabc).await;
        a.lock(&[(1, Write)]).await.unwrap();
        let Response::Status { json } = a.conn.call(Request::Status, None).await.unwrap().body else { panic!() };
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(status["term"], 1);
        assert_eq!(status["reactors"][0]["client_list"][0]["rid"], "0000000000000abc");
        assert_eq!(status["reactors"][0]["locks"]["granted"], 1);
        assert_eq!(status["limits"]["requests_per_client"], 1024);
        assert_eq!(status["store"]["fake"], true);
    });
}

#[test]
fn a_silent_holder_costs_itself_its_session() {
    block_on(async {
        let mut cluster = Cluster::start(quick()).await;
        cluster.stop_node().await;
        cluster.options.limits.invalidation = Duration::from_millis(100);
        cluster.start_node().await;
        let a = cluster.client(1).await;
        let b = cluster.client(2).await;
        a.lock(&[(1, Write)]).await.unwrap();
        a.busy.set(true); // never answers
        timeout(Duration::from_secs(5), b.lock(&[(1, Write)])).await.unwrap().unwrap();
        assert!(a.conn.lease_valid_until() < now(), "its lease was over when the lock went on");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(a.conn.closed(), Some(LinkError::Refused(Refusal::Fenced)));
    });
}

#[test]
fn a_wrong_filesystem_is_named() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT).await;
        let identity = Identity { rid: Rid(4), fsid: Some(vellum_base::Fsid([9; 16])) };
        let error = Connection::open(cluster.address(), identity, ConnectOptions::default()).await.err().unwrap();
        let served = vellum_base::Fsid([3; 16]);
        assert_eq!(error, LinkError::Refused(Refusal::OtherFilesystem { served }));
    });
}
