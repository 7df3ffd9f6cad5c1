//! Hostile clients against a real node (P6): each attack is an error to its owner, and another client works meanwhile
//! without noticing. docs/OPERATING.md, "Bounds", names the limits; each is here.

mod attack;
mod fake;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use attack::{Installation, Lab, Raw, TIMERS, VICTIM, encoded, greeting, open};
use vellum_base::prng::Prng;
use vellum_base::{Batch, BatchNo, BlockRange, Ino, ItemOp, Rid, Term};
use vellum_format::Inode;
use vellum_link::{LinkError, MAX_SILENT_PER_SOURCE};
use vellum_rt::native::block_on;
use vellum_server::Limits;
use vellum_wire::{Body, ErrorCode, LockGrant, LockMode, LockName, LockWant, MAX_WANTS, Refusal, Request, Response};

/// Time in which the engine must have closed a socket that a timer of [`TIMERS`] ends.
const SOON: Duration = Duration::from_secs(15);

/// Scenario 21, N4: sockets that say nothing cost nothing and fence nobody; one address gets so many and no more.
#[test]
fn n4_scenario_21_sockets_without_a_greeting_are_few_and_short() {
    let lab = Lab::new(Limits::default());
    lab.assert_victim_works();
    let mut silent: Vec<Raw> = (0..MAX_SILENT_PER_SOURCE + 40).map(|_| Raw::connect(lab.tcp)).collect();
    for extra in silent.iter_mut().skip(MAX_SILENT_PER_SOURCE + 10) {
        assert!(extra.is_closed_within(SOON), "one more than the bound is closed");
    }
    lab.assert_victim_works();
    assert_eq!(lab.clients(), 1, "another source comes in, and none of them is a client");
    for socket in &mut silent {
        assert!(socket.is_closed_within(SOON), "silence ends");
    }
    Raw::up(lab.tcp, Rid(5)); // there is room again
    assert_eq!(lab.status()["reactors"][0]["clients_reclaimed"], 0);
    lab.finish();
}

#[test]
fn a_flood_of_connections_stops_nobody() {
    let lab = Lab::new(Limits::default());
    for round in 0..10 {
        let sockets: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(lab.tcp).ok()).collect();
        drop(sockets);
        if round % 3 == 0 {
            lab.assert_victim_works();
        }
    }
    lab.finish();
}

/// A rid is no secret: it stands in logs. It is useless to others, and its owner does not notice.
#[test]
fn a_forged_rid_is_refused_and_does_no_harm() {
    let lab = Lab::new(Limits::default());
    lab.assert_victim_works();
    let term = Term(lab.status()["term"].as_u64().unwrap());
    for term in [Term(0), term, Term(term.0 + 1)] {
        let mut raw = Raw::connect(lab.tcp);
        raw.socket.write_all(&encoded(&greeting(VICTIM, term))).unwrap();
        assert!(matches!(raw.receive().unwrap().body, Body::Refused(Refusal::Fenced)), "{term}");
        assert!(raw.is_closed_within(SOON));
        lab.assert_victim_works();
    }
    lab.finish(); // on its first socket, without an error
}

#[test]
fn a_greeting_counts_once_on_a_socket() {
    let lab = Lab::new(Limits::default());
    let mut raw = Raw::up(lab.tcp, Rid(21));
    raw.socket.write_all(&encoded(&greeting(Rid(21), Term(0)))).unwrap();
    assert!(raw.is_closed_within(SOON), "a second greeting is a breach");
    let mut raw = Raw::connect(lab.tcp);
    let mut first = encoded(&greeting(Rid(22), Term(0)));
    first.extend(encoded(&greeting(VICTIM, Term(0)))); // behind its own, somebody else's
    raw.socket.write_all(&first).unwrap();
    assert!(raw.is_closed_within(SOON));
    lab.finish();
}

/// Scenario 22: nothing is believed before it is bounded, nothing malformed is processed.
#[test]
fn scenario_22_malformed_frames_cost_their_socket() {
    let lab = Lab::new(Limits::default());
    let mut prng = Prng::new(22);
    for n in 0..60u64 {
        let mut raw = Raw::up(lab.tcp, Rid(2200 + n));
        let mut bytes = raw.frame(Request::ReadData { ranges: vec![BlockRange::new(1, 1)] });
        match n % 6 {
            0 => bytes[48..52].copy_from_slice(&u32::MAX.to_le_bytes()), // control length
            1 => bytes[52..56].copy_from_slice(&u32::MAX.to_le_bytes()), // payload length
            2 => bytes[5] = 200,                                         // kind
            3 => bytes.truncate(20),
            4 => bytes = (0..512).map(|_| prng.next_u64() as u8).collect(),
            _ => {
                let at = prng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << prng.below(8);
            }
        }
        let _ = raw.socket.write_all(&bytes); // it may be closed by now
        if n % 6 == 3 {
            drop(raw); // dies in mid-frame
        } else {
            assert!(raw.is_closed_within(SOON), "attack {n}");
        }
        if n % 12 == 0 {
            lab.assert_victim_works();
        }
    }
    lab.finish();
}

/// A frame that comes a byte now and then is no frame: what is not whole in time ends the socket.
#[test]
fn a_slow_writer_is_closed() {
    let lab = Lab::new(Limits::default());
    let mut greets = Raw::connect(lab.tcp);
    let mut up = Raw::up(lab.tcp, Rid(31));
    let (hello, frame) = (encoded(&greeting(Rid(32), Term(0))), up.frame(Request::StatFs));
    let start = Instant::now();
    let mut open = [true; 2];
    for n in 0.. {
        for (i, (raw, bytes)) in [(&mut greets, &hello), (&mut up, &frame)].into_iter().enumerate() {
            open[i] = open[i] && raw.socket.write_all(&bytes[n % 40..][..1]).is_ok();
        }
        if open == [false; 2] {
            break;
        }
        assert!(start.elapsed() < TIMERS.dead_peer + SOON, "still open: {open:?}");
        std::thread::sleep(Duration::from_millis(400));
    }
    lab.finish();
}

/// A peer that does not read costs the memory of its credits, for the time of one send.
#[test]
fn a_slow_reader_is_closed() {
    let lab = Lab::new(Limits { data_bytes: 8 << 20, ..Limits::default() });
    let mut raw = Raw::up(lab.tcp, Rid(41));
    // 8 MiB of answers; sockets on loopback take 6 at most. Keepalives go on, so it is no dead peer.
    for _ in 0..8 {
        raw.send(Request::ReadData { ranges: vec![BlockRange::new(4096, 256)] });
    }
    let start = Instant::now();
    while {
        let bytes = raw.frame(Request::Keepalive);
        raw.socket.write_all(&bytes).is_ok()
    } {
        assert!(start.elapsed() < SOON, "it is still served");
        std::thread::sleep(Duration::from_millis(700));
    }
    lab.finish();
}

#[test]
fn credits_are_not_passed() {
    let limits = Limits { requests: 16, ..Limits::default() };
    let lab = Lab::new(limits);
    // Locks that wait for another client's stay open.
    let wants = || vec![LockWant { name: LockName::Group(51), mode: LockMode::Write }];
    let mut holder = Raw::up(lab.tcp, Rid(50));
    holder.send(Request::Lock { wants: wants() });
    assert!(matches!(holder.response(), Response::Granted { .. }));
    let mut raw = Raw::up(lab.tcp, Rid(51));
    let flood: Vec<u8> = (0..2 * limits.requests).flat_map(|_| raw.frame(Request::Lock { wants: wants() })).collect();
    let _ = raw.socket.write_all(&flood);
    assert!(raw.is_closed_within(SOON));
    lab.finish();
}

#[test]
fn locks_are_bounded_in_number_and_legal() {
    let lab = Lab::new(Limits::default());
    let mut raw = Raw::up(lab.tcp, Rid(61));
    let want = |group, mode| LockWant { name: LockName::Group(group), mode };
    let descending = vec![want(9, LockMode::Write), want(8, LockMode::Write)];
    let unknown = vec![want(u64::MAX, LockMode::Write)];
    for wants in [descending, unknown] {
        raw.send(Request::Lock { wants });
        assert!(matches!(raw.response(), Response::Error(error) if error.code == ErrorCode::Malformed));
    }
    for page in 0..8 {
        let wants = (0..MAX_WANTS as u64).map(|n| want(1 + page * MAX_WANTS as u64 + n, LockMode::Write)).collect();
        raw.send(Request::Lock { wants });
        assert!(matches!(raw.response(), Response::Granted { grants, .. } if grants.len() == MAX_WANTS));
    }
    lab.assert_victim_works();
    let mut raw = Raw::up(lab.tcp, Rid(62));
    let wants = (0..MAX_WANTS as u64 + 1).map(|n| want(1 << 40 | n, LockMode::Write)).collect();
    raw.send(Request::Lock { wants });
    assert!(raw.is_closed_within(SOON), "more than a message holds");
    lab.finish();
}

/// One identity takes its share of the clients, and leaves the rest to others.
#[test]
fn one_identity_does_not_take_every_place() {
    let lab = Lab::new(Limits { clients: 16, clients_per_identity: 6, ..Limits::default() });
    lab.assert_victim_works();
    let (mut up, mut refused) = (Vec::new(), 0);
    for n in 0..40 {
        let (raw, answer) = Raw::greet(lab.tcp, Rid(n * 0x1357_9bdf));
        match answer {
            Body::Greeted(_) => up.push(raw),
            Body::Refused(Refusal::TooManyClients { limit: 6 }) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((up.len(), refused), (6, 34));
    assert_eq!(lab.clients(), 7, "the one who asks came in, over a unix socket");
    lab.finish();
}

/// What a batch may not: another's items, and any without a lock. (Scenario E14.)
#[test]
fn e14_a_batch_without_its_lock_changes_nothing() {
    let lab = Lab::new(Limits::default());
    let ino = Ino((9 << 56) | (1 << 10) | 5);
    let value = Inode { mode: 0o100600, nlink: 1, size: 666, ..Inode::default() }.encode();
    let batch = Batch { number: BatchNo(1), ops: vec![ItemOp::Put { key: Inode::key(ino), value }] };
    let mut raw = Raw::up(lab.tcp, Rid(71));
    raw.send(Request::Commit { batch });
    assert!(matches!(raw.response(), Response::Error(error) if error.code == ErrorCode::NotPermitted));
    raw.send(Request::Invalidate { name: LockName::Rename, mode: LockMode::Null });
    assert!(matches!(raw.response(), Response::Error(error) if error.code == ErrorCode::Malformed));
    lab.finish();
}

// ---- with certificates

#[test]
fn a_rid_is_bound_to_the_certificate_that_first_used_it() {
    let ours = Installation::new();
    let lab = ours.lab();
    block_on(async {
        let conn = open(&lab, ours.keys("vellum:client/a"), 0xa).await.unwrap();
        for thief in ["vellum:client/b", "vellum:node/a", "vellum:client/b?read-only"] {
            let error = open(&lab, ours.keys(thief), 0xa).await.err().unwrap();
            assert_eq!(error, LinkError::Refused(Refusal::Fenced), "{thief}");
            assert_eq!(open(&lab, ours.keys(thief), VICTIM.0).await.err(), Some(LinkError::Refused(Refusal::Fenced)));
        }
        conn.call(Request::StatFs, None).await.unwrap();
        assert_eq!(conn.attempts(), 1);
        conn.farewell().await.unwrap();
    });
    lab.finish();
}

/// The engine refuses, whatever the gateway believes.
#[test]
fn a_read_only_certificate_changes_nothing() {
    let ours = Installation::new();
    let lab = ours.lab();
    block_on(async {
        let conn = open(&lab, ours.keys("vellum:client/reader?read-only"), 0xb).await.unwrap();
        assert!(conn.greeting().read_only);
        let name = LockName::Group(77);
        let wants = |mode| vec![LockWant { name, mode }];
        let batch = Batch { number: BatchNo(1), ops: vec![] };
        let grant = LockGrant { name, mode: LockMode::Write, write_seq: 1 };
        for request in [
            Request::Commit { batch },
            Request::AllocGroup { near: None },
            Request::Lock { wants: wants(LockMode::Write) },
            Request::Reassert { locks: vec![grant], last: true },
        ] {
            let refused = conn.call(request.clone(), None).await.unwrap_err();
            let LinkError::Remote(error) = refused else { panic!("{request:?}: {refused}") };
            assert_eq!(error.code, ErrorCode::NotPermitted, "{request:?}");
        }
        let data = vellum_base::DmaBuf::zeroed(4096).freeze();
        assert!(matches!(conn.call(Request::WriteData, Some(data)).await, Err(LinkError::Remote(_))));
        conn.call(Request::Lock { wants: wants(LockMode::Read) }, None).await.unwrap();
        conn.call(Request::StatFs, None).await.unwrap();
        conn.farewell().await.unwrap();
        let conn = open(&lab, ours.keys("vellum:client/writer"), 0xc).await.unwrap();
        assert!(!conn.greeting().read_only);
        conn.call(Request::Lock { wants: wants(LockMode::Write) }, None).await.unwrap();
        conn.farewell().await.unwrap();
    });
    lab.finish();
}
