//! Legal inputs of every target, to begin from.

use std::sync::Arc;

use bytes::Bytes;
use vellum_base::{
    Batch, BatchNo, BlockRange, Bucket, Epoch, Fsid, Ino, ItemOp, Key, KeyRange, Rid, Slot, Term, View, Zone,
};
use vellum_format::{ClientIdentity, Origin, Principal, ProcessId};
use vellum_wire::quorum::{NoAuth, QuorumDatagram, QuorumKind, QuorumMessage};
use vellum_wire::{
    Body, ErrorCode, FilePart, Frame, Greeted, Greeting, LockGrant, LockMode, LockName, LockWant, PROTOCOL, Refusal,
    Request, Response,
};

const FSID: Fsid = Fsid([7; 16]);

fn key(n: u64) -> Key {
    Key::new(Bucket(n as u8), Zone::Fs, n, 3, n, 0, 0)
}

pub fn requests() -> Vec<Request> {
    let want = |group, mode| LockWant { name: LockName::Group(group), mode };
    let grant = |name| LockGrant { name, mode: LockMode::Write, write_seq: 9 };
    let ops = vec![
        ItemOp::Put { key: key(1), value: Bytes::from_static(b"value") },
        ItemOp::Put { key: key(2), value: Bytes::new() },
        ItemOp::Delete { key: key(3) },
    ];
    vec![
        Request::Lock { wants: vec![want(1, LockMode::Read), want(2, LockMode::Write)] },
        Request::Unlock { to: vec![want(1, LockMode::Null)] },
        Request::Reassert { locks: vec![grant(LockName::Rename), grant(LockName::Group(5))], last: true },
        Request::Get { keys: vec![key(1), key(2)], view: View::Durable },
        Request::Scan { range: KeyRange::ALL, max_items: 10, max_bytes: 1000, view: View::Applied },
        Request::WriteData,
        Request::ReadData { ranges: vec![BlockRange::new(3, 4), BlockRange::new(9, 1)] },
        Request::ReadFile { ino: Ino(5 << 10), parts: vec![FilePart { block: 7, range: BlockRange::new(3, 4) }] },
        Request::Commit { batch: Batch { number: BatchNo(4), ops } },
        Request::Sync { through: BatchNo(4) },
        Request::AllocGroup { near: Some(Ino(1 << 20)) },
        Request::Walk { index: 1, from_seq: 1, from_ino: Ino(2), to_seq: u64::MAX, max: 100 },
        Request::StatFs,
        Request::Status,
        Request::Farewell,
        Request::Keepalive,
        Request::Invalidate { name: LockName::Group(7), mode: LockMode::Read },
    ]
}

pub fn responses() -> Vec<Response> {
    vec![
        Response::Granted {
            grants: vec![LockGrant { name: LockName::Group(1), mode: LockMode::Read, write_seq: 3 }],
            opens: vec![],
        },
        Response::Unlocked,
        Response::Items { values: vec![None, Some(Bytes::from_static(b"x"))] },
        Response::Scanned { items: vec![(key(1), Bytes::from_static(b"y"))], next: Some(key(2)) },
        Response::Written { ranges: vec![BlockRange::new(1, 2)] },
        Response::Data,
        Response::Committed { number: BatchNo(1), epoch: Epoch(2) },
        Response::Group { group: 8 },
        Response::Walked { entries: vec![(1, Ino(2))], next: Some((3, Ino(4))), through: Epoch(5) },
        Response::Status { json: "{}".into() },
        Response::error(ErrorCode::NoSpace, "full"),
    ]
}

pub fn greetings() -> Vec<Greeting> {
    let greeting = Greeting { fsid: FSID, protocol: PROTOCOL, term: Term(0), rid: Rid(1), flags: 0 };
    vec![greeting.clone(), Greeting { term: Term(18), ..greeting }]
}

pub fn greeted() -> Greeted {
    Greeted {
        fsid: FSID,
        term: Term(17),
        protocol: PROTOCOL,
        format: 1,
        last_batch: BatchNo(3),
        durable: Epoch(4),
        lease_ms: 9000,
        keepalive_ms: 1000,
        max_requests: 100,
        max_data_bytes: 1 << 20,
        read_only: true,
        root: Ino::ROOT,
    }
}

pub fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::OtherFilesystem { served: FSID },
        Refusal::OtherProtocol { served: 3 },
        Refusal::Fenced,
        Refusal::NotServing,
        Refusal::TooManyClients { limit: 5 },
        Refusal::NoDirectory { path: "/a".into(), exists: true },
    ]
}

/// Whole frames without payloads, as they stand on a socket.
pub fn frames() -> Vec<Vec<u8>> {
    let bodies = requests()
        .into_iter()
        .map(|request| Body::Request(Arc::new(request)))
        .chain(responses().into_iter().map(|response| Body::Response(Arc::new(response))))
        .chain(greetings().into_iter().map(Body::Greeting))
        .chain(refusals().into_iter().map(Body::Refused))
        .chain([Body::Greeted(greeted()), Body::Note]);
    bodies
        .map(|body| {
            let mut out = Vec::new();
            Frame { id: 5, seq: 6, ack: 7, durable: Epoch(8), body, payload: None }.encode_head(&mut out);
            out
        })
        .collect()
}

pub fn datagrams() -> Vec<QuorumDatagram> {
    use QuorumKind::*;
    [RequestVote, Vote, PreVote, PreVoteAnswer, Heartbeat, HeartbeatAnswer, Resignation, Leave, LeaveAnswer]
        .into_iter()
        .map(|kind| {
            let term = Term::of_round(3, Slot(2));
            let granted = matches!(kind, Vote | PreVoteAnswer);
            let message = QuorumMessage { kind, term, round: 4, rid: Rid(5), granted, written_ago_us: 6 };
            QuorumDatagram { fsid: FSID, from: Slot(2), to: Slot(1), message }
        })
        .collect()
}

pub fn plain_datagrams() -> Vec<Vec<u8>> {
    datagrams().iter().map(|datagram| datagram.encode(&NoAuth)).collect()
}

pub fn identities() -> Vec<Vec<u8>> {
    let process = ProcessId { boot: [1; 16], namespace: 2, pid: 3, start: 4 };
    [
        (Principal::Anybody, Origin::Elsewhere),
        (Principal::Engine, Origin::Engine),
        (Principal::Uid(1000), Origin::Process(process)),
        (Principal::Certificate("client/gw".into()), Origin::Elsewhere),
    ]
    .into_iter()
    .map(|(principal, origin)| ClientIdentity { principal, origin, worker: None }.encode().to_vec())
    .collect()
}

pub fn subjects() -> Vec<Vec<u8>> {
    ["vellum:node/a", "vellum:client/gw-1", "vellum:client/gw?read-only"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Certificates of an authority that was made for this.
pub fn certificates() -> Vec<Vec<u8>> {
    unhex(include_str!("certificates.hex"))
}

/// The key files of a node, of a client, and of the authority that made them for this and nothing else. Zeros are between
/// them.
pub fn key_files() -> Vec<Vec<u8>> {
    unhex(include_str!("keys.hex"))
}

fn unhex(lines: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        u8::from_str_radix(pair, 16).expect("the samples are hex")
    };
    lines.lines().map(|line| line.as_bytes().chunks_exact(2).map(byte).collect()).collect()
}
