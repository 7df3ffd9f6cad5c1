//! Regular files and block devices through io_uring.

use std::rc::Rc;

use crate::{Device, DeviceError, Geometry, OpenMode, Queue};

pub struct UringDevice {
    geometry: Geometry,
}

impl UringDevice {
    pub fn open(path: &str, _mode: OpenMode) -> Result<UringDevice, DeviceError> {
        Err(DeviceError::NotBuilt { spec: path.to_owned(), backend: "uring" })
    }
}

impl Device for UringDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    fn open_queue(&self, _depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        Err(DeviceError::Ring { errno: libc::ENOSYS })
    }
}
