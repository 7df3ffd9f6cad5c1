//! Connections over every transport: calls, data, broken sockets, new terms, strangers.

mod server;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::Duration;

use server::{Answer, Server};
use vellum_base::{BatchNo, BlockRange, DmaBuf, DmaSlice, Epoch, Rid};
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError};
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::{sleep, timeout};
use vellum_wire::{LockMode, LockName, Refusal, Request, Response, WireError};

fn options(timers: Timers) -> ConnectOptions {
    ConnectOptions {
        timers,
        open_within: Some(Duration::from_secs(5)),
        insecure_network: true,
        ..ConnectOptions::default()
    }
}

async fn connect(address: Address, rid: u64, timers: Timers) -> Rc<Connection> {
    Connection::open(address, Identity { rid: Rid(rid), fsid: None }, options(timers)).await.unwrap()
}

/// Syncs echo their number; data is counted and given back.
fn echo(handled: Rc<RefCell<Vec<u64>>>) -> Answer {
    Rc::new(move |request, payload| {
        let handled = handled.clone();
        if let Request::Sync { through } = &request {
            handled.borrow_mut().push(through.0);
        }
        Box::pin(async move {
            match request {
                Request::Sync { through } => (Response::Synced { durable: Epoch(through.0) }, None),
                Request::WriteData => {
                    let len = payload.map_or(0, |p| p.iter().map(|b| u32::from(*b)).sum());
                    (Response::Written { ranges: vec![BlockRange::new(1, len)] }, None)
                }
                Request::ReadData { ranges } => {
                    let mut buf = DmaBuf::new(ranges.iter().map(|r| r.len_bytes()).sum());
                    buf.fill(9);
                    (Response::Data, Some(buf.freeze()))
                }
                Request::Farewell => (Response::Farewelled, None),
                _ => (Response::error(vellum_wire::ErrorCode::Unsupported, "no"), None),
            }
        })
    })
}

async fn everything_works(address: Address) {
    let conn = connect(address, 11, Timers::DEFAULT).await;
    assert_eq!(conn.greeting().fsid.0, [7; 16]);
    let calls: Vec<_> = (1..200).map(|n| (n, conn.call(Request::Sync { through: BatchNo(n) }, None))).collect();
    for (n, call) in calls {
        assert_eq!(call.await.unwrap().body, Response::Synced { durable: Epoch(n) });
    }
    for len in [1usize, 4096, 70_000, 1 << 20] {
        let mut buf = DmaBuf::zeroed(len);
        buf[len - 1] = 5;
        buf[0] += 1;
        let sum = buf.iter().map(|b| u32::from(*b)).sum();
        let reply = conn.call(Request::WriteData, Some(buf.freeze())).await.unwrap();
        assert_eq!(reply.body, Response::Written { ranges: vec![BlockRange::new(1, sum)] });
    }
    let reply = conn.call(Request::ReadData { ranges: vec![BlockRange::new(3, 256)] }, None).await.unwrap();
    let data: DmaSlice = reply.payload.unwrap();
    assert!(data.len() == 1 << 20 && data.iter().all(|b| *b == 9) && data.is_block_aligned());
    let refused = conn.call(Request::StatFs, None).await.unwrap_err();
    assert!(matches!(refused, LinkError::Remote(WireError { .. })));
    let long = conn.call(Request::WriteData, Some(DmaBuf::zeroed((1 << 20) + 1).freeze())).await.unwrap_err();
    assert!(matches!(long, LinkError::TooLong { .. }));
    conn.farewell().await.unwrap();
    assert_eq!(conn.call(Request::StatFs, None).await.unwrap_err(), LinkError::Closed);
}

#[test]
fn unix_sockets_carry_calls_and_data() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let at = format!("unix:{}/s", dir.path().display());
        let acceptor = Server::new(Timers::DEFAULT, echo(Rc::default())).listen(&at);
        everything_works(Address::Net(acceptor.local_endpoint().clone())).await;
    });
}

#[test]
fn tcp_carries_calls_and_data() {
    block_on(async {
        let acceptor = Server::new(Timers::DEFAULT, echo(Rc::default())).listen("tcp:127.0.0.1:0");
        everything_works(Address::Net(acceptor.local_endpoint().clone())).await;
    });
}

#[test]
fn one_process_needs_no_socket() {
    block_on(async {
        let dialer = Server::new(Timers::DEFAULT, echo(Rc::default())).in_process();
        everything_works(Address::InProcess(dialer)).await;
    });
}

/// N1: sockets break at any time, each request is handled once and answered once.
#[test]
fn broken_sockets_are_not_noticed_by_callers() {
    block_on(async {
        let handled = Rc::new(RefCell::new(Vec::new()));
        let server = Server::new(Timers::DEFAULT.faster(20), echo(handled.clone()));
        let acceptor = server.listen("tcp:127.0.0.1:0");
        let conn = connect(Address::Net(acceptor.local_endpoint().clone()), 12, server.timers).await;
        let mut n = 0;
        for _ in 0..40 {
            let calls: Vec<_> = (0..20)
                .map(|_| {
                    n += 1;
                    conn.call(Request::Sync { through: BatchNo(n) }, None)
                })
                .collect();
            sleep(Duration::from_micros(n * 3)).await;
            conn.break_socket();
            for call in calls {
                call.await.unwrap();
            }
        }
        assert_eq!(*handled.borrow(), (1..=n).collect::<Vec<_>>(), "once and in order");
        assert!(conn.attempts() > 10);
    });
}

#[test]
fn a_new_term_is_recovered_before_calls_go_on() {
    block_on(async {
        let handled = Rc::new(RefCell::new(Vec::new()));
        let server = Server::new(Timers::DEFAULT.faster(20), {
            let handled = handled.clone();
            Rc::new(move |request, _| {
                let handled = handled.clone();
                Box::pin(async move {
                    match request {
                        Request::Sync { through } if through.0 == 1 && handled.borrow().is_empty() => {
                            handled.borrow_mut().push("hangs");
                            std::future::pending().await
                        }
                        Request::Sync { .. } => handled.borrow_mut().push("sync"),
                        Request::Reassert { .. } => {
                            sleep(Duration::from_millis(20)).await;
                            handled.borrow_mut().push("reassert");
                            return (Response::Reasserted, None);
                        }
                        _ => {}
                    }
                    (Response::Synced { durable: Epoch(1) }, None)
                })
            })
        });
        let dialer = server.in_process();
        let conn = connect(Address::InProcess(dialer), 13, server.timers).await;
        let weak = Rc::downgrade(&conn);
        conn.on_new_term(Rc::new(move |greeted| {
            assert_eq!(greeted.term.0, 2);
            let conn = weak.upgrade().unwrap();
            Box::pin(async move {
                conn.call_recovery(Request::Reassert { locks: vec![], last: true }, None).await.unwrap();
            })
        }));
        let call = conn.call(Request::Sync { through: BatchNo(1) }, None);
        sleep(Duration::from_millis(20)).await;
        server.restart();
        call.await.unwrap();
        assert_eq!(*handled.borrow(), ["hangs", "reassert", "sync"]);
        assert_eq!(conn.greeting().term.0, 2);
    });
}

#[test]
fn the_engine_calls_its_clients_and_is_heard_in_order() {
    block_on(async {
        let server = Server::new(Timers::DEFAULT, {
            Rc::new(|_, _| Box::pin(async { (Response::Granted { grants: vec![], opens: vec![] }, None) }))
        });
        let dialer = server.in_process();
        let conn = connect(Address::InProcess(dialer), 14, server.timers).await;
        let seen = Rc::new(RefCell::new(Vec::new()));
        conn.set_handler({
            let seen = seen.clone();
            Rc::new(move |request| {
                seen.borrow_mut().push(format!("{request:?}"));
                Box::pin(async { Response::Invalidated })
            })
        });
        let name = LockName::Group(3);
        let granted = conn.call_observed(Request::Lock { wants: vec![] }, None, {
            let seen = seen.clone();
            move |_| seen.borrow_mut().push("granted".into())
        });
        let session = server.sessions.borrow().values().next().unwrap().clone();
        sleep(Duration::from_millis(5)).await; // the grant lies in the client's socket
        let reply = session.call(Request::Invalidate { name, mode: LockMode::Null }).await.unwrap();
        assert_eq!(reply.body, Response::Invalidated);
        granted.await.unwrap();
        assert_eq!(seen.borrow()[0], "granted");
        assert!(seen.borrow()[1].starts_with("Invalidate"));
        assert_eq!(seen.borrow().len(), 2);
    });
}

#[test]
fn a_client_that_does_not_come_back_expires_and_is_refused() {
    block_on(async {
        let server = Server::new(Timers::DEFAULT.faster(100), echo(Rc::default()));
        let acceptor = server.listen("tcp:127.0.0.1:0");
        let at = Address::Net(acceptor.local_endpoint().clone());
        let conn = connect(at, 15, server.timers).await;
        assert!(conn.lease_valid_until() > vellum_rt::now());
        // The client's own timers are stopped by blocking its thread's reactor: here, by dropping the acceptor and breaking.
        drop(acceptor);
        conn.break_socket();
        timeout(Duration::from_secs(5), async {
            while server.expired.borrow().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert!(conn.lease_valid_until() < vellum_rt::now(), "the lease was over before the client was reclaimed");
        assert_eq!(*server.expired.borrow(), [Rid(15)]);
    });
}

/// Scenarios 21 and 22: strangers that say nothing, half a greeting, garbage, or a huge length cost nobody anything.
#[test]
fn strangers_cost_only_themselves() {
    block_on(async {
        let server = Server::new(Timers::DEFAULT.faster(10), echo(Rc::default()));
        let acceptor = server.listen("tcp:127.0.0.1:0");
        let endpoint = acceptor.local_endpoint().clone();
        let vellum_rt::net::Endpoint::Tcp(addr) = endpoint else { unreachable!() };
        let healthy = connect(Address::Net(endpoint.clone()), 16, server.timers).await;
        let closed = Rc::new(Cell::new(0));
        let stranger = |bytes: Vec<u8>| {
            let mut socket = std::net::TcpStream::connect(addr).unwrap();
            socket.write_all(&bytes).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let mut frame = Vec::new();
        let keepalive = vellum_wire::Body::Request(std::sync::Arc::new(Request::Keepalive));
        vellum_wire::Frame::unsequenced(keepalive, 0, Epoch(0)).encode_head(&mut frame);
        let mut huge = frame.clone();
        huge[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut sockets = vec![
            stranger(vec![]),
            stranger(frame[..20].to_vec()),
            stranger(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: something long enough\r\n\r\n".to_vec()),
            stranger(frame),
            stranger(huge),
        ];
        let all_closed = async {
            while !sockets.is_empty() {
                sleep(Duration::from_millis(5)).await;
                sockets.retain_mut(|socket| match socket.read(&mut [0; 64]) {
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => true,
                    _ => {
                        closed.set(closed.get() + 1);
                        false
                    }
                });
            }
        };
        timeout(Duration::from_secs(3), all_closed).await.unwrap();
        assert_eq!(closed.get(), 5);
        healthy.call(Request::Sync { through: BatchNo(1) }, None).await.unwrap();
        assert_eq!(server.sessions.borrow().len(), 1);
        assert!(server.expired.borrow().is_empty(), "nobody was fenced");
    });
}

#[test]
fn a_refused_client_is_told_why() {
    block_on(async {
        let server = Server::new(Timers::DEFAULT, echo(Rc::default()));
        let dialer = server.in_process();
        let conn = connect(Address::InProcess(dialer), 17, server.timers).await;
        server.sessions.borrow_mut().drain().for_each(|(_, session)| session.end());
        let error = conn.call(Request::StatFs, None).await.unwrap_err();
        assert_eq!(error, LinkError::Refused(Refusal::Fenced));
        assert_eq!(conn.closed(), Some(LinkError::Refused(Refusal::Fenced)));
        let unique: HashSet<_> = [conn.rid()].into();
        assert_eq!(unique.len(), 1);
    });
}

/// A client that has greeted and then sends garbage, dies in mid-frame, or passes its credits: its socket ends, and the
/// others go on.
#[test]
fn hostile_clients_cost_only_their_socket() {
    block_on(async {
        let server = Server::new(Timers::DEFAULT.faster(10), {
            Rc::new(|_, _| Box::pin(async { std::future::pending().await })) // nothing is ever answered
        });
        let acceptor = server.listen("tcp:127.0.0.1:0");
        let vellum_rt::net::Endpoint::Tcp(addr) = acceptor.local_endpoint().clone() else { unreachable!() };
        let frame = |id: u64, seq: u64, request: Request| {
            let mut out = Vec::new();
            let body = vellum_wire::Body::Request(std::sync::Arc::new(request));
            vellum_wire::Frame { id, seq, ack: 0, durable: Epoch(0), body, payload: None }.encode_head(&mut out);
            out
        };
        let flood: Vec<u8> = (1..200).flat_map(|n| frame(n, n, Request::StatFs)).collect();
        let mut bad_crc = frame(
            1,
            1,
            Request::Scan {
                range: vellum_base::KeyRange::ALL,
                max_items: 1,
                max_bytes: 1,
                view: vellum_base::View::Applied,
            },
        );
        let end = bad_crc.len() - 1;
        bad_crc[end] ^= 1;
        let attacks = [
            vec![0xa5; 5000],
            frame(1, 1, Request::StatFs)[..30].to_vec(),
            frame(1, 7, Request::StatFs),
            [frame(1, 1, Request::StatFs), frame(1, 2, Request::StatFs)].concat(),
            bad_crc,
            flood,
        ];
        for (i, attack) in attacks.into_iter().enumerate() {
            let rid = Rid(1000 + i as u64);
            let greeting = vellum_wire::Greeting {
                fsid: vellum_base::Fsid::default(),
                protocol: vellum_wire::PROTOCOL,
                term: vellum_base::Term(0),
                rid,
                flags: 0,
            };
            let mut socket = std::net::TcpStream::connect(addr).unwrap();
            let mut out = Vec::new();
            vellum_wire::Frame::unsequenced(vellum_wire::Body::Greeting(greeting), 0, Epoch(0)).encode_head(&mut out);
            socket.write_all(&out).unwrap();
            sleep(Duration::from_millis(20)).await;
            let session = server.sessions.borrow()[&rid].clone();
            assert!(session.is_up());
            socket.write_all(&attack).unwrap();
            if i == 1 {
                drop(socket); // dies in mid-frame
            }
            timeout(Duration::from_millis(200), async {
                while session.is_up() {
                    sleep(Duration::from_millis(2)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("attack {i} was not noticed"));
            assert!(session.load().0 <= server::WINDOW.max_requests as usize);
        }
    });
}

/// Scenario 18, and a leader that accepts and says nothing: a client of several endpoints finds the one that serves.
#[test]
fn a_client_of_several_endpoints_finds_the_one_that_leads() {
    block_on(async {
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // a paused leader: its kernel accepts
        let handled = Rc::new(RefCell::new(Vec::new()));
        let (first, second) = (
            Server::new(Timers::DEFAULT.faster(10), echo(handled.clone())),
            Server::new(Timers::DEFAULT.faster(10), echo(handled.clone())),
        );
        second.term.set(2);
        let acceptor = first.listen("tcp:127.0.0.1:0");
        let later = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoints =
            format!("tcp:{dead} tcp:{} {} tcp:{later}", silent.local_addr().unwrap(), acceptor.local_endpoint());
        let endpoints: Vec<_> = endpoints.split(' ').map(|text| text.parse().unwrap()).collect();
        let conn = connect(Address::from(endpoints), 18, first.timers).await;
        conn.call(Request::Sync { through: BatchNo(1) }, None).await.unwrap();
        // The leader dies; another one takes over elsewhere. The call waits and is answered there.
        drop(acceptor);
        first.restart();
        let call = conn.call(Request::Sync { through: BatchNo(2) }, None);
        let attempts = conn.attempts();
        sleep(Duration::from_millis(300)).await;
        assert!(conn.attempts() - attempts < 60, "no hammering: {} attempts", conn.attempts() - attempts);
        let _acceptor = second.listen(&format!("tcp:{later}"));
        timeout(Duration::from_secs(20), call).await.unwrap().unwrap();
        assert_eq!(conn.greeting().term.0, 2);
        assert_eq!(*handled.borrow(), [1, 2]);
    });
}

#[test]
fn a_cluster_that_nobody_leads_is_an_error_in_time() {
    block_on(async {
        let dead = |_| {
            let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            format!("tcp:{at}").parse().unwrap()
        };
        let options = ConnectOptions { open_within: Some(Duration::from_millis(300)), ..ConnectOptions::default() };
        let address = Address::AnyOf((0..3).map(dead).collect());
        let opened = Connection::open(address, Identity { rid: Rid(19), fsid: None }, options).await;
        assert_eq!(opened.err(), Some(LinkError::TimedOut));
    });
}
