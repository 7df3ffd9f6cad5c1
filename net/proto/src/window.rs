//! Credits: how many requests may be unanswered, and how many bytes of data they may make the other side hold.
//!
//! Requests that wait for other clients (`Lock`) may take only half of the requests, so that the commit that answers an
//! invalidation always has room: else two clients that wait for each other's locks would stop for ever (scenario 7).
//! Keepalives are not counted: a full window must not look like a dead peer.

use vellum_wire::Request;

/// The most that one side accepts from the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    pub max_requests: u32,
    pub max_bytes: u64,
}

impl Window {
    /// What a side accepts of the engine's own requests: invalidations, one per lock at most.
    pub const FROM_ENGINE: Window = Window { max_requests: 4096, max_bytes: 1 << 20 };
    /// Before the engine has said its limits.
    pub const NONE: Window = Window { max_requests: 0, max_bytes: 0 };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Credit {
    Free,
    Waiting,
    Working,
}

/// What one request takes from the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cost {
    pub credit: Credit,
    pub bytes: u64,
}

impl Cost {
    pub(crate) fn of(request: &Request, payload_len: usize) -> Cost {
        let credit = match request {
            Request::Keepalive | Request::Farewell => Credit::Free,
            Request::Lock { .. } => Credit::Waiting,
            _ => Credit::Working,
        };
        Cost { credit, bytes: request.data_bytes(payload_len) }
    }
}

/// How much of a window is in use. Sender and receiver keep one each; the receiver's is never ahead of the sender's.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Used {
    requests: u32,
    waiting: u32,
    free: u32,
    bytes: u64,
}

/// Keepalives and the farewell that may be unacknowledged; two would do.
const MAX_FREE: u32 = 16;

impl Used {
    pub(crate) fn fits(&self, window: &Window, cost: Cost) -> bool {
        if cost.credit == Credit::Free {
            return self.free < MAX_FREE;
        }
        // A request larger than the whole window goes alone.
        let bytes = cost.bytes.min(window.max_bytes);
        self.requests < window.max_requests
            && self.bytes.saturating_add(bytes) <= window.max_bytes
            && (cost.credit == Credit::Working || self.waiting < window.max_requests.div_ceil(2))
    }

    pub(crate) fn take(&mut self, window: &Window, cost: Cost) {
        match cost.credit {
            Credit::Free => self.free += 1,
            credit => {
                self.requests += 1;
                self.waiting += u32::from(credit == Credit::Waiting);
                self.bytes += cost.bytes.min(window.max_bytes);
            }
        }
    }

    pub(crate) fn give(&mut self, window: &Window, cost: Cost) {
        match cost.credit {
            Credit::Free => self.free -= 1,
            credit => {
                self.requests -= 1;
                self.waiting -= u32::from(credit == Credit::Waiting);
                self.bytes -= cost.bytes.min(window.max_bytes);
            }
        }
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
