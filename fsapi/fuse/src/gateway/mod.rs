//! Vellum's vfs as a FUSE filesystem.
//!
//! What the kernel caches of it (names, attributes, pages) it may use only while this client holds the locks: answers
//! carry the rest of the lease as their timeout, and when a lock group is given away, [`Gateway::let_go`] takes
//! the timeouts back before the engine is answered. Pages of files that are not open need no such wait: the kernel compares
//! mtime and size when it asks for attributes again, and drops pages of what changed (`AUTO_INVAL_DATA`).
//!
//! Advisory locks (fcntl, open file descriptions, flock) are the engine's, over all gateways: see `locks` for how they end.
//! Permissions are the kernel's business (`default_permissions`).

mod cache;
mod convert;
mod locks;
mod nodes;
mod ops;
mod stale;

use std::path::Path;
use std::rc::Rc;

use vellum_vfs::Vfs;

pub use cache::{Gateway, LeaseLeft};

use crate::handle::{MountHandle, mount_filesystem};
use crate::mount::{MountError, MountOptions};

/// The xattr of every inode of a mount that names the engine's endpoint, for tools that are given a path. Stored nowhere.
pub const ENDPOINT_XATTR: &[u8] = b"vellum.endpoint";

/// Mounts `vfs` at `path` and serves it on the current reactor, to which `vfs` belongs. `endpoint` is what
/// [`ENDPOINT_XATTR`] answers.
pub fn mount_vfs(
    vfs: Rc<Vfs>,
    path: &Path,
    endpoint: Option<String>,
    options: &MountOptions,
) -> Result<MountHandle, MountError> {
    let gateway = Gateway::new(vfs.clone(), endpoint, options.kernel_inodes);
    let handle = mount_filesystem(gateway.clone(), path, options)?;
    let told = Rc::downgrade(&gateway);
    vfs.on_release(Rc::new(move |group| {
        let gateway = told.upgrade();
        Box::pin(async move {
            if let Some(gateway) = gateway {
                gateway.let_go(group).await;
            }
        })
    }));
    let client = vfs.client().clone();
    gateway.cache_within(Rc::new(move || client.lease_left()));
    Ok(handle)
}
