//! Random bytes as requests: nothing panics, and what can be answered is answered exactly once and well-formed.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vellum_rt as rt;
use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{InHeader, Opcode, OutHeader};
use crate::buffer;
use crate::context::Context;
use crate::dirents::Dirents;
use crate::filesystem::{Filesystem, Result};
use crate::init::{MAX_WRITE, Wants};
use crate::name::Name;
use crate::session::Session;
use crate::types::{Attr, Entry, Errno, Payload, ReadRequest, Statfs, WriteRequest};

/// Answers everything, sometimes wrongly, sometimes later.
struct AnyFs;

impl Filesystem for AnyFs {
    fn forget(&self, _ino: u64, _lookups: u64) {}
    async fn lookup(&self, _ctx: &Context, parent: u64, name: &Name) -> Result<Entry> {
        if name.len() > 3 { Err(Errno::ENOENT) } else { Ok(Entry { generation: parent, ..Entry::default() }) }
    }
    async fn getattr(&self, _ctx: &Context, _ino: u64, _fh: Option<u64>) -> Result<(Attr, Duration)> {
        Ok((Attr::default(), Duration::MAX))
    }
    async fn read(&self, _ctx: &Context, ino: u64, request: &ReadRequest) -> Result<Payload> {
        if ino.is_multiple_of(2) {
            rt::yield_now().await;
        }
        Ok(Payload::Bytes(vec![1; request.size as usize % 2000 + (ino % 3) as usize]))
    }
    async fn write(&self, _ctx: &Context, _ino: u64, request: WriteRequest) -> Result<u32> {
        Ok(request.data.len() as u32)
    }
    async fn fsync(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }
    async fn readdir(&self, _ctx: &Context, _ino: u64, _fh: u64, offset: u64, list: &mut Dirents) -> Result<()> {
        while list.push(offset, offset.wrapping_add(1), 8, b"name") && list.room() > 100_000 {}
        Ok(())
    }
    async fn fsyncdir(&self, _ctx: &Context, _ino: u64, _fh: u64, _data_only: bool) -> Result<()> {
        Ok(())
    }
    async fn statfs(&self, _ctx: &Context, _ino: u64) -> Result<Statfs> {
        Ok(Statfs::default())
    }
    async fn syncfs(&self, _ctx: &Context) -> Result<()> {
        Ok(())
    }
    async fn getxattr(&self, _ctx: &Context, _ino: u64, _name: &Name) -> Result<Payload> {
        Ok(Payload::Bytes(vec![0; 9]))
    }
    async fn setxattr(&self, _c: &Context, _i: u64, _n: &Name, value: &[u8], _flags: u32, _k: bool) -> Result<()> {
        if value.is_empty() { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// One message: mostly a known opcode and a true length, with arguments that are sometimes almost right.
fn message() -> impl Strategy<Value = (InHeader, Vec<u8>)> {
    let opcode = prop_oneof![9 => 1u32..54, 1 => any::<u32>()];
    let small = prop_oneof![Just(0u8), Just(1u8), Just(b'a'), any::<u8>()];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(small, 0..200),
        (prop::collection::vec(Just(0u8), 0..90), "[a-c./]{0,4}\0[a-c]{1,300}\0").prop_map(|(fixed, names)| [
            &fixed[..],
            names.as_bytes()
        ]
        .concat()),
    ];
    let len_error = prop_oneof![20 => Just(0i64), 1 => -50i64..50];
    (opcode, any::<u64>(), any::<u64>(), body, len_error, prop_oneof![9 => Just(0u16), 1 => any::<u16>()]).prop_map(
        |(opcode, unique, nodeid, body, len_error, total_extlen)| {
            let len = (size_of::<InHeader>() + body.len()) as i64 + len_error;
            let header = InHeader { len: len as u32, opcode, unique, nodeid, total_extlen, ..InHeader::default() };
            (header, body)
        },
    )
}

async fn answers(session: &Rc<Session<AnyFs>>, kernel: &OwnedFd, header: &InHeader, body: &[u8]) -> Vec<Vec<u8>> {
    let mut buf = buffer::new(MAX_WRITE);
    let at = buffer::room(&buf).start;
    let message = [header.as_bytes(), body].concat();
    buf[at..at + message.len()].copy_from_slice(&message);
    session.handle(buf, message.len()).await;
    for _ in 0..10 {
        rt::yield_now().await;
    }
    let mut room = vec![0u8; 1 << 18];
    let mut all = Vec::new();
    while let Ok((_, len)) = recv(kernel, &mut room[..], RecvFlags::DONTWAIT) {
        all.push(room[..len].to_vec());
    }
    all
}

fn wants_answer(header: &InHeader, body: &[u8]) -> bool {
    let whole = header.len as usize == size_of::<InHeader>() + body.len();
    let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt].map(|op| op as u32).contains(&header.opcode);
    whole && header.total_extlen as usize * 8 <= body.len() && !silent
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_are_answered_once(messages in prop::collection::vec(message(), 1..30)) {
        let (ours, kernel) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let seen = rt::native::block_on(async move {
            let session = Session::new(Rc::new(AnyFs), Arc::new(ours), Wants::default(), MAX_WRITE, Arc::default());
            let mut seen = Vec::new();
            for (header, body) in messages {
                let answers = answers(&session, &kernel, &header, &body).await;
                seen.push((header, body, answers));
            }
            assert_eq!(session.statistics().in_flight, 0);
            seen
        });
        for (header, body, answers) in seen {
            if wants_answer(&header, &body) {
                prop_assert_eq!(answers.len(), 1, "{:?}", header);
            }
            for answer in answers {
                let (out, rest) = OutHeader::read_from_prefix(&answer).unwrap();
                prop_assert_eq!(out.len as usize, answer.len());
                prop_assert_eq!(out.unique, header.unique);
                prop_assert!((-4095..=0).contains(&out.error) && (out.error == 0 || rest.is_empty()));
            }
        }
    }
}
