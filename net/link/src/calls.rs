//! Calls that wait for their responses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use vellum_base::DmaSlice;
use vellum_rt::local::{OneshotReceiver, OneshotSender, oneshot};
use vellum_wire::Response;

use crate::error::LinkError;

/// What came back. A payload is shared with the engine when both live in one process: it is read-only.
#[derive(Clone, Debug)]
pub struct Reply {
    pub body: Response,
    pub payload: Option<DmaSlice>,
}

/// Looks at a reply at the moment when it arrives, in the order of arrival (see `Connection::call_observed`).
pub(crate) type Observer = Box<dyn FnOnce(&Result<Reply, LinkError>)>;

type Outcome = Result<Reply, LinkError>;

/// A call on its way. Dropping it forgets the reply, not the request.
#[must_use = "the request is sent; its reply comes here"]
pub struct PendingCall(Result<OneshotReceiver<Outcome>, LinkError>);

impl From<Result<OneshotReceiver<Outcome>, LinkError>> for PendingCall {
    fn from(started: Result<OneshotReceiver<Outcome>, LinkError>) -> PendingCall {
        PendingCall(started)
    }
}

impl Future for PendingCall {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        match &mut self.0 {
            Ok(receiver) => Pin::new(receiver).poll(cx).map(|reply| reply.unwrap_or(Err(LinkError::Closed))),
            Err(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

struct Call {
    reply: OneshotSender<Result<Reply, LinkError>>,
    observer: Option<Observer>,
}

#[derive(Default)]
pub(crate) struct Calls {
    open: RefCell<HashMap<u64, Call>>,
}

impl Calls {
    pub(crate) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub(crate) fn add(&self, id: u64, observer: Option<Observer>) -> OneshotReceiver<Result<Reply, LinkError>> {
        let (reply, receiver) = oneshot();
        self.open.borrow_mut().insert(id, Call { reply, observer });
        receiver
    }

    pub(crate) fn resolve(&self, id: u64, response: Arc<Response>, payload: Option<DmaSlice>) {
        let result = match Arc::unwrap_or_clone(response) {
            Response::Error(error) => Err(LinkError::Remote(error)),
            body => Ok(Reply { body, payload }),
        };
        self.finish(id, result);
    }

    pub(crate) fn finish(&self, id: u64, result: Result<Reply, LinkError>) {
        let call = self.open.borrow_mut().remove(&id);
        if let Some(Call { reply, observer }) = call {
            if let Some(observer) = observer {
                observer(&result);
            }
            let _ = reply.send(result); // the caller may have gone
        }
    }

    pub(crate) fn fail_all(&self, why: &LinkError) {
        let mut ids: Vec<u64> = self.open.borrow().keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.finish(id, Err(why.clone()));
        }
    }
}
