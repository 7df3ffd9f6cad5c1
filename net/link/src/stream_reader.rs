//! Receiving frames from a byte stream.
//!
//! One receive fills a buffer with whatever is there. Control parts are copied out of it, each into memory of its own
//! (a message that somebody keeps must not pin 64 KiB of others); control parts and payloads too long for that are
//! received straight into their own memory.

use bytes::Bytes;
use vellum_base::{DmaBuf, DmaSlice};
use vellum_wire::{Frame, FrameHeader, FrameKind, HEADER_LEN, WireFault};

use crate::carrier::Carrier;
use crate::error::SocketError;

/// Buffer of a socket that has not greeted, and of one that has.
const STRANGER_BYTES: usize = 4096;
const BUFFER_BYTES: usize = 64 << 10;
/// Control parts up to this length go through the buffer.
const SHORT_CONTROL: usize = 16 << 10;
const _: () = assert!(HEADER_LEN + SHORT_CONTROL <= BUFFER_BYTES);
const _: () = assert!(HEADER_LEN + vellum_wire::header::MAX_GREETING <= STRANGER_BYTES);

pub(crate) struct StreamReader {
    stream: Carrier,
    buf: DmaBuf,
    /// Received and not yet taken: `buf[start..end]`.
    start: usize,
    end: usize,
}

/// Aligned memory as the owner of decoded `Bytes`.
struct Owned(DmaSlice);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl StreamReader {
    pub(crate) fn new(stream: Carrier) -> StreamReader {
        StreamReader { stream, buf: DmaBuf::new(STRANGER_BYTES), start: 0, end: 0 }
    }

    /// The first frame of a socket: bounded to what a greeting or its answer may be.
    pub(crate) async fn recv_greeting(&mut self) -> Result<Frame, SocketError> {
        self.expect_no_tls().await?;
        let header = self.recv_header().await?;
        if !matches!(header.kind, FrameKind::Greeting | FrameKind::Greeted | FrameKind::Refused) {
            return Err(vellum_proto::Violation::NoGreeting.into());
        }
        self.recv_rest(header).await
    }

    pub(crate) async fn recv(&mut self) -> Result<Frame, SocketError> {
        if self.buf.len() < BUFFER_BYTES {
            self.grow();
        }
        let header = self.recv_header().await?;
        self.recv_rest(header).await
    }

    fn grow(&mut self) {
        if let Carrier::Tls(stream) = &self.stream {
            stream.grow();
        }
        let mut large = DmaBuf::new(BUFFER_BYTES);
        let len = self.end - self.start;
        large[..len].copy_from_slice(&self.buf[self.start..self.end]);
        (self.buf, self.start, self.end) = (large, 0, len);
    }

    /// A node with keys answers our plain greeting with an alert, which is shorter than a header.
    async fn expect_no_tls(&mut self) -> Result<(), SocketError> {
        const ALERT: u8 = 21;
        self.fill(1).await?;
        match (&self.stream, self.buf.get(self.start)) {
            (Carrier::Plain(_), Some(&ALERT)) => Err(SocketError::SpeaksTls),
            _ => Ok(()),
        }
    }

    async fn recv_header(&mut self) -> Result<FrameHeader, SocketError> {
        self.fill(HEADER_LEN).await?;
        let bytes = self.buf[self.start..self.end].first_chunk::<HEADER_LEN>();
        let bytes = bytes.ok_or(WireFault::Short { what: "header", needed: HEADER_LEN })?;
        let header = FrameHeader::decode(bytes)?;
        self.start += HEADER_LEN;
        Ok(header)
    }

    async fn recv_rest(&mut self, header: FrameHeader) -> Result<Frame, SocketError> {
        let control_len = header.control_len as usize;
        let control = if control_len <= SHORT_CONTROL.min(self.buf.len() - HEADER_LEN) {
            self.fill(control_len).await?;
            let control = Bytes::copy_from_slice(&self.buf[self.start..self.start + control_len]);
            self.start += control_len;
            control
        } else {
            Bytes::from_owner(Owned(self.recv_own(control_len).await?.freeze()))
        };
        // Before the payload: a peer that lies about the frame does not make us wait for a megabyte.
        header.verify(&control)?;
        let payload = match header.payload_len as usize {
            0 => None,
            len => Some(self.recv_own(len).await?.freeze()),
        };
        Ok(Frame::decode(&header, control, payload)?)
    }

    /// Makes `len` bytes available at `start`.
    async fn fill(&mut self, len: usize) -> Result<(), SocketError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        while self.end - self.start < len {
            if self.start + len > self.buf.len() {
                self.buf.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let buf = std::mem::replace(&mut self.buf, DmaBuf::new(0));
            let range = self.end..buf.len();
            let (received, buf) = self.stream.recv(buf, range).await;
            self.buf = buf;
            self.end += match received? {
                0 => return Err(SocketError::Closed),
                n => n,
            };
        }
        Ok(())
    }

    /// `len` bytes into memory of their own: first what the buffer has, then from the socket.
    async fn recv_own(&mut self, len: usize) -> Result<DmaBuf, SocketError> {
        let mut own = DmaBuf::new(len);
        let mut have = len.min(self.end - self.start);
        own[..have].copy_from_slice(&self.buf[self.start..self.start + have]);
        self.start += have;
        while have < len {
            let (received, buf) = self.stream.recv(own, have..len).await;
            own = buf;
            have += match received? {
                0 => return Err(SocketError::Closed),
                n => n,
            };
        }
        Ok(own)
    }
}
