//! Opening: kind, direct IO, lock, size.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

use vellum_base::DmaBuf;
use vellum_base::units::BLOCK_SIZE;

use super::lock;
use crate::{DeviceError, Geometry, OpenMode};

/// The kernel splits a longer direct IO at 256 pages (scattered memory) anyway, and hands what it cannot start at once to
/// a worker thread; so pieces of this size run in parallel and without threads.
const MAX_TRANSFER_BYTES: usize = 1 << 20;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

pub(super) struct OpenFile {
    pub file: File,
    pub path: String,
    pub block_device: bool,
    /// False on tmpfs and ramfs alone, where there is nothing beneath the page cache.
    pub direct: bool,
    pub geometry: Geometry,
    flags: i32,
    slot: Option<u8>,
    /// The block device it is, or that its filesystem is on.
    dev: u64,
}

impl OpenFile {
    pub fn open(path: &str, mode: OpenMode) -> Result<OpenFile, DeviceError> {
        let failed = |what| move |err: io::Error| DeviceError::open(path, what, &err);
        let kind = std::fs::metadata(path).map_err(failed("open"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DeviceError::NotADevice {
                path: path.to_owned(),
                detail: "want a regular file or a block device",
            });
        }
        let exclusive = mode.exclusive && !mode.read_only && mode.slot.is_none();
        let direct = !in_page_cache_only(path);
        let direct_flag = if direct { libc::O_DIRECT } else { 0 };
        // On a block device this also keeps mounts and other kernel users out; on a file it would mean nothing.
        let claim_flag = if exclusive && kind.is_block_device() { libc::O_EXCL } else { 0 };
        let file =
            open_with(path, mode.read_only, direct_flag | claim_flag).map_err(|err| match err.raw_os_error() {
                Some(libc::EBUSY) => {
                    DeviceError::InUse { path: path.to_owned(), detail: "it is mounted, or claimed exclusively" }
                }
                Some(libc::EINVAL) if direct => no_direct_io(path, &err),
                _ => failed("open")(err),
            })?;
        if let Err(detail) = lock::claim(&file, mode).map_err(failed("lock"))? {
            return Err(DeviceError::InUse { path: path.to_owned(), detail });
        }
        let meta = file.metadata().map_err(failed("stat"))?;
        let block_device = meta.file_type().is_block_device();
        let dev = if block_device { meta.rdev() } else { meta.dev() };
        let size_bytes = size_of(&file, block_device).map_err(failed("find the size of"))?;
        if size_bytes == 0 {
            return Err(DeviceError::NotADevice { path: path.to_owned(), detail: "it is smaller than one block" });
        }
        if direct {
            let mut probe = DmaBuf::new(BLOCK_SIZE);
            file.read_exact_at(&mut probe, 0).map_err(|err| match err.raw_os_error() {
                Some(libc::EINVAL) => no_direct_io(path, &err),
                _ => failed("read")(err),
            })?;
        }
        let attribute = |name| queue_attribute(dev, name);
        let lba_bytes = attribute("logical_block_size").and_then(|text| text.parse().ok()).unwrap_or(512);
        // A file's size and extents are in the kernel's memory until a flush, whatever the disk beneath does.
        let write_through = block_device && attribute("write_cache").is_some_and(|mode| mode == "write through");
        let geometry = Geometry {
            size_bytes,
            lba_bytes,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_write_cache: !write_through,
            name: format!("uring:{path}{}", if direct { "" } else { " (buffered: no disk beneath)" }),
        };
        let (path, slot) = (path.to_owned(), mode.slot.filter(|_| !mode.read_only));
        Ok(OpenFile { file, path, block_device, direct, geometry, flags: direct_flag, slot, dev })
    }

    /// A file description of its own for a queue. Opened through the descriptor, because the path may name another
    /// file by now; where /proc is missing the description is shared. A member's holds its slot's lock.
    pub fn reopen(&self, read_only: bool) -> io::Result<File> {
        let own_path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = match open_with(&own_path, read_only, self.flags) {
            Ok(file) => file,
            Err(err) => {
                tracing::warn!(path = %self.path, %err, "queues share one file description");
                return self.file.try_clone();
            }
        };
        if let Some(slot) = self.slot {
            lock::join_io(&file, slot)?;
        }
        Ok(file)
    }

    /// In whole blocks, as it is now.
    pub fn size_bytes(&self) -> io::Result<u64> {
        size_of(&self.file, self.block_device)
    }

    pub fn slot_has_io(&self, slot: u8) -> io::Result<bool> {
        lock::has_io(&self.file, slot)
    }

    /// True when the operator gave the disk queues to be polled (`nvme.poll_queues=`).
    pub fn queue_has_polling(&self) -> bool {
        queue_attribute(self.dev, "io_poll").is_some_and(|value| value == "1")
    }
}

fn size_of(mut file: &File, block_device: bool) -> io::Result<u64> {
    let raw_size = if block_device { file.seek(SeekFrom::End(0))? } else { file.metadata()?.len() };
    Ok(raw_size - raw_size % BLOCK_SIZE as u64)
}

fn open_with(path: &str, read_only: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags | libc::O_CLOEXEC).open(path)
}

fn no_direct_io(path: &str, err: &io::Error) -> DeviceError {
    let detail = format!("{err}; use a block device, or a file on ext4, xfs or another disk filesystem");
    DeviceError::NoDirectIo { path: path.to_owned(), detail }
}

fn in_page_cache_only(path: &str) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| matches!(fs.f_type as u64, TMPFS_MAGIC | RAMFS_MAGIC))
}

/// An attribute of the disk's request queue in sysfs; a partition's is its disk's.
fn queue_attribute(dev: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}")).ok()?;
        Some(text.trim().to_owned())
    })
}
