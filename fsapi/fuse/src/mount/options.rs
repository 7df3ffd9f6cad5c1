//! What a mount is asked to be.

use std::fmt::Write;
use std::os::fd::RawFd;

use crate::init::MAX_WRITE;
use crate::known::KERNEL_INODES;

/// Options of a mount. The defaults are those of a gateway that serves a machine: permissions checked by the kernel,
/// every user may come in when root mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// First column of `df` and /proc/mounts.
    pub fsname: String,
    /// The filesystem type is `fuse.<subtype>`.
    pub subtype: String,
    /// Other users than the mounting one may come in. A user who is not root needs `user_allow_other` in fuse.conf.
    pub allow_other: bool,
    /// The kernel checks modes, owners and groups.
    pub default_permissions: bool,
    pub read_only: bool,
    pub allow_suid: bool,
    pub allow_dev: bool,
    pub no_atime: bool,
    /// The largest READ, in bytes.
    pub max_read: usize,
    /// How far the kernel reads ahead of a sequential reader; best effort, root only.
    pub readahead_kib: Option<u32>,
    /// The kernel keeps dirty pages: only when nobody else can change the filesystem.
    pub writeback_cache: bool,
    /// Requests that are read in one go.
    pub read_buffers: usize,
    /// Inodes that the kernel may hold before it is asked to forget some (Linux 6.18).
    pub kernel_inodes: usize,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            fsname: "vellum".into(),
            subtype: "vellum".into(),
            allow_other: rustix::process::geteuid().is_root(),
            default_permissions: true,
            read_only: false,
            allow_suid: false,
            allow_dev: false,
            no_atime: false,
            max_read: MAX_WRITE,
            readahead_kib: Some(1024),
            writeback_cache: false,
            read_buffers: 4,
            kernel_inodes: KERNEL_INODES,
        }
    }
}

impl MountOptions {
    /// mount(2)'s data for a root directory mounted by this user.
    pub(super) fn kernel_data(&self, device: RawFd) -> String {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mut data = format!("fd={device},rootmode=40000,user_id={uid},group_id={gid}");
        self.push_common(&mut data);
        data
    }

    /// fusermount3's `-o`; it adds fd, rootmode and ids itself.
    pub(super) fn helper_data(&self) -> String {
        let mut data = format!("fsname={},subtype={}", escaped(&self.fsname), escaped(&self.subtype));
        self.push_common(&mut data);
        for (on, word) in [(self.read_only, ",ro"), (self.no_atime, ",noatime"), (!self.allow_suid, ",nosuid")] {
            data.push_str(if on { word } else { "" });
        }
        data
    }

    fn push_common(&self, data: &mut String) {
        for (on, word) in [(self.allow_other, ",allow_other"), (self.default_permissions, ",default_permissions")] {
            data.push_str(if on { word } else { "" });
        }
        let _ = write!(data, ",max_read={}", self.max_read); // a String takes everything
    }
}

/// fusermount3 splits at commas.
fn escaped(word: &str) -> String {
    word.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_the_kernel_s_words() {
        let options = MountOptions { fsname: "a,b".into(), allow_other: true, ..MountOptions::default() };
        let data = options.kernel_data(7);
        assert!(data.starts_with("fd=7,rootmode=40000,user_id="), "{data}");
        assert!(data.ends_with(",allow_other,default_permissions,max_read=1048576"), "{data}");
        assert!(options.helper_data().starts_with("fsname=a\\,b,subtype=vellum,"), "{}", options.helper_data());
    }
}
