//! Whole messages with their descriptors over a unix stream socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{HEADER_BYTES, Header, MAX_FDS, MAX_MESSAGE_BYTES};

pub(super) struct Message {
    pub header: Header,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The structure at the beginning of the body, and what follows it.
    pub fn parse<T: FromBytes + zerocopy::Unaligned + zerocopy::KnownLayout + zerocopy::Immutable>(
        &self,
    ) -> io::Result<(T, &[u8])> {
        T::read_from_prefix(&self.body).map_err(|_| invalid("a message is too short"))
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

pub(super) fn send(socket: &UnixStream, mut header: Header, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    header.size = ((HEADER_BYTES + body) as u32).into();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body);
    bytes.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("too many descriptors for one message"));
    }
    let mut sent = 0;
    while sent < bytes.len() {
        // The descriptors go with the first byte.
        let rest = [IoSlice::new(&bytes[sent..])];
        let result = if sent == 0 {
            rustix::net::sendmsg(socket.as_fd(), &rest, &mut ancillary, SendFlags::NOSIGNAL)
        } else {
            rustix::net::sendmsg(socket.as_fd(), &rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
        };
        match result {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// The next message. UnexpectedEof when the peer has closed; WouldBlock after the socket's timeout.
pub(super) fn receive(socket: &UnixStream) -> io::Result<Message> {
    let mut fds = Vec::new();
    let mut head = [0; HEADER_BYTES];
    fill(socket, &mut head, &mut fds)?;
    let header = Header::read_from_bytes(&head).map_err(|_| invalid("a header"))?;
    let size = header.size.get() as usize;
    if !(HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&size) {
        return Err(invalid("a message says an impossible length"));
    }
    let mut body = vec![0; size - HEADER_BYTES];
    fill(socket, &mut body, &mut fds)?;
    Ok(Message { header, body, fds })
}

fn fill(socket: &UnixStream, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut out[done..])];
        let received = match rustix::net::recvmsg(socket.as_fd(), &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => continue,
            Err(err) => return Err(err.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if fds.len() > MAX_FDS {
            return Err(invalid("too many descriptors with one message"));
        }
        done += received.bytes;
    }
    Ok(())
}
