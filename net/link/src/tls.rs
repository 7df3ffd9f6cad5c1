//! TLS 1.3 over our streams. rustls does no IO here: what was received is given to it, what it wants sent is taken from it.
//!
//! - Nothing of the peer is believed before the handshake is over, and the handshake is bounded: [`MAX_HANDSHAKE`] bytes,
//!   and the caller's time.
//! - One copy more than the cipher needs in each direction: records are decrypted within rustls and copied to where the
//!   frame wants them; sealed records are gathered so that many leave in one send.
//! - A record that does not verify ends the stream.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use vellum_base::{DmaBuf, DmaSlice};
use vellum_keys::{Role, Subject, peer_subject};
use vellum_rt::net::Stream;

use crate::error::SocketError;

/// Bytes that a peer may send before it has proven who it is: two certificates of an authority without intermediates
/// need a tenth.
const MAX_HANDSHAKE: usize = 32 << 10;
/// Of ciphertext, for a peer that has not greeted, and for one that has. rustls takes no more than 16 KiB of plaintext
/// at a time, and a buffer of a stranger can't hold more.
const STRANGER_BYTES: usize = 4 << 10;
const BUFFER_BYTES: usize = 64 << 10;
/// Plaintext that is sealed and sent at a time: the peer decrypts one piece while we seal the next.
const PIECE_BYTES: usize = 128 << 10;
/// More than a piece with the overhead of its records; a larger buffer is not kept.
const SEALED_BYTES: usize = PIECE_BYTES + (8 << 10);

/// Ciphertext that was received and not given to rustls yet: `buf[start..end]`.
struct Inbound {
    buf: DmaBuf,
    start: usize,
    end: usize,
}

pub(crate) struct TlsStream {
    stream: Stream,
    tls: RefCell<Connection>,
    inbound: RefCell<Inbound>,
    sealed: RefCell<Vec<u8>>,
}

impl TlsStream {
    /// The handshake of one who connects to the node at `ip`. What is there is a node of our authority with that address
    /// in its certificate, or this is an error.
    pub(crate) async fn connect(
        stream: Stream,
        ip: IpAddr,
        config: Arc<ClientConfig>,
    ) -> Result<TlsStream, SocketError> {
        let tls = ClientConnection::new(config, ServerName::IpAddress(ip.into())).map_err(SocketError::Tls)?;
        let stream = TlsStream::shake_hands(stream, tls.into()).await?;
        match stream.peer()? {
            Subject { role: Role::Node, .. } => Ok(stream),
            other => Err(SocketError::NotANode { found: other.to_string() }),
        }
    }

    /// The handshake of one who accepted, and whom its certificate says the peer to be.
    pub(crate) async fn accept(stream: Stream, config: Arc<ServerConfig>) -> Result<(TlsStream, Subject), SocketError> {
        let tls = ServerConnection::new(config).map_err(SocketError::Tls)?;
        let stream = TlsStream::shake_hands(stream, tls.into()).await?;
        let peer = stream.peer()?;
        Ok((stream, peer))
    }

    async fn shake_hands(stream: Stream, tls: Connection) -> Result<TlsStream, SocketError> {
        let shaken = TlsStream {
            stream,
            tls: RefCell::new(tls),
            inbound: RefCell::new(Inbound { buf: DmaBuf::new(STRANGER_BYTES), start: 0, end: 0 }),
            sealed: RefCell::default(),
        };
        let mut received = 0;
        loop {
            let step = shaken.give();
            // An alert says to the peer what was wrong with it.
            let flushed = shaken.flush().await;
            step?;
            flushed?;
            if !shaken.tls.borrow().is_handshaking() {
                return Ok(shaken);
            }
            received += match shaken.receive().await? {
                0 => return Err(SocketError::Closed),
                n => n,
            };
            if received > MAX_HANDSHAKE {
                return Err(SocketError::LongHandshake { max: MAX_HANDSHAKE });
            }
        }
    }

    fn peer(&self) -> Result<Subject, SocketError> {
        peer_subject(self.tls.borrow().peer_certificates()).map_err(|e| SocketError::Stranger(e.to_string()))
    }

    /// Gives rustls what was received, until there is plaintext to take from it.
    fn give(&self) -> Result<(), SocketError> {
        let (mut tls, mut inbound) = (self.tls.borrow_mut(), self.inbound.borrow_mut());
        let Inbound { buf, start, end } = &mut *inbound;
        while start < end {
            let mut rest = &buf[*start..*end];
            let taken = tls.read_tls(&mut rest)?;
            *start += taken;
            let state = tls.process_new_packets().map_err(SocketError::Tls)?;
            if state.plaintext_bytes_to_read() > 0 || taken == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Receives ciphertext into the empty buffer.
    async fn receive(&self) -> Result<usize, io::Error> {
        let buf = std::mem::replace(&mut self.inbound.borrow_mut().buf, DmaBuf::new(0));
        let whole = 0..buf.len();
        let (received, buf) = self.stream.recv(buf, whole).await;
        let end = *received.as_ref().unwrap_or(&0);
        *self.inbound.borrow_mut() = Inbound { buf, start: 0, end };
        received
    }

    /// Sends what rustls has to say.
    async fn flush(&self) -> io::Result<()> {
        let mut sealed = self.sealed.take();
        sealed.clear();
        {
            let mut tls = self.tls.borrow_mut();
            while tls.wants_write() {
                tls.write_tls(&mut sealed)?;
            }
        }
        let (sent, sealed) = self.stream.send_all(sealed, None).await;
        if sealed.capacity() <= 2 * SEALED_BYTES {
            *self.sealed.borrow_mut() = sealed;
        }
        sent
    }

    /// The peer has greeted: it may have the buffer of a client.
    pub(crate) fn grow(&self) {
        let mut inbound = self.inbound.borrow_mut();
        if inbound.buf.len() < BUFFER_BYTES && !inbound.buf.is_empty() {
            let mut large = DmaBuf::new(BUFFER_BYTES);
            let rest = inbound.start..inbound.end;
            let len = rest.len();
            large[..len].copy_from_slice(&inbound.buf[rest]);
            *inbound = Inbound { buf: large, start: 0, end: len };
        }
    }

    /// See [`Stream::recv`]. The end of the stream is the end, with TLS's goodbye or without: frames have their lengths.
    pub(crate) async fn recv(&self, mut buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        loop {
            let taken = self.tls.borrow_mut().reader().read(&mut buf[range.clone()]);
            match taken {
                Ok(n) => return (Ok(n), buf),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return (Ok(0), buf),
                Err(e) => return (Err(e), buf),
            }
            let is_empty = {
                let inbound = self.inbound.borrow();
                inbound.start == inbound.end
            };
            if is_empty {
                match self.receive().await {
                    Ok(0) => return (Ok(0), buf),
                    Ok(_) => {}
                    Err(e) => return (Err(e), buf),
                }
            }
            if let Err(e) = self.give() {
                return (Err(e.into_io()), buf);
            }
        }
    }

    /// See [`Stream::send_all`].
    pub(crate) async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        let mut parts = [head.as_slice(), payload.as_deref().unwrap_or_default()];
        while parts.iter().any(|part| !part.is_empty()) {
            let sealed = self.seal(&mut parts);
            let sent = match sealed {
                Ok(()) => self.flush().await,
                Err(e) => Err(e),
            };
            if let Err(e) = sent {
                return (Err(e), head);
            }
        }
        (Ok(()), head)
    }

    /// Gives the next piece of `parts` to rustls.
    fn seal(&self, parts: &mut [&[u8]; 2]) -> io::Result<()> {
        let mut tls = self.tls.borrow_mut();
        tls.set_buffer_limit(None); // the piece is the limit
        let mut room = PIECE_BYTES;
        for part in parts {
            let (now, later) = part.split_at(part.len().min(room));
            tls.writer().write_all(now)?;
            room -= now.len();
            *part = later;
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) {
        self.stream.shutdown();
    }
}
