//! The SPDK backend over a small library of our own that has SPDK's functions (`spdk/fake.c`): calls, memory, errors,
//! attach and detach. No SPDK is there where these tests run; docs/TESTING.md says what that leaves open.
#![cfg(feature = "spdk")]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use vellum_base::DmaBuf;
use vellum_base::prng::Prng;
use vellum_nvme::spdk::SpdkDevice;
use vellum_nvme::testing::block_on;
use vellum_nvme::{Device, DeviceError, OpenMode, Queue};

fn compile(dir: &Path, without: Option<&str>) -> Vec<OsString> {
    let library = dir.join(format!("libfake{}.so", without.unwrap_or_default()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spdk/fake.c");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-o"])
        .arg(&library)
        .arg(source);
    cc.args(without.map(|name| format!("-D{name}={name}_of_old")));
    assert!(cc.status().expect("cc is needed (the package gcc)").success());
    vec![library.into()]
}

fn open(libraries: &[OsString], transport: &str) -> Result<SpdkDevice, DeviceError> {
    SpdkDevice::open(transport, libraries, false)
}

fn block(byte: u8) -> vellum_base::DmaSlice {
    DmaBuf::copy_from(&[byte; 4096], true).freeze()
}

#[test]
fn data_written_through_it_is_read_back_and_everything_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let libraries = compile(dir.path(), None);
    let device = open(&libraries, "trtype:PCIe traddr:0000:00:10.0 ns:1").unwrap();
    assert_eq!((device.geometry().size_bytes, device.geometry().lba_bytes), (4 << 20, 512));
    assert!(device.geometry().volatile_write_cache);
    let queue = device.open_queue(32).unwrap();
    let mut data = DmaBuf::new(1 << 20);
    Prng::new(1).fill(&mut data);
    let data = data.freeze();
    block_on(&queue, queue.write(0, data.clone(), false)).unwrap();
    let read = block_on(&queue, queue.read(0, DmaBuf::new(1 << 20))).unwrap();
    assert!(read[..] == data[..]);
    // More at once than the other side takes: the rest waits.
    let many: Vec<_> = (0..40u8).map(|i| queue.write(u64::from(i) * 4096, block(i), i % 2 == 0)).collect();
    for write in many {
        block_on(&queue, write).unwrap();
    }
    block_on(&queue, queue.flush()).unwrap();
    for i in (0..40u8).rev() {
        let read = block_on(&queue, queue.read(u64::from(i) * 4096, DmaBuf::new(4096))).unwrap();
        assert_eq!(read[..], [i; 4096]);
    }
    block_on(&queue, queue.discard(4096, 8192)).unwrap();
    assert_eq!(block_on(&queue, queue.read(8192, DmaBuf::new(4096))).unwrap()[..], [0; 4096]);
    // Another queue sees the same; a third is not to be had; one that is dropped with work on its way leaves nothing.
    let other = device.open_queue(4).unwrap();
    assert_eq!(block_on(&other, other.read(0, DmaBuf::new(4096))).unwrap()[..], [0; 4096]);
    assert!(device.open_queue(1).err().unwrap().to_string().contains("--cores"));
    drop(other.write(0, block(9), false));
    drop((queue, other));
    let queue: Rc<dyn Queue> = device.open_queue(1).unwrap();
    assert_eq!(block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap()[..], [9; 4096]);
    drop((queue, device));
    for (counter, name) in
        [(counter(&libraries, "fake_allocated"), "memory"), (counter(&libraries, "fake_attached"), "a controller")]
    {
        assert_eq!(counter, 0, "{name} is left");
    }
    assert_eq!(counter(&libraries, "fake_started"), 1);
    assert_eq!(counter(&libraries, "fake_fua"), 20);
    // Detached, it can be attached again, without a second start of DPDK.
    open(&libraries, "trtype:PCIe traddr:0000:00:10.0").unwrap();
    assert_eq!(counter(&libraries, "fake_started"), 1);
}

/// What the other side has counted.
#[allow(unsafe_code)] // reads an int of the fake library
fn counter(libraries: &[OsString], name: &str) -> i32 {
    // SAFETY: our own library, which is open already; the symbol is an int.
    unsafe {
        let library = libloading::Library::new(&libraries[0]).unwrap();
        **library.get::<*const i32>(name.as_bytes()).unwrap()
    }
}

#[test]
fn an_error_is_of_one_operation_and_a_failed_flush_of_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let libraries = compile(dir.path(), None);
    let device = open(&libraries, "trtype:PCIe traddr:bad-read,bad-flush").unwrap();
    let queue = device.open_queue(4).unwrap();
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(err.to_string().contains("unrecovered read error"), "{err}");
    block_on(&queue, queue.write(0, block(1), false)).expect("the next one is fine");
    assert!(matches!(block_on(&queue, queue.read(4 << 20, DmaBuf::new(4096))), Err(DeviceError::OutOfRange { .. })));
    assert!(block_on(&queue, queue.flush()).unwrap_err().is_failed());
    assert!(block_on(&queue, queue.write(0, block(2), false)).unwrap_err().is_failed());
    assert!(device.open_queue(1).is_err());
}

#[test]
fn a_controller_that_is_lost_fails_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let libraries = compile(dir.path(), None);
    let device = open(&libraries, "trtype:TCP traddr:lost").unwrap();
    let queue = device.open_queue(4).unwrap();
    let writes: Vec<_> = (0..12).map(|i| queue.write(i * 4096, block(1), false)).collect();
    for write in writes {
        assert!(block_on(&queue, write).unwrap_err().is_failed());
    }
    drop(queue);
    drop(device);
    assert_eq!(counter(&libraries, "fake_allocated"), 0);
}

#[test]
fn what_is_absent_or_does_not_fit_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let message = |libraries: &[OsString], transport: &str| open(libraries, transport).err().unwrap().to_string();
    let absent = message(&[dir.path().join("libspdk_nvme.so").into()], "trtype:PCIe traddr:0000:00:10.0");
    assert!(absent.contains("install its shared libraries") && absent.contains("VELLUM_SPDK_LIBRARIES"), "{absent}");
    let old = compile(dir.path(), Some("spdk_nvme_connect"));
    let old = message(&old, "trtype:PCIe traddr:0000:00:10.0");
    assert!(old.contains("no function spdk_nvme_connect") && old.contains("v26.05"), "{old}");
    let libraries = compile(dir.path(), None);
    assert!(message(&libraries, "PCIe").contains("want such as trtype:PCIe"));
    assert!(message(&libraries, "trtype:PCIe traddr:absent").contains("cannot attach"));
    assert!(message(&libraries, "trtype:PCIe traddr:x ns:7").contains("no active namespace 7"));
    assert!(message(&libraries, "trtype:PCIe traddr:x ns:one").contains("want ns:N"));
    // By the name that a DEVICE has; nothing is installed here, or it finds no such controller.
    let named = vellum_nvme::open("spdk:trtype:PCIe traddr:ffff:ff:1f.7", OpenMode::default()).err().unwrap();
    assert!(named.to_string().starts_with("spdk:trtype:PCIe"), "{named}");
}
