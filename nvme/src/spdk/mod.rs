//! NVMe controllers through an installed SPDK, which is opened at run time: nothing of it is needed to build.
//!
//! For controllers and fabrics that SPDK reaches and the own driver does not (TCP, RDMA), and for comparison. It is the
//! slower way here: SPDK addresses only memory of its own, so that data is copied.
//!
//! - `library`: opening, functions by name, DPDK's start; `controller`: SPDK's objects as owned types: the homes of unsafe;
//! - `queue`: the [`crate::Queue`].
//!
//! A volatile write cache is assumed always: the functions that would tell are not among those used.

mod controller;
mod library;
mod queue;

use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;

use self::controller::{Controller, Namespace};
use self::queue::SpdkQueue;
use crate::health::Health;
use crate::{Device, DeviceError, Geometry, Queue};

/// SPDK splits what is longer than the controller takes.
const MAX_TRANSFER_BYTES: usize = 1 << 20;

struct Shared {
    geometry: Geometry,
    namespace: Namespace,
    read_only: bool,
    health: Health,
    controller: Arc<Controller>,
}

impl Shared {
    fn error(&self, detail: String) -> DeviceError {
        DeviceError::Spdk { device: self.geometry.name.clone(), detail }
    }
}

pub struct SpdkDevice {
    shared: Arc<Shared>,
}

impl SpdkDevice {
    /// `transport`: a transport id as SPDK's tools take it (`trtype:PCIe traddr:0000:00:10.0`), with `ns:N` for a namespace
    /// other than the first. `libraries`: empty for the installed ones.
    pub fn open(transport: &str, libraries: &[OsString], read_only: bool) -> Result<SpdkDevice, DeviceError> {
        let name = format!("spdk:{transport}");
        let error = |detail| DeviceError::Spdk { device: name.clone(), detail };
        let (mut words, mut nsid) = (Vec::new(), None);
        for word in transport.split_whitespace() {
            match word.strip_prefix("ns:").map(str::parse) {
                Some(Ok(id)) => nsid = Some(id),
                Some(Err(_)) => return Err(error(format!("{word}: want ns:N"))),
                None => words.push(word),
            }
        }
        let api = library::load(libraries).map_err(error)?;
        let controller = Controller::connect(api, &words.join(" ")).map_err(error)?;
        let namespace = controller.namespace(nsid).map_err(error)?;
        let size_bytes = namespace.lbas.saturating_mul(u64::from(namespace.lba_bytes)) / 4096 * 4096;
        if size_bytes == 0 {
            return Err(error("the namespace is smaller than 4 KiB".into()));
        }
        let geometry = Geometry {
            size_bytes,
            lba_bytes: namespace.lba_bytes,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            volatile_write_cache: true,
            name: format!("{name} (namespace {}, SPDK)", namespace.nsid),
        };
        let controller = Arc::new(controller);
        Ok(SpdkDevice {
            shared: Arc::new(Shared { geometry, namespace, read_only, health: Health::default(), controller }),
        })
    }
}

impl Device for SpdkDevice {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        self.shared.health.check()?;
        Ok(Rc::new(SpdkQueue::open(self.shared.clone(), depth)?))
    }
}
