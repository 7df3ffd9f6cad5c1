//! From a device's spec on the command line to a [`Device`].

use std::path::Path;
use std::sync::Arc;

use crate::device_spec::{DeviceSpec, EmuSpec};
use crate::driver::queue::MAX_ZERO_LBAS;
use crate::driver::{self, ControllerError, ControllerInfo, NamespaceInfo, NvmeDevice, Options, Transport};
use crate::emu::{self, ControllerConfig, EmuTransport, Medium, NamespaceConfig, ProcessBus, Subsystem};
use crate::memory::MemoryDevice;
use crate::spec::{ErrorEntry, SmartLog};
use crate::uring::UringDevice;
use crate::vfio::{VfioTransport, pci::PciAddress};
use crate::vfio_user::VfioUserTransport;
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
/// - `nvme:0000:00:10.0[/NSID]`: a controller bound to vfio-pci; the namespace may be left out when there is one only;
/// - `vfio-user:PATH[/NSID]`: a controller that another process serves on a unix socket;
/// - `spdk:TRANSPORT` (`spdk:trtype:PCIe traddr:0000:00:10.0 ns:1`): through an installed SPDK, with the feature `spdk`;
/// - `emu:SIZE`, `emu:null:SIZE`, `emu:file:PATH`: the NVMe driver over a modelled controller in this process, on new memory,
///   on nothing, on a file (which must be there, and is not locked): for tests and measurements.
pub fn open(spec: &str, mode: OpenMode) -> Result<Arc<dyn Device>, DeviceError> {
    let mode = OpenMode { read_only: mode.read_only || mode.observe, ..mode };
    if let Some(opened) = open_controller(spec) {
        let (controller, nsid) = opened?;
        return controller.device(nsid, mode.read_only);
    }
    match DeviceSpec::parse(spec)? {
        DeviceSpec::Memory { size_bytes } => Ok(Arc::new(MemoryDevice::new(size_bytes))),
        #[cfg(feature = "spdk")]
        DeviceSpec::Spdk { transport } => Ok(Arc::new(crate::spdk::SpdkDevice::open(transport, &[], mode.read_only)?)),
        #[cfg(not(feature = "spdk"))]
        DeviceSpec::Spdk { .. } => Err(DeviceError::NotBuilt { spec: spec.to_owned(), backend: "spdk" }),
        DeviceSpec::Path(path) => Ok(Arc::new(UringDevice::open(path, mode)?)),
        DeviceSpec::Nvme { .. } | DeviceSpec::VfioUser { .. } | DeviceSpec::Emu(_) => {
            Err(DeviceError::BadSpec { spec: spec.to_owned(), detail: "it names a controller" })
        }
    }
}

/// What `vellum nvme` asks of a controller, whatever it is reached through.
pub trait NvmeController: Send + Sync {
    fn name(&self) -> &str;
    fn reached_by(&self) -> String;
    fn info(&self) -> &ControllerInfo;
    fn granted_queues(&self) -> u16;
    fn namespace_ids(&self) -> Result<Vec<u32>, ControllerError>;
    fn namespace(&self, nsid: u32) -> Result<NamespaceInfo, ControllerError>;
    fn smart(&self) -> Result<SmartLog, ControllerError>;
    fn error_log(&self) -> Result<Vec<ErrorEntry>, ControllerError>;
    /// Destroys all data of the namespace.
    fn format(&self, nsid: u32, format: u8) -> Result<(), ControllerError>;
    /// Destroys data: `len_bytes` at `at_bytes`.
    fn write_zeroes(self: Arc<Self>, nsid: u32, at_bytes: u64, len_bytes: u64) -> Result<(), DeviceError>;
    /// None: its only namespace.
    fn device(self: Arc<Self>, nsid: Option<u32>, read_only: bool) -> Result<Arc<dyn Device>, DeviceError>;
}

impl<T: Transport> NvmeController for driver::Controller<T> {
    fn name(&self) -> &str {
        self.name()
    }
    fn reached_by(&self) -> String {
        self.transport().reached_by()
    }
    fn info(&self) -> &ControllerInfo {
        self.info()
    }
    fn granted_queues(&self) -> u16 {
        self.granted_queues()
    }
    fn namespace_ids(&self) -> Result<Vec<u32>, ControllerError> {
        self.namespace_ids()
    }
    fn namespace(&self, nsid: u32) -> Result<NamespaceInfo, ControllerError> {
        self.namespace(nsid)
    }
    fn smart(&self) -> Result<SmartLog, ControllerError> {
        self.smart()
    }
    fn error_log(&self) -> Result<Vec<ErrorEntry>, ControllerError> {
        self.error_log()
    }
    fn format(&self, nsid: u32, format: u8) -> Result<(), ControllerError> {
        self.format(nsid, format)
    }

    fn write_zeroes(self: Arc<Self>, nsid: u32, at_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        let name = self.name().to_owned();
        if !self.info().write_zeroes {
            let reason = ControllerError::Unsupported { what: "it does not know Write Zeroes" };
            return Err(reason.on(&name));
        }
        let device = NvmeDevice::open(self, Some(nsid), false).map_err(|err| err.on(&name))?;
        let queue = device.queue(1)?;
        let step = MAX_ZERO_LBAS * u64::from(device.namespace().lba_bytes());
        let mut done = 0;
        while done < len_bytes {
            let len = step.min(len_bytes - done);
            queue.write_zeroes_and_wait(at_bytes.saturating_add(done), len)?;
            done += len;
        }
        Ok(())
    }

    fn device(self: Arc<Self>, nsid: Option<u32>, read_only: bool) -> Result<Arc<dyn Device>, DeviceError> {
        let name = self.name().to_owned();
        Ok(Arc::new(NvmeDevice::open(self, nsid, read_only).map_err(|err| err.on(&name))?))
    }
}

/// A controller, and the namespace that its spec names.
pub type Opened = Result<(Arc<dyn NvmeController>, Option<u32>), DeviceError>;

fn attach<T: Transport>(transport: T) -> Result<Arc<dyn NvmeController>, DeviceError> {
    let name = transport.name();
    Ok(driver::Controller::open(transport, Options::default()).map_err(|err| err.on(&name))?)
}

/// The controller of an NVMe device spec, and the namespace that the spec names. None: the spec is of another backend.
pub fn open_controller(spec: &str) -> Option<Opened> {
    match DeviceSpec::parse(spec) {
        Ok(DeviceSpec::Nvme { address, nsid }) => Some(open_vfio(spec, address, nsid)),
        Ok(DeviceSpec::VfioUser { whole, split }) => Some(open_vfio_user(spec, whole, split)),
        Ok(DeviceSpec::Emu(emu)) => Some(open_emu(spec, &emu)),
        Ok(_) => None,
        Err(bad) => Some(Err(bad)),
    }
}

fn open_vfio(spec: &str, address: PciAddress, nsid: Option<u32>) -> Opened {
    let transport = VfioTransport::open(address).map_err(|err| ControllerError::from(err).on(spec))?;
    Ok((attach(transport)?, nsid))
}

fn open_vfio_user(spec: &str, whole: &str, split: Option<(&str, u32)>) -> Opened {
    // A path may end with digits too: what is there as a whole is a path.
    let (path, nsid) = match split {
        Some((path, nsid)) if !Path::new(whole).exists() => (path, Some(nsid)),
        _ => (whole, None),
    };
    let transport = VfioUserTransport::connect(Path::new(path)).map_err(|err| ControllerError::from(err).on(spec))?;
    Ok((attach(transport)?, nsid))
}

fn open_emu(spec: &str, emu: &EmuSpec<'_>) -> Opened {
    let (size_bytes, medium) = match *emu {
        EmuSpec::Null { size_bytes } => (size_bytes, Medium::Null),
        EmuSpec::File { path } => {
            let failed = |what| move |err: std::io::Error| DeviceError::open(path, what, &err);
            let file = std::fs::File::options().read(true).write(true).open(path).map_err(failed("open"))?;
            (file.metadata().map_err(failed("look at"))?.len() / 4096 * 4096, Medium::File(file))
        }
        EmuSpec::Memory { size_bytes } => (size_bytes, Medium::memory(crate::Image::zeroed(size_bytes), false)),
    };
    let cache = matches!(medium, Medium::File(_));
    let subsystem = Subsystem::new("EMU", cache, vec![NamespaceConfig { size_bytes, lba_bytes: 4096, medium }]);
    let config = ControllerConfig { io_queues: 64, ..ControllerConfig::default() };
    let bus = ProcessBus::new(config.io_queues).map_err(|err| ControllerError::from(err).on(spec))?;
    let controller = emu::Controller::new(bus, subsystem, config);
    Ok((attach(EmuTransport::new(controller))?, Some(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_understood_or_refused_clearly() {
        let open = |spec: &str| open(spec, OpenMode::default());
        assert_eq!(open("memory:1M").unwrap().geometry().size_bytes, 1 << 20);
        let message = |spec: &str| open(spec).err().unwrap().to_string();
        assert_eq!(open("emu:1M").unwrap().geometry().size_bytes, 1 << 20);
        assert!(message("emu:what:1M").contains("want emu:SIZE"));
        assert!(message("nvme:0000:01:00").contains("want a PCI address"));
        assert!(message("nvme:ffff:ff:1f.7/x").contains("no namespace id"));
        assert!(message("nvme:ffff:ff:1f.7/1").contains("cannot look at nvme:ffff:ff:1f.7"));
        assert!(message("memory:lots").contains("want memory:SIZE"));
        assert!(message("/no/such/device").contains("/no/such/device"));
        assert!(message("").contains("empty"));
    }
}
