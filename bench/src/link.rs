//! Frames over TCP, plain and within TLS: what proving who one is costs. A client's reactor and an engine's, with nothing
//! behind the session.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vellum_base::{BatchNo, BlockRange, DmaBuf, Epoch, Fsid, Ino, Rid, Term};
use vellum_keys::{Authority, Keys, Subject, Wish};
use vellum_link::{
    Acceptor, Address, ConnectOptions, Connection, Greeter, Identity, LocalBoxFuture, Session, SessionHandler, Stranger,
};
use vellum_proto::{Timers, Window};
use vellum_rt::net::Endpoint;
use vellum_rt::{channel, native};
use vellum_wire::{Greeted, PROTOCOL, Request, Response};

use crate::recorder::Recorder;

const WINDOW: Window = Window { max_requests: 64, max_bytes: 64 << 20 };
const FRAME_BYTES: usize = 1 << 20;
/// Frames in flight, as a gateway's write-back has them.
const DEPTH: usize = 8;

/// Keys of a node on loopback and of a client.
pub struct Both {
    node: Arc<Keys>,
    client: Arc<Keys>,
}

impl Both {
    pub fn make(dir: &Path) -> Result<Both> {
        let authority = Authority::init(dir)?;
        let keys = |subject: &str| {
            let wish = Wish {
                subject: subject.parse::<Subject>()?,
                addresses: vec!["127.0.0.1".into()],
                valid: Duration::from_secs(3600),
                renew: false,
            };
            anyhow::Ok(Arc::new(Keys::load(&authority.issue(&wish)?)?))
        };
        Ok(Both { node: keys("vellum:node/bench")?, client: keys("vellum:client/bench")? })
    }
}

/// Calls one after the other.
pub fn calls(keys: Option<&Both>, rounds: usize, recorder: &mut Recorder) -> Result<()> {
    with_connection(keys, async |conn| {
        for n in 0..rounds as u64 {
            let start = Instant::now();
            conn.call(Request::Sync { through: BatchNo(n) }, None).await?;
            recorder.record(start.elapsed(), 0);
        }
        Ok(())
    })
}

/// Frames of 1 MiB to the engine.
pub fn writes(keys: Option<&Both>, frames: usize, recorder: &mut Recorder) -> Result<()> {
    let data = DmaBuf::zeroed(FRAME_BYTES).freeze();
    transfer(keys, frames, recorder, move |conn| conn.call(Request::WriteData, Some(data.clone())))
}

/// Frames of 1 MiB from it.
pub fn reads(keys: Option<&Both>, frames: usize, recorder: &mut Recorder) -> Result<()> {
    let range = BlockRange::new(1, (FRAME_BYTES / vellum_base::BLOCK_SIZE) as u32);
    transfer(keys, frames, recorder, move |conn| conn.call(Request::ReadData { ranges: vec![range] }, None))
}

fn transfer(
    keys: Option<&Both>,
    frames: usize,
    recorder: &mut Recorder,
    call: impl Fn(&Connection) -> vellum_link::PendingCall,
) -> Result<()> {
    with_connection(keys, async |conn| {
        let mut open = std::collections::VecDeque::new();
        for _ in 0..frames {
            if open.len() == DEPTH
                && let Some((start, first)) = open.pop_front()
            {
                finish(start, first, recorder).await?;
            }
            open.push_back((Instant::now(), call(&conn)));
        }
        for (start, call) in open {
            finish(start, call, recorder).await?;
        }
        Ok(())
    })
}

async fn finish(start: Instant, call: vellum_link::PendingCall, recorder: &mut Recorder) -> Result<()> {
    call.await?;
    recorder.record(start.elapsed(), FRAME_BYTES as u64);
    Ok(())
}

fn with_connection(keys: Option<&Both>, work: impl AsyncFnOnce(Rc<Connection>) -> Result<()>) -> Result<()> {
    let (ready_in, mut ready_out) = channel::bounded::<SocketAddr>(1);
    let (stop_in, mut stop_out) = channel::bounded::<()>(1);
    let node = keys.map(|keys| keys.node.clone());
    let engine = native::spawn_thread("engine", None, move || async move {
        let acceptor = Acceptor::start(&Endpoint::Tcp(([127, 0, 0, 1], 0).into()), greeter(node))?;
        if let Endpoint::Tcp(addr) = acceptor.local_endpoint() {
            let _ = ready_in.send(*addr).await;
        }
        stop_out.recv().await;
        Ok::<(), std::io::Error>(())
    })?;
    let done = native::block_on(async {
        let addr = ready_out.recv().await.context("the engine did not start")?;
        let options = ConnectOptions { keys: keys.map(|keys| keys.client.clone()), ..ConnectOptions::default() };
        let identity = Identity { rid: Rid(1), fsid: None };
        let conn = Connection::open(Address::Net(Endpoint::Tcp(addr)), identity, options).await?;
        let done = work(conn.clone()).await;
        conn.close();
        done
    });
    drop(stop_in);
    engine.join()??;
    done
}

/// One session after the other, and answers at once.
fn greeter(keys: Option<Arc<Keys>>) -> Greeter {
    let data = DmaBuf::zeroed(FRAME_BYTES).freeze();
    let handler: SessionHandler = Rc::new(move |request, _, responder| match request {
        Request::Sync { through } => responder.send(Response::Synced { durable: Epoch(through.0) }, None),
        Request::WriteData => responder.send(Response::Written { ranges: vec![BlockRange::new(1, 1)] }, None),
        _ => responder.send(Response::Data, Some(data.clone())),
    });
    let admit: Rc<dyn Fn(Stranger) -> LocalBoxFuture<()>> = Rc::new(move |stranger| {
        let session = Session::new(stranger.greeting.rid, Term(1), WINDOW, Timers::DEFAULT, handler.clone(), || {});
        let Stranger { greeting, ack, reader, writer, guard, .. } = stranger;
        let _ = session.attach(reader, writer, guard, (&greeting, ack), greeted());
        Box::pin(async {})
    });
    Greeter::new(Timers::DEFAULT.greeting, keys, admit)
}

fn greeted() -> Greeted {
    Greeted {
        fsid: Fsid([1; 16]),
        term: Term(1),
        protocol: PROTOCOL,
        format: 1,
        last_batch: BatchNo(0),
        durable: Epoch(0),
        lease_ms: 9000,
        keepalive_ms: 1000,
        max_requests: WINDOW.max_requests,
        max_data_bytes: WINDOW.max_bytes as u32,
        read_only: false,
        root: Ino::ROOT,
    }
}
