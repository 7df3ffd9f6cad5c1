//! Every message survives its encoding; nothing that a peer can send panics or is believed unbounded.

use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use vellum_base::{Batch, BatchNo, BlockRange, DmaBuf, Epoch, Fsid, Ino, ItemOp, Key, KeyRange, Rid, Term, View};
use vellum_wire::{
    AdminRequest, Body, ErrorCode, FileLock, FileLockMode, FileLockOutcome, FileLockSpace, FilePart, Frame,
    FrameHeader, Greeted, Greeting, HEADER_LEN, HeldFileLock, LockGrant, LockMode, LockName, LockWant, MAX_CONTROL,
    MAX_LISTED, Refusal, Request, Response, StatFs, WireError, WireFault,
};

fn key() -> impl Strategy<Value = Key> {
    any::<[u8; Key::LEN]>().prop_map(Key)
}

fn value() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn view() -> impl Strategy<Value = View> {
    prop_oneof![Just(View::Applied), Just(View::Durable)]
}

fn name() -> impl Strategy<Value = LockName> {
    prop_oneof![Just(LockName::Rename), any::<u64>().prop_map(LockName::Group)]
}

fn mode() -> impl Strategy<Value = LockMode> {
    prop_oneof![Just(LockMode::Null), Just(LockMode::Read), Just(LockMode::Write)]
}

fn wants() -> impl Strategy<Value = Vec<LockWant>> {
    vec((name(), mode()).prop_map(|(name, mode)| LockWant { name, mode }), 0..20)
}

fn grants() -> impl Strategy<Value = Vec<LockGrant>> {
    vec((name(), mode(), any::<u64>()).prop_map(|(name, mode, write_seq)| LockGrant { name, mode, write_seq }), 0..20)
}

fn ranges() -> impl Strategy<Value = Vec<BlockRange>> {
    vec((any::<u64>(), any::<u32>()).prop_map(|(start, len)| BlockRange::new(start, len)), 0..20)
}

fn op() -> impl Strategy<Value = ItemOp> {
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| ItemOp::Put { key, value }),
        key().prop_map(|key| ItemOp::Delete { key }),
        any::<u64>().prop_map(|ino| ItemOp::DeleteInode { ino: Ino(ino) }),
    ]
}

fn ino() -> impl Strategy<Value = Ino> {
    any::<u64>().prop_map(Ino)
}

fn file_lock() -> impl Strategy<Value = FileLock> {
    let space = prop_oneof![Just(FileLockSpace::Posix), Just(FileLockSpace::Flock)];
    let mode = prop_oneof![Just(FileLockMode::Unlocked), Just(FileLockMode::Shared), Just(FileLockMode::Exclusive)];
    (space, mode, any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>())
        .prop_map(|(space, mode, owner, pid, start, end)| FileLock { space, mode, owner, pid, start, end })
}

fn outcome() -> impl Strategy<Value = FileLockOutcome> {
    use FileLockOutcome::*;
    proptest::sample::select(vec![Done, Conflict, Deadlock, Queued, Cancelled, NotWaiting, TooMany])
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        wants().prop_map(|wants| Request::Lock { wants }),
        wants().prop_map(|to| Request::Unlock { to }),
        (grants(), any::<bool>()).prop_map(|(locks, last)| Request::Reassert { locks, last }),
        (vec(key(), 0..20), view()).prop_map(|(keys, view)| Request::Get { keys, view }),
        (key(), key(), any::<u32>(), any::<u32>(), view()).prop_map(|(first, last, max_items, max_bytes, view)| {
            Request::Scan { range: KeyRange { first, last }, max_items, max_bytes, view }
        }),
        Just(Request::WriteData),
        ranges().prop_map(|ranges| Request::ReadData { ranges }),
        (ino(), vec((any::<u64>(), any::<(u64, u32)>()), 0..20)).prop_map(|(ino, parts)| {
            let parts = parts
                .into_iter()
                .map(|(block, (start, len))| FilePart { block, range: BlockRange::new(start, len) })
                .collect();
            Request::ReadFile { ino, parts }
        }),
        (any::<u64>(), vec(op(), 0..20))
            .prop_map(|(number, ops)| Request::Commit { batch: Batch { number: BatchNo(number), ops } }),
        any::<u64>().prop_map(|n| Request::Sync { through: BatchNo(n) }),
        proptest::option::of(ino()).prop_map(|near| Request::AllocGroup { near }),
        (any::<u8>(), any::<u64>(), ino(), any::<u64>(), any::<u32>()).prop_map(
            |(index, from_seq, from_ino, to_seq, max)| Request::Walk { index, from_seq, from_ino, to_seq, max }
        ),
        (vec((ino(), file_lock()).prop_map(|(ino, lock)| HeldFileLock { ino, lock }), 0..20), vec(ino(), 0..20))
            .prop_map(|(locks, opens)| Request::ReassertFiles { locks, opens }),
        (ino(), file_lock(), proptest::option::of(any::<u64>())).prop_map(|(ino, lock, ticket)| Request::FileLock {
            ino,
            lock,
            ticket
        }),
        (ino(), file_lock()).prop_map(|(ino, lock)| Request::FileLockTest { ino, lock }),
        (ino(), any::<u64>()).prop_map(|(ino, ticket)| Request::FileLockCancel { ino, ticket }),
        vec(ino(), 0..20).prop_map(|inos| Request::Opened { inos }),
        vec(ino(), 0..20).prop_map(|inos| Request::Closed { inos }),
        vec(ino(), 0..20).prop_map(|inos| Request::Openers { inos }),
        (any::<u64>(), outcome()).prop_map(|(ticket, outcome)| Request::FileLockDone { ticket, outcome }),
        Just(Request::StatFs),
        Just(Request::Status),
        (0..=MAX_LISTED).prop_map(|max| Request::Admin { what: AdminRequest::Locks { max } }),
        (0..=MAX_LISTED).prop_map(|max| Request::Admin { what: AdminRequest::Clients { max } }),
        any::<u64>().prop_map(|rid| Request::Admin { what: AdminRequest::Evict { rid: Rid(rid) } }),
        any::<u64>().prop_map(|rate_bytes_per_s| Request::Admin { what: AdminRequest::Scrub { rate_bytes_per_s } }),
        (any::<u8>(), any::<u16>())
            .prop_map(|(bucket, reactor)| Request::Admin { what: AdminRequest::MoveShard { bucket, reactor } }),
        prop_oneof![Just(AdminRequest::Grow), Just(AdminRequest::StopScrub), Just(AdminRequest::ScrubStatus)]
            .prop_map(|what| Request::Admin { what }),
        Just(Request::Farewell),
        Just(Request::Keepalive),
        (name(), mode()).prop_map(|(name, mode)| Request::Invalidate { name, mode }),
        Just(Request::CompactAll),
        any::<u32>().prop_map(|jobs| Request::Work { jobs }),
        value().prop_map(|job| Request::Compact { job }),
    ]
}

fn error_code() -> impl Strategy<Value = ErrorCode> {
    use ErrorCode::*;
    proptest::sample::select(vec![
        NoSpace,
        Io,
        Corrupt,
        NotPermitted,
        Malformed,
        Busy,
        Stopping,
        NotFound,
        Unsupported,
        Interrupted,
        Outside,
    ])
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        (grants(), vec(ino(), 0..20)).prop_map(|(grants, opens)| Response::Granted { grants, opens }),
        outcome().prop_map(|outcome| Response::FileLocked { outcome }),
        (proptest::option::of(file_lock()), any::<bool>())
            .prop_map(|(found, own)| Response::FileLockFound { found, own }),
        vec(any::<bool>(), 0..20).prop_map(|open| Response::Openers { open }),
        Just(Response::Noted),
        Just(Response::Unlocked),
        Just(Response::Reasserted),
        vec(proptest::option::of(value()), 0..20).prop_map(|values| Response::Items { values }),
        (vec((key(), value()), 0..20), proptest::option::of(key()))
            .prop_map(|(items, next)| Response::Scanned { items, next }),
        ranges().prop_map(|ranges| Response::Written { ranges }),
        Just(Response::Data),
        (any::<u64>(), any::<u64>())
            .prop_map(|(number, epoch)| Response::Committed { number: BatchNo(number), epoch: Epoch(epoch) }),
        any::<u64>().prop_map(|e| Response::Synced { durable: Epoch(e) }),
        any::<u64>().prop_map(|group| Response::Group { group }),
        (vec((any::<u64>(), ino()), 0..20), proptest::option::of((any::<u64>(), ino())), any::<u64>())
            .prop_map(|(entries, next, through)| Response::Walked { entries, next, through: Epoch(through) }),
        any::<[u64; 4]>().prop_map(|[total_blocks, free_blocks, available_blocks, inodes]| Response::StatFs(StatFs {
            total_blocks,
            free_blocks,
            available_blocks,
            inodes
        })),
        ".*".prop_map(|json| Response::Status { json }),
        Just(Response::Farewelled),
        Just(Response::Alive),
        Just(Response::Invalidated),
        Just(Response::CompactedAll),
        Just(Response::Working),
        value().prop_map(|outcome| Response::Compacted { outcome }),
        (error_code(), ".*").prop_map(|(code, message)| Response::Error(WireError { code, message })),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        8 => request().prop_map(|r| Body::Request(Arc::new(r))),
        8 => response().prop_map(|r| Body::Response(Arc::new(r))),
        1 => (any::<[u8; 16]>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(fsid, protocol, term, rid, flags)| {
            Body::Greeting(Greeting { fsid: Fsid(fsid), protocol, term: Term(term), rid: Rid(rid), flags })
        }),
        1 => (any::<[u8; 16]>(), any::<[u64; 4]>(), any::<[u32; 6]>()).prop_map(|(fsid, w, n)| {
            Body::Greeted(Greeted {
                fsid: Fsid(fsid), term: Term(w[0]), last_batch: BatchNo(w[1]), durable: Epoch(w[2]), protocol: n[0],
                format: n[1], lease_ms: n[2], keepalive_ms: n[3], max_requests: n[4], max_data_bytes: n[5], read_only: n[5] % 2 == 1,
                root: Ino(w[3]),
            })
        }),
        1 => any::<[u8; 16]>().prop_map(|fsid| Body::Refused(Refusal::OtherFilesystem { served: Fsid(fsid) })),
        1 => any::<u32>().prop_map(|served| Body::Refused(Refusal::OtherProtocol { served })),
        1 => Just(Body::Refused(Refusal::Fenced)),
        1 => Just(Body::Refused(Refusal::NotServing)),
        1 => Just(Body::Refused(Refusal::NoWorker)),
        1 => (".*", any::<bool>()).prop_map(|(path, exists)| Body::Refused(Refusal::NoDirectory { path, exists })),
        1 => any::<u32>().prop_map(|limit| Body::Refused(Refusal::TooManyClients { limit })),
        1 => Just(Body::Note),
    ]
}

fn split(bytes: &[u8]) -> Result<(FrameHeader, Bytes), WireFault> {
    let head = bytes.first_chunk::<HEADER_LEN>().ok_or(WireFault::Short { what: "header", needed: HEADER_LEN })?;
    let header = FrameHeader::decode(head)?;
    let control = bytes.get(HEADER_LEN..HEADER_LEN + header.control_len as usize);
    let control = control.ok_or(WireFault::Short { what: "control", needed: header.control_len as usize })?;
    Ok((header, Bytes::copy_from_slice(control)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_survives_its_encoding(body in body(), words in any::<[u64; 4]>(), payload in 0usize..9000) {
        let payload = (payload > 0 && matches!(body, Body::Request(_) | Body::Response(_)))
            .then(|| DmaBuf::zeroed(payload).freeze());
        let frame = Frame { id: words[0], seq: words[1], ack: words[2], durable: Epoch(words[3]), body, payload };
        let mut out = b"before".to_vec();
        frame.encode_head(&mut out);
        prop_assert!(frame.control_len() + HEADER_LEN + 256 >= out.len() - 6);
        let (header, control) = split(&out[6..]).unwrap();
        prop_assert_eq!(header.payload_len as usize, frame.payload.as_ref().map_or(0, |p| p.len()));
        let back = Frame::decode(&header, control, frame.payload.clone()).unwrap();
        prop_assert_eq!((back.id, back.seq, back.ack, back.durable), (frame.id, frame.seq, frame.ack, frame.durable));
        prop_assert_eq!(&back.body, &frame.body);
    }

    #[test]
    fn the_length_is_known_before_encoding(request in request(), response in response()) {
        let mut out = Vec::new();
        request.encode(&mut out);
        prop_assert!(out.len() <= request.control_len());
        out.clear();
        response.encode(&mut out);
        prop_assert!(out.len() <= response.control_len());
    }

    #[test]
    fn a_flipped_bit_is_found(request in request(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let frame = Frame { id: 1, seq: 2, ack: 3, durable: Epoch(4), body: Body::Request(Arc::new(request)), payload: None };
        let mut out = Vec::new();
        frame.encode_head(&mut out);
        let at = at.index(out.len());
        out[at] ^= 1 << bit;
        let verdict = split(&out).and_then(|(header, control)| Frame::decode(&header, control, None));
        prop_assert!(verdict.is_err());
    }

    #[test]
    fn random_bytes_neither_panic_nor_pass(code in 0u16..20, bytes in vec(any::<u8>(), 0..200)) {
        // Message decoders behind the checksum, as a hostile peer can compute one.
        let bytes = Bytes::from(bytes);
        if let Ok(request) = Request::decode(code, bytes.clone()) {
            let mut out = Vec::new();
            request.encode(&mut out);
            prop_assert_eq!(&out[..], &bytes[..], "one encoding for one message");
        }
        let _ = Response::decode(code, bytes.clone());
        let _ = Greeting::decode(bytes.clone());
        let _ = Greeted::decode(bytes.clone());
        let _ = Refusal::decode(bytes.clone());
        if let Some(head) = bytes.first_chunk::<HEADER_LEN>() {
            prop_assert!(FrameHeader::decode(head).is_err());
        }
    }
}

/// Scenario 22: a huge length is believed before it is bounded.
#[test]
fn lengths_are_bounded_before_they_are_believed() {
    let frame = Frame::unsequenced(Body::Request(Arc::new(Request::StatFs)), 0, Epoch(0));
    let mut out = Vec::new();
    frame.encode_head(&mut out);
    let with = |at: usize, value: u32| {
        let mut head = out.clone();
        head[at..at + 4].copy_from_slice(&value.to_le_bytes());
        split(&head)
    };
    assert!(matches!(with(48, MAX_CONTROL as u32 + 1), Err(WireFault::Bound { what: "control length", .. })));
    assert!(matches!(with(52, u32::MAX), Err(WireFault::Bound { what: "payload length", .. })));
    // A list that says four billion, with nothing behind it.
    let lie = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff]);
    for code in 1..17 {
        assert!(!matches!(Request::decode(code, lie.clone()), Ok(Request::Get { .. })));
        assert!(Response::decode(code, lie.clone()).is_err(), "response {code}");
    }
    // A list within its bound whose bytes are not there is not allocated either.
    let mut short = 60_000u32.to_le_bytes().to_vec();
    short.extend_from_slice(&[0; 100]);
    assert!(matches!(Request::decode(4, short.into()), Err(WireFault::Short { what: "keys", .. })));
}
