//! The port over a real connection.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use vellum_base::{DmaSlice, Epoch, Fsid, Rid, Term};
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError, PendingCall};
use vellum_wire::{Greeted, LockGrant, MAX_WANTS, Refusal, Request, Response};

use crate::port::{CallFuture, LocalBoxFuture, Port, Reply, Upcalls};
use crate::{Client, ClientError, ClientOptions, env};

/// How often a lapsed lease is looked at again: it comes back with the next answered keepalive.
const LEASE_POLL: Duration = Duration::from_millis(10);

struct LinkPort {
    connection: Rc<Connection>,
}

impl Client {
    /// Connects to an engine and begins to work. `fsid` none: whatever filesystem is served there.
    ///
    /// Errors: nobody answers within the options' limit, or the engine refuses this client.
    pub async fn connect(
        address: Address,
        fsid: Option<Fsid>,
        link: ConnectOptions,
        options: ClientOptions,
    ) -> Result<Rc<Client>, ClientError> {
        let rid = options.rid.unwrap_or_else(|| Rid(env::random_u64()));
        let connection = Connection::open(address, Identity { rid, fsid }, link).await.map_err(from_link)?;
        Ok(Client::start(Rc::new(LinkPort { connection }), rid, options))
    }
}

fn from_link(error: LinkError) -> ClientError {
    match error {
        LinkError::Remote(e) => ClientError::Engine(e),
        LinkError::Refused(Refusal::Fenced) => ClientError::Fenced { unsynced: 0 },
        LinkError::Refused(Refusal::OtherFilesystem { served }) => {
            ClientError::Connection(format!("another filesystem is served there: {served}"))
        }
        LinkError::Refused(Refusal::OtherProtocol { served }) => {
            ClientError::Connection(format!("the engine speaks protocol {served}; use programs of one version"))
        }
        LinkError::Refused(Refusal::NoDirectory { path, exists }) => {
            let what = if exists { "is no directory" } else { "does not exist" };
            ClientError::Connection(format!(
                "these keys are for the directory {path}, which {what}: make it through a mount that sees it, \
                 or have keys made for another (vellum keys client --path)"
            ))
        }
        LinkError::Closed => ClientError::Stopped,
        other => ClientError::Connection(other.to_string()),
    }
}

impl LinkPort {
    fn term(&self) -> Term {
        self.connection.greeting().term
    }

    fn reply(&self, call: PendingCall, term: Rc<Cell<Term>>) -> CallFuture {
        Box::pin(async move {
            match call.await {
                Ok(reply) => Ok(Reply { body: reply.body, payload: reply.payload, term: term.get() }),
                Err(LinkError::Remote(e)) => Ok(Reply { body: Response::Error(e), payload: None, term: term.get() }),
                Err(e) => Err(from_link(e)),
            }
        })
    }
}

impl Port for LinkPort {
    fn call(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        let term = Rc::new(Cell::new(self.term()));
        let (at_arrival, connection) = (term.clone(), Rc::downgrade(&self.connection));
        let call = self.connection.call_observed(request, payload, move |_| {
            if let Some(connection) = connection.upgrade() {
                at_arrival.set(connection.greeting().term);
            }
        });
        self.reply(call, term)
    }

    fn call_recovering(&self, request: Request, payload: Option<DmaSlice>) -> CallFuture {
        let term = Rc::new(Cell::new(self.term())); // it dies with its term
        self.reply(self.connection.call_recovery(request, payload), term)
    }

    fn recover_locks(&self, held: Vec<LockGrant>) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let mut pages: Vec<Vec<LockGrant>> = held.chunks(MAX_WANTS).map(<[_]>::to_vec).collect();
        if pages.is_empty() {
            pages.push(Vec::new());
        }
        let last = pages.len() - 1;
        let calls: Vec<_> = pages
            .into_iter()
            .enumerate()
            .map(|(i, locks)| self.call_recovering(Request::Reassert { locks, last: i == last }, None))
            .collect();
        Box::pin(async move {
            for call in calls {
                match call.await?.body {
                    Response::Reasserted => {}
                    Response::Error(e) => return Err(ClientError::Engine(e)),
                    _ => return Err(ClientError::Protocol { request: "Reassert" }),
                }
            }
            Ok(())
        })
    }

    fn greeted(&self) -> Greeted {
        self.connection.greeting()
    }

    fn durable(&self) -> (Term, Epoch) {
        (self.term(), self.connection.durable_epoch())
    }

    fn wait_advance(&self, seen: (Term, Epoch)) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let connection = self.connection.clone();
        Box::pin(async move {
            if (connection.greeting().term, connection.durable_epoch()) != seen {
                return Ok(());
            }
            connection.wait_durable_advance(seen.1).await.map(|_| ()).map_err(from_link)
        })
    }

    fn lease_left(&self) -> Duration {
        let (now, until) = (vellum_rt::now().0, self.connection.lease_valid_until().0);
        Duration::from_nanos(until.saturating_sub(now))
    }

    fn wait_lease(&self) -> LocalBoxFuture<'static, Result<(), ClientError>> {
        let connection = self.connection.clone();
        Box::pin(async move {
            loop {
                if let Some(why) = connection.closed() {
                    return Err(from_link(why));
                }
                if vellum_rt::now() < connection.lease_valid_until() {
                    return Ok(());
                }
                env::sleep(LEASE_POLL).await;
            }
        })
    }

    fn set_upcalls(&self, upcalls: Rc<dyn Upcalls>) {
        let to = upcalls.clone();
        self.connection.set_handler(Rc::new(move |request| match request {
            Request::Invalidate { name, mode } => {
                let done = to.invalidate(name, mode);
                Box::pin(async move {
                    done.await;
                    Response::Invalidated
                })
            }
            Request::FileLockDone { ticket, outcome } => {
                to.file_lock_ended(ticket, outcome);
                Box::pin(async { Response::Noted })
            }
            _ => Box::pin(async {
                Response::error(vellum_wire::ErrorCode::Unsupported, "a client answers no such request")
            }),
        }));
        let to = upcalls.clone();
        self.connection.on_new_term(Rc::new(move |greeted| {
            let done = to.new_term(greeted);
            Box::pin(async move {
                if let Err(ClientError::Connection(_)) = done.await {
                    // That leader is lost too: the hook is dropped, and called again for the next.
                    std::future::pending::<()>().await;
                }
            })
        }));
        env::spawn("watch connection", watch_close(Rc::downgrade(&self.connection), RefCell::new(Some(upcalls))));
    }

    fn close(&self) {
        self.connection.close();
    }
}

async fn watch_close(connection: Weak<Connection>, upcalls: RefCell<Option<Rc<dyn Upcalls>>>) {
    let Some(connection) = connection.upgrade() else { return };
    if let Err(why) = connection.wait_durable_advance(Epoch(u64::MAX)).await
        && let Some(upcalls) = upcalls.take()
    {
        upcalls.closed(from_link(why));
    }
}
