//! Nodes and gateways inside the benchmark's own process.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use vellum_base::Rid;
use vellum_client::{Address, Client, ClientOptions};
use vellum_link::{ConnectOptions, Connection, Identity};
use vellum_nvme::memory::MemoryDevice;
use vellum_nvme::{Device, OpenMode};
use vellum_rt::native;
use vellum_server::{Node, NodeOptions};
use vellum_store::{Everyone, MkfsOptions, OpenOptions, PolledQueue, Store, StoreStatus, mkfs};
use vellum_vfs::{Caller, Vfs, VfsOptions};
use vellum_wire::Request;

fn format(device: &Arc<dyn Device>) -> Result<()> {
    native::block_on(async {
        let queue = PolledQueue::open(&**device, 64, "mkfs")?;
        mkfs(device, &queue, MkfsOptions { force: true, ..MkfsOptions::default() }).await?;
        Ok(())
    })
}

fn start(device: Arc<dyn Device>, reactors: usize) -> Result<Node> {
    format(&device)?;
    serve(device, reactors)
}

fn serve(device: Arc<dyn Device>, reactors: usize) -> Result<Node> {
    Ok(Node::start(device, NodeOptions { cores: vec![None; reactors], ..NodeOptions::default() })?)
}

/// A fresh filesystem in memory and its node.
pub fn in_memory(reactors: usize) -> Result<Node> {
    start(Arc::new(MemoryDevice::new(256 << 20)), reactors)
}

/// A file as the device, whose blocks are allocated, so that flushes cost what they cost on a device.
pub fn fresh_image(path: &Path, bytes: u64) -> Result<()> {
    std::fs::File::create(path)?;
    Ok(vellum_nvme::uring::fill::extend_written(path, bytes)?)
}

/// A fresh filesystem in a file, direct IO, and its node.
pub fn on_file(path: &Path, bytes: u64, reactors: usize) -> Result<Node> {
    fresh_image(path, bytes)?;
    start(open(path)?, reactors)
}

/// A node of the filesystem that is in a file.
pub fn of_file(path: &Path, reactors: usize) -> Result<Node> {
    serve(open(path)?, reactors)
}

/// What the store in a file that no node serves says of itself. Opened for reading, it changes nothing and merges nothing.
pub fn status_of_file(path: &Path) -> Result<StoreStatus> {
    let device = open(path)?;
    native::block_on(async {
        let queue = PolledQueue::open(&*device, 64, "look")?;
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mut opened = vellum_store::open(&device, &queue, options).await?;
        let seed = opened.seeds.pop().context("one reactor")?;
        let store = Store::start(seed, Rc::new(Everyone)).await?;
        let status = store.status().await?;
        store.shutdown().await?;
        Ok(status)
    })
}

fn open(path: &Path) -> Result<Arc<dyn Device>> {
    Ok(vellum_nvme::open(&format!("uring:{}", path.display()), OpenMode::default())?)
}

/// A client of `node` on the current reactor.
pub async fn client(dialer: vellum_link::InProcessDialer) -> Result<Rc<Client>> {
    let (link, options) = (ConnectOptions::default(), ClientOptions::default());
    Ok(Client::connect(Address::InProcess(dialer), None, link, options).await?)
}

/// A client of the engine at that socket, on the current reactor.
pub async fn client_at(endpoint: vellum_rt::net::Endpoint) -> Result<Rc<Client>> {
    let (link, options) = (ConnectOptions::default(), ClientOptions::default());
    Ok(Client::connect(Address::Net(endpoint), None, link, options).await?)
}

/// Lets `node` merge all runs of all shards; returns when they are.
pub async fn merge_everything(dialer: vellum_link::InProcessDialer) -> Result<()> {
    let identity = Identity { rid: Rid(vellum_rt::random_u64()), fsid: None };
    let connection = Connection::open(Address::InProcess(dialer), identity, ConnectOptions::default()).await?;
    connection.call(Request::CompactAll, None).await?;
    Ok(connection.farewell().await?)
}

/// What a gateway does, without its kernel: work on a filesystem, made durable, by a client that leaves in order.
pub fn on_vfs<T>(to: Address, work: impl AsyncFnOnce(&Rc<Vfs>, Caller) -> Result<T>) -> Result<T> {
    native::block_on(async {
        let (link, options) = (ConnectOptions::default(), ClientOptions::default());
        let client = Client::connect(to, None, link, options).await?;
        let (vfs, caller) = gateway(&client).await?;
        let done = work(&vfs, caller).await?;
        vfs.shutdown().await?;
        client.farewell().await?;
        Ok(done)
    })
}

/// What a gateway has, without its kernel.
pub async fn gateway(client: &Rc<Client>) -> Result<(Rc<Vfs>, Caller)> {
    let vfs = Vfs::new(client.clone(), VfsOptions::default());
    let caller = Caller { uid: 0, gid: 0, pid: std::process::id(), umask: 0 };
    vfs.make_root(caller).await?;
    Ok((vfs, caller))
}
