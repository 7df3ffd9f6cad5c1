//! /dev/fuse: opening it, cloning it for one more reader, and writing to it.
#![allow(unsafe_code)] // the clone ioctl; its block states its argument

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use zerocopy::IntoBytes;

use crate::abi::OutHeader;
use crate::reply::Reply;
use crate::types::{Errno, Payload};

const PATH: &str = "/dev/fuse";
/// `_IOR(229, 0, u32)`.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;
/// The kernel's limit for one writev.
const IOV_MAX: usize = 1024;

pub fn open() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(PATH)?.into())
}

/// One more descriptor of the same connection, with a queue of its own for requests in process. It does not block, since
/// another reader may take the request that it was woken for.
pub fn clone_of(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = open()?;
    let source = device.as_raw_fd() as u32;
    // SAFETY: the ioctl reads one u32, which outlives the call; both descriptors are open.
    if unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE as _, &raw const source) } < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::fs::fcntl_setfl(&clone, rustix::fs::OFlags::NONBLOCK)?;
    Ok(clone)
}

/// Answers request `unique` with one system call; payload goes from where it lies.
pub fn answer(device: BorrowedFd<'_>, unique: u64, result: &Result<Reply, Errno>) -> io::Result<()> {
    match result {
        Ok(reply) => message(device, unique, 0, reply.fixed_part(), reply.payload_part()),
        Err(errno) => message(device, unique, -errno.0, &[], &Payload::None),
    }
}

/// Sends one notification: `code` with its fixed part and what is behind it.
pub fn notify(device: BorrowedFd<'_>, code: i32, fixed: &[u8], rest: &[u8]) -> io::Result<()> {
    let len = (size_of::<OutHeader>() + fixed.len() + rest.len()) as u32;
    let header = OutHeader { len, error: code, unique: 0 };
    whole(device, len, &[IoSlice::new(header.as_bytes()), IoSlice::new(fixed), IoSlice::new(rest)])
}

fn message(device: BorrowedFd<'_>, unique: u64, error: i32, fixed: &[u8], payload: &Payload) -> io::Result<()> {
    let len = (size_of::<OutHeader>() + fixed.len() + payload.len()) as u32;
    let header = OutHeader { len, error, unique };
    let (header, fixed) = (IoSlice::new(header.as_bytes()), IoSlice::new(fixed));
    match payload {
        Payload::None => whole(device, len, &[header, fixed]),
        Payload::Bytes(bytes) => whole(device, len, &[header, fixed, IoSlice::new(bytes)]),
        Payload::Slice(slice) => whole(device, len, &[header, fixed, IoSlice::new(slice)]),
        Payload::Slices(slices) if slices.len() + 2 <= IOV_MAX => {
            let parts: Vec<IoSlice<'_>> =
                [header, fixed].into_iter().chain(slices.iter().map(|s| IoSlice::new(s))).collect();
            whole(device, len, &parts)
        }
        Payload::Slices(slices) => whole(device, len, &[header, fixed, IoSlice::new(&slices.concat_bytes())]),
    }
}

/// The kernel takes a message whole or not at all.
fn whole(device: BorrowedFd<'_>, len: u32, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let sent = rustix::io::writev(device, parts)?;
    if sent == len as usize { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for [vellum_base::DmaSlice] {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|slice| slice.iter().copied()).collect()
    }
}
