//! From a device's spec on the command line to a [`Device`].

use std::sync::Arc;

use crate::driver::{self, NvmeDevice, Options, Transport};
use crate::emu::{self, ControllerConfig, EmuTransport, Medium, NamespaceConfig, ProcessBus, Subsystem};
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

/// Opens
/// - `PATH`, `uring:PATH` or `file:PATH`: a regular file or a block device;
/// - `memory:SIZE` (`64M`, `1GiB`): a new, empty one each time;
/// - `emu:SIZE`, `emu:null:SIZE`, `emu:file:PATH`: the NVMe driver over a modelled controller in this process, on new memory,
///   on nothing, on a file (which must be there, and is not locked): for tests and measurements.
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
        Some(("emu", what)) => open_emu(spec, what, mode),
        Some(("nvme", _)) => not_built("nvme"),
        Some(("vfio-user", _)) => not_built("vfio-user"),
        Some(("spdk", _)) => not_built("spdk"),
        _ if spec.is_empty() => Err(DeviceError::BadSpec { spec: String::new(), detail: "it is empty" }),
        _ => Ok(Arc::new(UringDevice::open(spec, mode)?)),
    }
}

/// A namespace on the driver.
fn open_nvme<T: Transport>(transport: T, nsid: Option<u32>, mode: OpenMode) -> Result<Arc<dyn Device>, DeviceError> {
    let name = transport.name();
    let controller = driver::Controller::open(transport, Options::default()).map_err(|err| err.on(&name))?;
    let device = NvmeDevice::open(controller, nsid, mode.read_only).map_err(|err| err.on(&name))?;
    Ok(Arc::new(device))
}

fn open_emu(spec: &str, what: &str, mode: OpenMode) -> Result<Arc<dyn Device>, DeviceError> {
    let bad =
        || DeviceError::BadSpec { spec: spec.to_owned(), detail: "want emu:SIZE, emu:null:SIZE or emu:file:PATH" };
    let size =
        |text: &str| parse_size(text).map(|bytes| bytes / 4096 * 4096).filter(|bytes| *bytes > 0).ok_or_else(bad);
    let (size_bytes, medium) = match what.split_once(':') {
        Some(("null", text)) => (size(text)?, Medium::Null),
        Some(("file", path)) => {
            let failed = |what| move |err: std::io::Error| DeviceError::open(path, what, &err);
            let file = std::fs::File::options().read(true).write(true).open(path).map_err(failed("open"))?;
            (file.metadata().map_err(failed("look at"))?.len() / 4096 * 4096, Medium::File(file))
        }
        Some(_) => return Err(bad()),
        None => {
            let size_bytes = size(what)?;
            (size_bytes, Medium::memory(crate::Image::zeroed(size_bytes), false))
        }
    };
    let cache = matches!(medium, Medium::File(_));
    let subsystem = Subsystem::new("EMU", cache, vec![NamespaceConfig { size_bytes, lba_bytes: 4096, medium }]);
    let config = ControllerConfig { io_queues: 64, ..ControllerConfig::default() };
    let bus = ProcessBus::new(config.io_queues).map_err(|err| driver::ControllerError::from(err).on(spec))?;
    let controller = emu::Controller::new(bus, subsystem, config);
    open_nvme(EmuTransport::new(controller), Some(1), mode)
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
        assert_eq!(open("emu:1M").unwrap().geometry().size_bytes, 1 << 20);
        assert!(message("emu:what:1M").contains("want emu:SIZE"));
        assert!(message("nvme:0000:01:00.0").contains("not built yet"));
        assert!(message("memory:lots").contains("want memory:SIZE"));
        assert!(message("/no/such/device").contains("/no/such/device"));
        assert!(message("").contains("empty"));
    }
}
