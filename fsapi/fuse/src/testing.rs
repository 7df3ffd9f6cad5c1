//! A session with a kernel that says what a test makes it say, and a filesystem that answers everything. For tests and
//! fuzzing.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vellum_rt as rt;
use zerocopy::FromBytes;

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

/// Whether a whole request was there, one that a kernel waits for the answer of.
fn wants_answer(header: &InHeader, message: &[u8]) -> bool {
    let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt].map(|op| op as u32).contains(&header.opcode);
    let body = message.len() - size_of::<InHeader>();
    header.len as usize == message.len() && header.total_extlen as usize * 8 <= body && !silent
}

async fn answers(session: &Rc<Session<AnyFs>>, kernel: &OwnedFd, message: &[u8], room: &mut [u8]) -> Vec<Vec<u8>> {
    let mut buf = buffer::new(MAX_WRITE);
    let at = buffer::room(&buf).start;
    buf[at..at + message.len()].copy_from_slice(message);
    session.handle(buf, message.len()).await;
    for _ in 0..10 {
        rt::yield_now().await;
    }
    let mut all = Vec::new();
    while let Ok((_, len)) = recv(kernel, &mut room[..], RecvFlags::DONTWAIT) {
        all.push(room[..len].to_vec());
    }
    all
}

/// Gives one session `messages` (of up to [`MAX_WRITE`] bytes), one after the other, as a kernel would. How many were
/// answered without an error.
///
/// # Panics
/// When a whole request is not answered exactly once, an answer is malformed, or a request is still held at the end.
pub fn converse(messages: &[Vec<u8>]) -> usize {
    let (ours, kernel) =
        socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).expect("a pair of sockets");
    rt::native::block_on(async move {
        let session = Session::new(Rc::new(AnyFs), Arc::new(ours), Wants::default(), MAX_WRITE, Arc::default());
        let (mut room, mut fine) = (vec![0u8; 2 << 20], 0);
        for message in messages {
            let answers = answers(&session, &kernel, message, &mut room).await;
            let Ok((header, _)) = InHeader::read_from_prefix(message) else {
                assert!(answers.is_empty(), "nobody asked");
                continue;
            };
            if wants_answer(&header, message) {
                assert_eq!(answers.len(), 1, "{header:?}");
            }
            for answer in answers {
                let (out, rest) = OutHeader::read_from_prefix(&answer).expect("a header");
                assert_eq!((out.len as usize, out.unique), (answer.len(), header.unique));
                assert!((-4095..=0).contains(&out.error) && (out.error == 0 || rest.is_empty()), "{out:?}");
                fine += usize::from(out.error == 0);
            }
        }
        assert_eq!(session.statistics().in_flight, 0);
        fine
    })
}
