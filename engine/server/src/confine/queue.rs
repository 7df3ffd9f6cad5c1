//! Requests of a confined client are looked at one after the other: a look may have to read, and their order counts.

use std::rc::Rc;

use vellum_base::DmaSlice;
use vellum_link::Responder;
use vellum_rt::{Class, spawn};
use vellum_wire::Request;

use super::Confined;
use crate::client::Client;
use crate::reactor::Reactor;

/// Bounded by the client's credits: it is unanswered.
pub(super) struct Waiting {
    request: Request,
    payload: Option<DmaSlice>,
    responder: Responder,
}

impl Reactor {
    /// Serves the request when those before it were looked at, and it passes.
    pub(crate) fn serve_confined(
        self: &Rc<Self>,
        client: &Rc<Client>,
        confined: &Rc<Confined>,
        request: Request,
        payload: Option<DmaSlice>,
        responder: Responder,
    ) {
        confined.waiting.borrow_mut().push_back(Waiting { request, payload, responder });
        if confined.judging.replace(true) {
            return;
        }
        let (reactor, client, confined) = (self.clone(), client.clone(), confined.clone());
        spawn(Class::Request, "confined", async move {
            while let Some(mut next) = confined.next() {
                match confined.admit(&mut next.request).await {
                    Ok(()) => reactor.serve(&client, next.request, next.payload, next.responder),
                    Err(error) => next.responder.fail(error.code, error.message),
                }
            }
        })
        .detach();
    }
}

impl Confined {
    fn next(&self) -> Option<Waiting> {
        let next = self.waiting.borrow_mut().pop_front();
        self.judging.set(next.is_some());
        next
    }
}
