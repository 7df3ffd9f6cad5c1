//! From a device's spec on the command line to a [`Device`].

use std::sync::Arc;

use crate::memory::MemoryDevice;
use crate::uring::UringDevice;
use crate::{Device, DeviceError};

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpenMode {
    /// Writes, flushes and discards are refused. Fails while anybody may write: a device that is being served.
    pub read_only: bool,
    /// Nobody else may have it open (through Vellum; for block devices also not mounted). Without it, writers share the
    /// device, and only an exclusive opener is kept out. Ignored with `read_only`.
    pub exclusive: bool,
    /// The member of a cluster in this slot, which shares the device with those in other slots. Fails while a member in
    /// the same slot runs on this host; waits for what a dead one has at the device. Ignored with `read_only`.
    pub slot: Option<u8>,
    /// Reads what others may be writing at the moment: for blocks that are verified one by one. Implies `read_only`.
    pub observe: bool,
}

/// Opens `PATH`, `uring:PATH` or `file:PATH` (a regular file or a block device), or `memory:SIZE` (`64M`, `1GiB`; a new,
/// empty one each time).
pub fn open(spec: &str, mode: OpenMode) -> Result<Arc<dyn Device>, DeviceError> {
    let mode = OpenMode { read_only: mode.read_only || mode.observe, ..mode };
    let not_built = |backend| Err(DeviceError::NotBuilt { spec: spec.to_owned(), backend });
    match spec.split_once(':') {
        Some(("uring" | "file", path)) => Ok(Arc::new(UringDevice::open(path, mode)?)),
        Some(("memory", size)) => {
            let bad = || DeviceError::BadSpec { spec: spec.to_owned(), detail: "want memory:SIZE such as memory:256M" };
            let size_bytes = parse_size(size).filter(|bytes| *bytes >= 4096).ok_or_else(bad)?;
            Ok(Arc::new(MemoryDevice::new(size_bytes)))
        }
        Some(("nvme", _)) => not_built("nvme"),
        Some(("vfio-user", _)) => not_built("vfio-user"),
        Some(("spdk", _)) => not_built("spdk"),
        _ if spec.is_empty() => Err(DeviceError::BadSpec { spec: String::new(), detail: "it is empty" }),
        _ => Ok(Arc::new(UringDevice::open(spec, mode)?)),
    }
}

/// Bytes with an optional binary suffix: `4096`, `64K`, `1MiB`, `2g`.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_specs_are_understood_or_refused_clearly() {
        assert_eq!(parse_size("64M"), Some(64 << 20));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        assert_eq!(parse_size("12x"), None);
        assert_eq!(parse_size("99999999999T"), None);
        let open = |spec: &str| open(spec, OpenMode::default());
        assert_eq!(open("memory:1M").unwrap().geometry().size_bytes, 1 << 20);
        let message = |spec: &str| open(spec).err().unwrap().to_string();
        assert!(message("nvme:0000:01:00.0").contains("not built yet"));
        assert!(message("memory:lots").contains("want memory:SIZE"));
        assert!(message("/no/such/device").contains("/no/such/device"));
        assert!(message("").contains("empty"));
    }
}
