//! A modelled controller with the driver on it, and a clock that only polls move.
#![allow(dead_code)] // each test file uses a part

use std::rc::Rc;
use std::sync::Arc;

use vellum_nvme::driver::{self, ControllerError, NvmeDevice, Options};
use vellum_nvme::emu::{Controller, ControllerConfig, EmuTransport, Medium, NamespaceConfig, ProcessBus, Subsystem};
pub use vellum_nvme::testing::options;
use vellum_nvme::{Image, Queue};

pub type Driver = driver::Controller<EmuTransport>;
pub type Model = Controller<ProcessBus>;

pub const SIZE_BYTES: u64 = 4 << 20;

pub fn namespace(lba_bytes: u32, volatile_write_cache: bool) -> NamespaceConfig {
    let medium = Medium::memory(Image::zeroed(SIZE_BYTES), volatile_write_cache);
    NamespaceConfig { size_bytes: SIZE_BYTES, lba_bytes, medium }
}

pub fn subsystem(namespaces: Vec<NamespaceConfig>, volatile_write_cache: bool) -> Arc<Subsystem> {
    Subsystem::new("TEST0", volatile_write_cache, namespaces)
}

pub fn model(subsystem: &Arc<Subsystem>, config: ControllerConfig) -> Arc<Model> {
    let bus = ProcessBus::new(config.io_queues).expect("memory");
    Controller::new(bus, subsystem.clone(), config)
}

pub fn attach(model: &Arc<Model>, options: Options) -> Result<Arc<Driver>, ControllerError> {
    driver::Controller::open(EmuTransport::new(model.clone()), options)
}

/// One namespace of 512-byte LBAs without a volatile cache.
pub fn simple(config: ControllerConfig) -> (Arc<Model>, NvmeDevice<EmuTransport>) {
    one(config, 512, false)
}

pub fn one(config: ControllerConfig, lba_bytes: u32, vwc: bool) -> (Arc<Model>, NvmeDevice<EmuTransport>) {
    let model = model(&subsystem(vec![namespace(lba_bytes, vwc)], vwc), config);
    let driver = attach(&model, options()).expect("comes up");
    let device = NvmeDevice::open(driver, None, false).expect("one namespace");
    (model, device)
}

pub fn queue(device: &NvmeDevice<EmuTransport>, depth: u32) -> Rc<dyn Queue> {
    Rc::new(device.queue(depth).expect("a queue"))
}
