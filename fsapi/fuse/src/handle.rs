//! A mounted filesystem as its owner sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use vellum_rt as rt;

use crate::filesystem::Filesystem;
use crate::init::SessionInfo;
use crate::mount::{self, MountError, MountOptions, Mounted, Unmount};
use crate::notify::Notifier;
use crate::readers::Reader;
use crate::session::{End, Session};
use crate::stats::Statistics;

/// What does not depend on the filesystem's type.
trait Running {
    fn end(&self) -> Option<End>;
    fn ended(&self) -> &rt::local::Event;
    fn info(&self) -> Option<SessionInfo>;
    fn statistics(&self) -> Statistics;
    fn notifier(&self) -> Notifier;
    fn another_reader(&self) -> io::Result<Reader>;
}

impl<F: Filesystem> Running for Session<F> {
    fn end(&self) -> Option<End> {
        Session::end(self)
    }
    fn ended(&self) -> &rt::local::Event {
        &self.ended
    }
    fn info(&self) -> Option<SessionInfo> {
        Session::info(self)
    }
    fn statistics(&self) -> Statistics {
        Session::statistics(self)
    }
    fn notifier(&self) -> Notifier {
        Session::notifier(self)
    }
    fn another_reader(&self) -> io::Result<Reader> {
        Session::another_reader(self)
    }
}

/// A mount served by this reactor. Dropping it takes the mount out of the tree (lazily) if it is still there.
pub struct MountHandle {
    running: Rc<dyn Running>,
    unmounter: Unmounter,
}

/// Takes the mount away from wherever it is: a signal handler's thread, another reactor.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mounted: Mounted,
}

/// Mounts `fs` at `path`, and serves it on the current reactor, which must be a native one.
pub fn mount_filesystem<F: Filesystem>(
    fs: Rc<F>,
    path: &Path,
    options: &MountOptions,
) -> Result<MountHandle, MountError> {
    let mut wants = fs.wants();
    wants.writeback_cache |= options.writeback_cache;
    let (device, mounted) = mount::mount(path, options)?;
    let unmounter = Unmounter { mounted };
    serve(fs, device, wants, &unmounter, options).inspect_err(|_| unmounter.in_background(Unmount::Lazy))
}

fn serve<F: Filesystem>(
    fs: Rc<F>,
    device: OwnedFd,
    wants: crate::init::Wants,
    unmounter: &Unmounter,
    options: &MountOptions,
) -> Result<MountHandle, MountError> {
    let input = rt::fd::AsyncFd::new(device.try_clone()?)?;
    let session = Session::new(fs, Arc::new(device), wants, options.max_read, Arc::default());
    // Memory that this thread needs must not wait for its own mount to write dirty pages. Needs CAP_SYS_RESOURCE.
    if let Err(error) = become_io_flusher() {
        tracing::debug!(%error, "not marked as IO flusher");
    }
    if let (Some(kib), unmounter) = (options.readahead_kib, unmounter.clone()) {
        session.after_init(Box::new(move || {
            if let Err(error) = unmounter.mounted.set_readahead(kib) {
                tracing::debug!(%error, "the kernel's readahead stays at its default");
            }
        }));
    }
    rt::spawn(rt::Class::Request, "fuse-reader", session.clone().run(input)).detach();
    Ok(MountHandle { running: session, unmounter: unmounter.clone() })
}

fn become_io_flusher() -> io::Result<()> {
    Ok(rustix::process::configure_io_flusher_behavior(true)?)
}

impl MountHandle {
    pub fn path(&self) -> &Path {
        self.unmounter.mounted.path()
    }

    /// Resolves when the mount is gone, whoever took it away.
    pub async fn until_unmounted(&self) -> End {
        self.running.ended().wait().await;
        self.running.end().unwrap_or(End::Unmounted)
    }

    pub fn is_mounted(&self) -> bool {
        self.running.end().is_none()
    }

    /// Takes the mount away (on a thread: the kernel may need our answers meanwhile) and, unless it lingers lazily, waits
    /// until nothing more will come.
    pub async fn unmount(&self, how: Unmount) -> io::Result<()> {
        if !self.is_mounted() {
            return Ok(());
        }
        let (done, mut answer) = rt::channel::bounded(1);
        let mounted = self.unmounter.mounted.clone();
        std::thread::Builder::new().name("fuse-unmount".into()).spawn(move || {
            let _ = done.try_send(mounted.unmount(how)); // the asker may have gone
        })?;
        answer.recv().await.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))?;
        if how != Unmount::Lazy {
            self.until_unmounted().await;
        }
        Ok(())
    }

    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// `None` until the kernel's INIT was answered.
    pub fn info(&self) -> Option<SessionInfo> {
        self.running.info()
    }

    pub fn statistics(&self) -> Statistics {
        self.running.statistics()
    }

    pub fn notifier(&self) -> Notifier {
        self.running.notifier()
    }

    /// A reader for another reactor; possible once [`MountHandle::info`] is there.
    pub fn another_reader(&self) -> io::Result<Reader> {
        self.running.another_reader()
    }
}

impl Unmounter {
    /// Blocks; not on the reactor that serves the mount.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        self.mounted.unmount(how)
    }

    fn in_background(&self, how: Unmount) {
        let mounted = self.mounted.clone();
        let spawned = std::thread::Builder::new().name("fuse-unmount".into()).spawn(move || {
            if let Err(error) = mounted.unmount(how) {
                tracing::debug!(%error, path = %mounted.path().display(), "unmount");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot unmount");
        }
    }
}

impl Drop for MountHandle {
    fn drop(&mut self) {
        if self.is_mounted() {
            self.unmounter.in_background(Unmount::Lazy);
        }
    }
}
