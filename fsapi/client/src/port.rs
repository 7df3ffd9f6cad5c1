//! What the client needs of a connection: the narrow seam to `vellum-link`, and to the fake engine of the tests.

use std::future::Future;
use std::pin::Pin;

use vellum_base::{DmaSlice, Epoch, Term};
use vellum_wire::{FileLockOutcome, Greeted, LockGrant, LockMode, LockName, Request, Response};

use crate::ClientError;

pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The answer to a request.
#[derive(Debug)]
pub struct Reply {
    pub body: Response,
    pub payload: Option<DmaSlice>,
    /// Term of the leader that sent it: what it says about volatile state holds in that term only.
    pub term: Term,
}

pub type CallFuture = LocalBoxFuture<'static, Result<Reply, ClientError>>;

/// One logical connection, over sockets and terms.
///
/// Contract: a request is queued by the call itself, in the order of the calls, not at the first poll. Replies are
/// ready in their futures before the handler of any request that the engine sent after them is started (per lock, the
/// client sees grants and invalidations in the engine's order). An unanswered request is sent again after a
/// reconnect, and after a new term when [`Upcalls::new_term`] is done. An `Err` is final: the connection is closed.
pub trait Port {
    fn call(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture;
    /// As `call`, for use inside [`Upcalls::new_term`] alone: goes before everything that waits.
    fn call_recovering(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture;
    /// Tells a new leader what this client holds, inside [`Upcalls::new_term`] and before all else.
    fn recover_locks(&self, held: Vec<LockGrant>) -> LocalBoxFuture<'static, Result<(), ClientError>>;
    /// The newest greeting's answer.
    fn greeted(&self) -> Greeted;
    /// Term and durable epoch, as last heard; the pair is consistent.
    fn durable(&self) -> (Term, Epoch);
    /// Until `durable()` differs from `seen`, or the connection is closed.
    fn wait_advance(&self, seen: (Term, Epoch)) -> LocalBoxFuture<'static, Result<(), ClientError>>;
    /// How long what locks cover may still be used; zero when the lease has lapsed.
    fn lease_left(&self) -> std::time::Duration;
    /// Until the lease is valid, or the connection is closed.
    fn wait_lease(&self) -> LocalBoxFuture<'static, Result<(), ClientError>>;
    fn set_upcalls(&self, upcalls: std::rc::Rc<dyn Upcalls>);
    /// Closes the connection after a farewell; pending calls fail.
    fn close(&self);
}

/// What the connection asks of the client.
pub trait Upcalls {
    /// The answer is sent when the future is done.
    fn invalidate(&self, name: LockName, mode: LockMode) -> LocalBoxFuture<'static, ()>;
    /// A file lock that was waited for was granted, or will not be. Must be called in the order of arrival.
    fn file_lock_ended(&self, ticket: u64, outcome: FileLockOutcome);
    /// Another leader answered: nothing else flows until this is done.
    fn new_term(&self, greeted: Greeted) -> LocalBoxFuture<'static, Result<(), ClientError>>;
    /// The connection is closed for good.
    fn closed(&self, why: ClientError);
}
