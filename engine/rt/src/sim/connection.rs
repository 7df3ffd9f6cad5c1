//! One simulated connection: bytes on their way, bytes received, and how it ends.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use super::world::NodeId;

pub(super) enum Segment {
    Data(Vec<u8>),
    Fin,
    Reset(io::ErrorKind),
}

impl Segment {
    pub fn len(&self) -> usize {
        match self {
            Segment::Data(data) => data.len(),
            _ => 0,
        }
    }
}

/// One end: what travels to it and what it has.
pub(super) struct End {
    pub node: NodeId,
    /// On the way to this end, in order, with arrival times.
    pub in_flight: VecDeque<(u64, Segment)>,
    pub received: VecDeque<u8>,
    /// When it first did not get through, while it does not.
    pub stalled_since: Option<u64>,
    pub at_eof: bool,
    pub error: Option<io::ErrorKind>,
    /// `shutdown` was called here.
    pub shut: bool,
    /// Nobody holds it any more.
    pub gone: bool,
    pub receiver: Option<Waker>,
    pub sender: Option<Waker>,
}

pub(super) struct Connection {
    /// 0 connected, 1 accepted.
    pub ends: [End; 2],
    pub is_unix: bool,
    pub established: bool,
    pub connector: Option<Waker>,
}

impl End {
    pub fn new(node: NodeId) -> End {
        End {
            node,
            in_flight: VecDeque::new(),
            received: VecDeque::new(),
            stalled_since: None,
            at_eof: false,
            error: None,
            shut: false,
            gone: false,
            receiver: None,
            sender: None,
        }
    }

    /// Bytes sent to this end and not taken by its reader.
    pub fn unread(&self) -> usize {
        self.received.len() + self.in_flight.iter().map(|(_, segment)| segment.len()).sum::<usize>()
    }
}

impl Connection {
    /// Nothing can happen on it any more.
    pub fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.gone && end.in_flight.is_empty())
    }
}
