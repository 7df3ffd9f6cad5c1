//! Client records over the life of a node: N5, N6, and whose rid it is after a restart (scenarios 14 and 23).

mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fake::Cluster;
use vellum_base::{BatchNo, Epoch, Fsid, Rid, Term};
use vellum_format::{ClientIdentity, Origin, Principal};
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError};
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::net::Endpoint;
use vellum_rt::{sleep, timeout};
use vellum_wire::{Body, Frame, FrameHeader, FrameKind, Greeting, HEADER_LEN, PROTOCOL, Refusal};

async fn open(cluster: &Cluster, rid: u64) -> Result<Rc<Connection>, LinkError> {
    let options = ConnectOptions { timers: cluster.options.timers, ..ConnectOptions::default() };
    Connection::open(cluster.address(), Identity { rid: Rid(rid), fsid: None }, options).await
}

fn record(cluster: &Cluster, rid: u64) -> Option<Bytes> {
    cluster.disk.borrow().rids.get(&Rid(rid)).map(|(identity, _)| identity.clone())
}

#[test]
fn n5_a_record_is_there_before_the_greeting_is_answered_and_until_the_reclaim_is_over() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT.faster(20)).await;
        let conn = open(&cluster, 5).await.unwrap();
        let identity = ClientIdentity::decode(&record(&cluster, 5).expect("answered, so recorded")).unwrap();
        assert_eq!(identity.principal, Principal::Uid(own_uid()));
        assert!(matches!(identity.origin, Origin::Process(process) if process.pid == std::process::id()));
        drop(conn); // gone without a farewell: the record stays for the window
        sleep(Duration::from_millis(100)).await;
        assert!(record(&cluster, 5).is_some());
        timeout(Duration::from_secs(10), async {
            while record(&cluster, 5).is_some() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("reclaimed");
    });
}

/// Of this process, as the engine sees it in its socket.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// The answer to a greeting that is written by hand.
async fn greet(cluster: &Cluster, rid: u64, term: u64) -> FrameKind {
    let Address::Net(Endpoint::Unix(path)) = cluster.address() else { unreachable!() };
    let mut socket = UnixStream::connect(path).unwrap();
    let greeting = Greeting { fsid: Fsid::default(), protocol: PROTOCOL, term: Term(term), rid: Rid(rid), flags: 0 };
    let mut out = Vec::new();
    Frame::unsequenced(Body::Greeting(greeting), 0, Epoch(0)).encode_head(&mut out);
    socket.write_all(&out).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut answer = [0; HEADER_LEN];
    timeout(Duration::from_secs(10), async {
        while socket.read_exact(&mut answer).is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("an answer");
    FrameHeader::decode(&answer).unwrap().kind
}

#[test]
fn n6_scenario_23_a_reclaimed_rid_is_refused_by_every_later_leader() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT.faster(20)).await;
        let dead = Rc::try_unwrap(cluster.client(23).await).ok().expect("the only user");
        let term = dead.conn.greeting().term.0;
        drop(dead); // without a farewell
        timeout(Duration::from_secs(10), async {
            while record(&cluster, 23).is_some() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("reclaimed");
        for leader in 1..=3 {
            assert_eq!(greet(&cluster, 23, term).await, FrameKind::Refused, "leader {leader}");
            cluster.stop_node().await;
            cluster.start_node().await;
        }
        assert!(record(&cluster, 23).is_none());
        assert_eq!(greet(&cluster, 24, 0).await, FrameKind::Greeted, "others come in");
    });
}

/// The record binds also after a restart: a rid of another user, of a certificate, and of a record that nobody can read.
#[test]
fn a_record_of_somebody_else_admits_nobody_here() {
    block_on(async {
        let cluster = Cluster::start(Timers::DEFAULT.faster(20)).await;
        cluster.stop_node().await;
        let of = |principal| ClientIdentity { principal, origin: Origin::Elsewhere, worker: None }.encode();
        let own = Principal::Uid(own_uid());
        let records = [
            (1, of(Principal::Uid(own_uid() + 1))),
            (2, of(Principal::Certificate("client/gw".into()))),
            (3, of(Principal::Engine)),
            (4, of(Principal::Anybody)),
            (5, Bytes::from_static(&[1, 0, 0, 0, 0, 0])),
            (6, Bytes::new()),
            (7, of(own)),
        ];
        for (rid, identity) in records {
            cluster.disk.borrow_mut().rids.insert(Rid(rid), (identity, BatchNo(0)));
        }
        cluster.start_node().await;
        for rid in 1..=6 {
            assert_eq!(open(&cluster, rid).await.err(), Some(LinkError::Refused(Refusal::Fenced)), "record {rid}");
        }
        open(&cluster, 7).await.expect("its own");
    });
}
