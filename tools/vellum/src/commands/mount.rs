//! mount: a gateway in this process, and for `file:` the engine too, until unmounted or told to stop.

use std::path::Path;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vellum_client::{Address, Client, ClientOptions};
use vellum_fuse::{End, MountOptions, Unmount, mount_vfs};
use vellum_rt::native;
use vellum_rt::net::Endpoint;
use vellum_server::Node;
use vellum_vfs::{Caller, Vfs, VfsOptions};

use crate::cli::{IdleCores, Mount};
use crate::endpoint::Target;
use crate::engine;
use crate::exit::{Coded, Exit, WithExit};
use crate::session::connect_options;

/// How long `--daemon` waits for the mount to appear.
const DAEMON_WAIT: Duration = Duration::from_secs(60);
/// An end that takes longer is explained.
const SLOW_END: Duration = Duration::from_secs(5);

pub fn mount(args: &Mount) -> Result<()> {
    if args.daemon {
        return daemon(args);
    }
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let target = Target::parse(&args.endpoint)?;
    let (node, address, endpoint) = match &target {
        Target::Served(endpoints) => (None, Address::from(endpoints.clone()), target.to_string()),
        Target::Embedded(spec) => {
            let socket = Endpoint::Unix(engine::own_socket()?);
            let node = engine::start(spec, args.engine.options(vec![socket.clone()], 1))?;
            tracing::info!("{}", engine::describe(node.up()));
            let address = Address::InProcess(node.dialer());
            (Some((node, socket.clone())), address, socket.to_string())
        }
    };
    let reactor = native::Config { cores_awake: args.idle_cores == IdleCores::Awake, ..native::Config::default() };
    let served = native::block_on_with(reactor, serve(args, address, endpoint, signals))
        .context("the gateway's reactor")
        .and_then(|served| served);
    let stopped = match node {
        Some((node, socket)) => stop(node, &socket),
        None => Ok(()),
    };
    served.and(stopped)
}

fn stop(node: Node, socket: &Endpoint) -> Result<()> {
    let stopped = node.shutdown().context("the engine did not stop cleanly").exit(Exit::Device);
    if let Endpoint::Unix(path) = socket {
        let _ = std::fs::remove_file(path); // the next start removes it too
    }
    stopped
}

/// Serves the mount on this thread's reactor until it is gone.
async fn serve(args: &Mount, address: Address, endpoint: String, mut signals: Signals) -> Result<()> {
    let connect = connect_options(args.keys.load()?, matches!(address, Address::InProcess(_)));
    let bounds = ClientOptions { cache_bytes: args.item_cache as usize, ..ClientOptions::default() };
    let client = Client::connect(address, None, connect, bounds)
        .await
        .with_context(|| format!("cannot reach {}", args.endpoint))
        .exit(Exit::Endpoint)?;
    let vfs = Vfs::new(client.clone(), VfsOptions::default());
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let caller = Caller { uid, gid, pid: std::process::id(), umask: 0 };
    vfs.make_root(caller).await.context("making the root directory").exit(Exit::Device)?;
    let mut options =
        MountOptions { fsname: args.endpoint.clone(), read_only: args.read_only, ..MountOptions::default() };
    options.allow_other |= args.allow_other;
    options.kernel_inodes = args.kernel_inodes;
    options.read_only |= client.is_read_only();
    let handle = match mount_vfs(vfs.clone(), &args.dir, Some(endpoint), &options).exit(Exit::Mount) {
        Ok(handle) => handle,
        Err(refused) => {
            // An engine waits for a client that only falls silent.
            let _ = vfs.shutdown().await;
            let _ = client.farewell().await;
            return Err(refused);
        }
    };
    tracing::info!("mounted {} at {}", args.endpoint, args.dir.display());
    let unmounter = handle.unmounter();
    let signal_handle = signals.handle();
    let stopper = std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            // Busy: out of the tree at once, served until the last user has left.
            if unmounter.unmount(Unmount::WhenIdle).is_err() {
                let _ = unmounter.unmount(Unmount::Lazy);
            }
        }
    });
    let end = handle.until_unmounted().await;
    signal_handle.close();
    let _ = stopper.join();
    let mut shutdown = pin!(vfs.shutdown());
    let synced = match vellum_rt::timeout(SLOW_END, shutdown.as_mut()).await {
        Ok(synced) => synced,
        Err(_) => {
            tracing::warn!("what was written last is not durable yet: waiting for the engine (SIGKILL gives it up)");
            shutdown.await
        }
    };
    let left = client.farewell().await;
    synced.context("what was written last could not be made durable")?;
    left.context("leaving")?;
    match end {
        End::Unmounted => Ok(()),
        End::Aborted => anyhow::bail!("the mount at {} was aborted", args.dir.display()),
        End::Failed(errno) => anyhow::bail!("reading the kernel's requests failed: {errno:?}"),
    }
}

/// Starts this very command in the background and waits until the mount is there.
fn daemon(args: &Mount) -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let passed = std::env::args_os().skip(1).filter(|arg| arg != "--daemon");
    let mut child = Command::new(own)
        .args(passed)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the background process")?;
    let before = device_of(&args.dir);
    let start = Instant::now();
    while start.elapsed() < DAEMON_WAIT {
        if let Some(status) = child.try_wait()? {
            let code = match status.code() {
                Some(2) => Exit::Usage,
                Some(4) => Exit::Device,
                Some(5) => Exit::Endpoint,
                Some(6) => Exit::Mount,
                _ => Exit::Failure,
            };
            let error = anyhow::anyhow!("the gateway ended with {status}");
            return Err(Coded { code, error }.into());
        }
        if device_of(&args.dir) != before {
            println!("{} is mounted at {} by process {}", args.endpoint, args.dir.display(), child.id());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    anyhow::bail!("no mount at {} within {DAEMON_WAIT:?}", args.dir.display())
}

fn device_of(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|m| m.dev())
}
