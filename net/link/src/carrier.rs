//! The byte stream under the frames: a plain one, or one within TLS.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use vellum_base::{DmaBuf, DmaSlice};
use vellum_rt::net::Stream;

use crate::tls::TlsStream;

/// A clone is the same one. One task may receive while another sends, as with [`Stream`].
#[derive(Clone)]
pub(crate) enum Carrier {
    Plain(Stream),
    Tls(Rc<TlsStream>),
}

impl Carrier {
    /// See [`Stream::recv`].
    pub(crate) async fn recv(&self, buf: DmaBuf, range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        match self {
            Carrier::Plain(stream) => stream.recv(buf, range).await,
            Carrier::Tls(stream) => stream.recv(buf, range).await,
        }
    }

    /// See [`Stream::send_all`].
    pub(crate) async fn send_all(&self, head: Vec<u8>, payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Carrier::Plain(stream) => stream.send_all(head, payload).await,
            Carrier::Tls(stream) => stream.send_all(head, payload).await,
        }
    }

    pub(crate) fn shutdown(&self) {
        match self {
            Carrier::Plain(stream) => stream.shutdown(),
            Carrier::Tls(stream) => stream.shutdown(),
        }
    }
}
