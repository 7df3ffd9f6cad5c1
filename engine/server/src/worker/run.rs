//! The life of a worker: from one connection to the next, until it is told to stop.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use vellum_base::{Fsid, Rid};
use vellum_keys::Keys;
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError, LocalBoxFuture};
use vellum_nvme::Device;
use vellum_proto::Timers;
use vellum_rt::channel::Receiver;
use vellum_rt::{random_u64, sleep, timeout};
use vellum_store::{PolledQueue, StoreError};
use vellum_wire::{ErrorCode, Greeting, Refusal, Request, Response};

use super::jobs::Jobs;

/// After a connection that was refused or lost.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Of a quorum member.
    pub slot: Option<u8>,
    /// Compactions at a time.
    pub jobs: u32,
    pub timers: Timers,
    /// Operations in flight at the device.
    pub queue_depth: u32,
    /// How long a farewell is waited for.
    pub farewell: Duration,
    /// A node's, for TLS.
    pub keys: Option<Arc<Keys>>,
    /// Plain TCP to anywhere. For simulations.
    pub insecure_network: bool,
}

impl Default for WorkerOptions {
    fn default() -> WorkerOptions {
        WorkerOptions {
            slot: None,
            jobs: 1,
            timers: Timers::DEFAULT,
            queue_depth: 64,
            farewell: Duration::from_secs(5),
            keys: None,
            insecure_network: false,
        }
    }
}

/// Why a worker cannot go on.
#[derive(Error, Debug, Clone)]
pub enum WorkerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the engine serves another filesystem ({served}) than the device holds ({ours})")]
    OtherFilesystem { served: Fsid, ours: Fsid },
    #[error("the engine speaks protocol {served}")]
    OtherProtocol { served: u32 },
    #[error("the engine takes no worker of this user or host")]
    NotAllowed,
}

/// How one connection ended.
enum End {
    Stopped,
    Lost,
}

/// Works until `stop` says so or its senders are gone. On return the device has answered every write.
pub async fn run(
    device: Arc<dyn Device>,
    address: Address,
    options: WorkerOptions,
    mut stop: Receiver<()>,
) -> Result<(), WorkerError> {
    let queue = PolledQueue::open(&*device, options.queue_depth, "worker device").map_err(StoreError::from)?;
    let fsid = vellum_store::fsid(&queue).await?;
    let jobs = Jobs::new(queue.clone(), options.jobs.max(1) as usize);
    let result = loop {
        let ended = session(&address, fsid, &options, &jobs, &mut stop).await;
        jobs.drain().await;
        match ended {
            Ok(End::Stopped) => break Ok(()),
            Err(error) => break Err(error),
            Ok(End::Lost) if either(stop.recv(), sleep(PAUSE)).await.is_some() => break Ok(()),
            Ok(End::Lost) => {}
        }
    };
    jobs.drain().await;
    result
}

async fn session(
    address: &Address,
    fsid: Fsid,
    options: &WorkerOptions,
    jobs: &Rc<Jobs>,
    stop: &mut Receiver<()>,
) -> Result<End, WorkerError> {
    let connect = ConnectOptions {
        timers: options.timers,
        open_within: None,
        keys: options.keys.clone(),
        insecure_network: options.insecure_network,
        flags: Greeting::worker_flags(options.slot),
    };
    let identity = Identity { rid: Rid(random_u64()), fsid: Some(fsid) };
    let opening = pin!(Connection::open(address.clone(), identity, connect));
    let connection = match either(opening, stop.recv()).await {
        None => return Ok(End::Stopped),
        Some(Ok(connection)) => connection,
        Some(Err(error)) => return refused(error, fsid),
    };
    let (runner, most) = (jobs.clone(), options.jobs.max(1));
    connection.set_handler(Rc::new(move |request| -> LocalBoxFuture<Response> {
        match request {
            Request::Compact { job } => Box::pin(runner.clone().run(job)),
            _ => Box::pin(async { Response::error(ErrorCode::Unsupported, "a worker compacts") }),
        }
    }));
    let (weak, runner) = (Rc::downgrade(&connection), jobs.clone());
    connection.on_new_term(Rc::new(move |_| {
        let (weak, runner) = (weak.clone(), runner.clone());
        Box::pin(async move {
            runner.drain().await;
            let Some(connection) = weak.upgrade() else { return };
            let nothing = Request::Reassert { locks: Vec::new(), last: true };
            if connection.call_recovery(nothing, None).await.is_err() {
                return; // the term has ended: all this comes again in the next
            }
            if let Err(error) = connection.call_recovery(Request::Work { jobs: most }, None).await {
                tracing::info!(%error, "the engine takes no work; another rid is tried");
                connection.close();
            }
        })
    }));
    match either(connection.call(Request::Work { jobs: most }, None), stop.recv()).await {
        None => return farewell(&connection, jobs, options).await,
        Some(Ok(_)) => tracing::info!(?address, "working"),
        Some(Err(error)) => return refused(error, fsid),
    }
    match either(lost(&connection), stop.recv()).await {
        None => farewell(&connection, jobs, options).await,
        Some(error) => refused(error, fsid),
    }
}

/// Ends when the connection is closed for good.
async fn lost(connection: &Connection) -> LinkError {
    let mut known = connection.durable_epoch();
    loop {
        match connection.wait_durable_advance(known).await {
            Ok(durable) => known = durable,
            Err(error) => return error,
        }
    }
}

async fn farewell(connection: &Connection, jobs: &Jobs, options: &WorkerOptions) -> Result<End, WorkerError> {
    jobs.drain().await; // the farewell says that nothing of ours is on its way to the device
    if connection.is_up() && timeout(options.farewell, connection.farewell()).await.is_err() {
        tracing::info!("the engine did not answer the farewell");
    }
    Ok(End::Stopped)
}

fn refused(error: LinkError, ours: Fsid) -> Result<End, WorkerError> {
    match error {
        LinkError::Refused(Refusal::OtherFilesystem { served }) => Err(WorkerError::OtherFilesystem { served, ours }),
        LinkError::Refused(Refusal::OtherProtocol { served }) => Err(WorkerError::OtherProtocol { served }),
        LinkError::Refused(Refusal::NoWorker) => Err(WorkerError::NotAllowed),
        error => {
            tracing::info!(%error, "the connection is lost");
            Ok(End::Lost)
        }
    }
}

/// The output of `first`, unless `second` ends before it.
async fn either<T, U>(first: impl Future<Output = T>, second: impl Future<Output = U>) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = Pin::new(&mut first).poll(cx) {
            return Poll::Ready(Some(output));
        }
        second.as_mut().poll(cx).map(|_| None)
    })
    .await
}
