//! One socket: a byte stream (plain, or within TLS) that frames are encoded into, or a pair of rings that they are moved
//! through.

use std::rc::Rc;
use std::time::Duration;

use vellum_proto::Violation;
use vellum_rt::channel;
use vellum_rt::net::Stream;
use vellum_rt::{Class, spawn};
use vellum_wire::{Body, Frame};

use crate::carrier::Carrier;
use crate::error::SocketError;
use crate::stream_reader::StreamReader;
use crate::stream_writer::StreamWriter;
use crate::tls::TlsStream;

/// Frames on their way within one process, per direction.
pub(crate) const RING_FRAMES: usize = 256;

/// The in-process variant may be sent to another reactor before its first use.
pub enum Socket {
    Stream(Stream),
    Tls(TlsSocket),
    InProcess { tx: channel::Sender<Frame>, rx: channel::Receiver<Frame> },
}

/// A stream whose TLS handshake is over.
pub struct TlsSocket(pub(crate) Rc<TlsStream>);

pub struct FrameReader(ReaderKind);

enum ReaderKind {
    Stream(Box<StreamReader>),
    InProcess(channel::Receiver<Frame>),
}

pub struct FrameWriter(WriterKind);

enum WriterKind {
    Stream(StreamWriter),
    InProcess(channel::Sender<Frame>),
}

/// Ends the stream when dropped, so that a receive in flight ends too.
pub struct ShutdownOnDrop(Option<Carrier>);

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.shutdown();
        }
    }
}

impl Socket {
    pub fn split(self) -> (FrameReader, FrameWriter, ShutdownOnDrop) {
        let carrier = match self {
            Socket::Stream(stream) => Carrier::Plain(stream),
            Socket::Tls(TlsSocket(stream)) => Carrier::Tls(stream),
            Socket::InProcess { tx, rx } => {
                let (reader, writer) = (ReaderKind::InProcess(rx), WriterKind::InProcess(tx));
                return (FrameReader(reader), FrameWriter(writer), ShutdownOnDrop(None));
            }
        };
        (
            FrameReader(ReaderKind::Stream(Box::new(StreamReader::new(carrier.clone())))),
            FrameWriter(WriterKind::Stream(StreamWriter::new(carrier.clone()))),
            ShutdownOnDrop(Some(carrier)),
        )
    }
}

impl FrameReader {
    /// The first frame; anything but a greeting or its answer is an error, and is not received.
    pub async fn recv_greeting(&mut self) -> Result<Frame, SocketError> {
        match &mut self.0 {
            ReaderKind::Stream(reader) => reader.recv_greeting().await,
            ReaderKind::InProcess(rx) => {
                let frame = rx.recv().await.ok_or(SocketError::Closed)?;
                match frame.body {
                    Body::Greeting(_) | Body::Greeted(_) | Body::Refused(_) => Ok(frame),
                    _ => Err(Violation::NoGreeting.into()),
                }
            }
        }
    }

    pub async fn recv(&mut self) -> Result<Frame, SocketError> {
        match &mut self.0 {
            ReaderKind::Stream(reader) => reader.recv().await,
            ReaderKind::InProcess(rx) => rx.recv().await.ok_or(SocketError::Closed),
        }
    }
}

impl FrameWriter {
    /// Sends everything that `next` gives, together where it can.
    pub async fn send(&mut self, mut next: impl FnMut() -> Option<Frame>) -> Result<(), SocketError> {
        match &mut self.0 {
            WriterKind::Stream(writer) => writer.send(next).await,
            WriterKind::InProcess(tx) => {
                while let Some(frame) = next() {
                    tx.send(frame).await.map_err(|_| SocketError::Closed)?;
                }
                Ok(())
            }
        }
    }

    /// How long the peer may take for one send. Within one process the receiver is ours.
    pub(crate) fn set_stall(&mut self, stall: Duration) {
        if let WriterKind::Stream(writer) = &mut self.0 {
            writer.stall = stall;
        }
    }

    pub async fn send_one(&mut self, frame: Frame) -> Result<(), SocketError> {
        let mut frame = Some(frame);
        self.send(|| frame.take()).await
    }
}

/// Two in-process sockets that are connected with each other.
pub(crate) fn socket_pair() -> (Socket, Socket) {
    let (tx_a, rx_b) = channel::bounded(RING_FRAMES);
    let (tx_b, rx_a) = channel::bounded(RING_FRAMES);
    (Socket::InProcess { tx: tx_a, rx: rx_a }, Socket::InProcess { tx: tx_b, rx: rx_b })
}

/// Carries the frames of a socket that this reactor accepted to and from another reactor: the socket stays here, with
/// encoding and checksums; the session lives there. `first` was received already. The returned end may be sent there.
pub fn bridge(
    first: Frame,
    mut reader: FrameReader,
    mut writer: FrameWriter,
    guard: ShutdownOnDrop,
) -> (channel::Sender<Frame>, channel::Receiver<Frame>) {
    let (to_home, at_home) = channel::bounded(RING_FRAMES);
    let (from_home, mut to_peer) = channel::bounded::<Frame>(RING_FRAMES);
    let inbound = spawn(Class::Request, "bridge in", async move {
        if to_home.send(first).await.is_err() {
            return;
        }
        while let Ok(frame) = reader.recv().await {
            if to_home.send(frame).await.is_err() {
                return;
            }
        }
    });
    spawn(Class::Request, "bridge out", async move {
        let _guard = guard; // the session's end ends the socket, and with it the other task
        while let Some(frame) = to_peer.recv().await {
            let mut first = Some(frame);
            if writer.send(|| first.take().or_else(|| to_peer.try_recv())).await.is_err() {
                break;
            }
        }
        inbound.cancel();
    })
    .detach();
    (from_home, at_home)
}
