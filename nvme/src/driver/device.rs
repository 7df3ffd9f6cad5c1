//! A namespace as a [`Device`].

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vellum_base::DmaBuf;
use vellum_base::dma::Arena;

use super::namespace::NamespaceInfo;
use super::queue::NvmeQueue;
use super::{Controller, ControllerError, Transport};
use crate::live_size::LiveSize;
use crate::reservation::Reservations;
use crate::{Device, DeviceError, Geometry, IoOp, Queue};

/// What all queues of the device share.
pub(super) struct Shared<T: Transport> {
    pub geometry: Geometry,
    pub size: LiveSize,
    pub namespace: NamespaceInfo,
    pub read_only: bool,
    pub sgl: bool,
    can_deallocate: bool,
    pub controller: Arc<Controller<T>>,
}

impl<T: Transport> Shared<T> {
    /// The device address of `memory`, unless it is memory that the device cannot reach.
    #[inline]
    pub fn address_of(&self, arena: &Arena, memory: &[u8]) -> Option<u64> {
        self.controller.transport().address_of(arena.offset_of(memory)?, memory.len())
    }

    /// The device address of a buffer that stands in for one that has none.
    pub fn bounce(&self, arena: &Arena, buf: &DmaBuf) -> Result<u64, DeviceError> {
        self.controller.counters.bounced.fetch_add(1, Ordering::Relaxed);
        self.address_of(arena, buf).ok_or_else(|| self.controller.device_error(ControllerError::NoMemory))
    }

    /// Operations that need no command.
    #[inline]
    pub fn is_nothing(&self, op: &IoOp) -> bool {
        match op {
            // Without a volatile cache, what is complete is on the medium.
            IoOp::Flush => !self.geometry.volatile_write_cache,
            IoOp::Discard { len_bytes, .. } => *len_bytes == 0 || !self.can_deallocate,
            IoOp::Read { buf, .. } => buf.is_empty(),
            IoOp::Write { data, .. } => data.is_empty(),
        }
    }
}

pub struct NvmeDevice<T: Transport> {
    shared: Arc<Shared<T>>,
}

impl<T: Transport> NvmeDevice<T> {
    /// The namespace `nsid` of the controller; None: the only one that it has.
    pub fn open(
        controller: Arc<Controller<T>>,
        nsid: Option<u32>,
        read_only: bool,
    ) -> Result<NvmeDevice<T>, ControllerError> {
        let nsid = match nsid {
            Some(nsid) => nsid,
            None => match controller.namespace_ids()?.as_slice() {
                [only] => *only,
                [] => return Err(ControllerError::Unsupported { what: "it has no active namespace" }),
                _ => {
                    return Err(ControllerError::Unsupported {
                        what: "it has several namespaces: add /NSID to its name",
                    });
                }
            },
        };
        let namespace = controller.namespace(nsid)?;
        let size_bytes = namespace.size_bytes();
        if size_bytes == 0 {
            return Err(ControllerError::Namespace { nsid, what: "is smaller than 4 KiB" });
        }
        let info = controller.info();
        let geometry = Geometry {
            size_bytes,
            lba_bytes: namespace.lba_bytes(),
            max_transfer_bytes: controller.max_transfer_bytes(),
            volatile_write_cache: info.volatile_write_cache,
            name: format!("{}/{nsid} ({}, polled)", controller.name(), info.model),
        };
        controller.watch(&namespace);
        let sgl = info.sgl && controller.options.sgl;
        let can_deallocate = info.dsm;
        let size = LiveSize::new(size_bytes);
        let shared = Shared { geometry, size, namespace, read_only, sgl, can_deallocate, controller };
        Ok(NvmeDevice { shared: Arc::new(shared) })
    }

    pub fn controller(&self) -> &Arc<Controller<T>> {
        &self.shared.controller
    }

    pub fn namespace(&self) -> &NamespaceInfo {
        &self.shared.namespace
    }

    /// As [`Device::open_queue`], with its own type.
    pub fn queue(&self, depth: u32) -> Result<NvmeQueue<T>, DeviceError> {
        let controller = &self.shared.controller;
        controller.health.check()?;
        NvmeQueue::open(self.shared.clone(), depth).map_err(|err| controller.device_error(err))
    }
}

impl<T: Transport> Device for NvmeDevice<T> {
    fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    fn open_queue(&self, depth: u32) -> Result<Rc<dyn Queue>, DeviceError> {
        Ok(Rc::new(self.queue(depth)?))
    }

    fn reservations(&self) -> Option<&dyn Reservations> {
        self.controller().info().reservations.then_some(self)
    }
}
