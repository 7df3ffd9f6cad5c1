//! What an NVMe controller says of itself, and the words for devices.

use vellum_nvme::driver::{ControllerInfo, NamespaceInfo};
use vellum_nvme::spec::{AsyncEvent, Completion, ErrorEntry, IDENTIFY_BYTES, SmartLog, Status, descriptors};
use vellum_nvme::{DeviceSpec, ReservationReport};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of an identify structure that say something; the rest is zeros and vendors' own.
const TOLD_BYTES: usize = 1024;

/// A whole answer from its beginning.
fn identity(bytes: &[u8]) -> [u8; IDENTIFY_BYTES] {
    let mut whole = [0; IDENTIFY_BYTES];
    let len = bytes.len().min(IDENTIFY_BYTES);
    whole[..len].copy_from_slice(&bytes[..len]);
    whole
}

pub fn controllers() -> Vec<Vec<u8>> {
    let mut told = vec![0; TOLD_BYTES];
    told[4..24].fill(b'S');
    told[24..64].fill(b'M');
    (told[512], told[513], told[516]) = (0x66, 0x44, 1);
    told[768..790].copy_from_slice(b"nqn.2024-01.example:va");
    vec![told]
}

pub fn controller(bytes: &[u8]) -> bool {
    let Ok(info) = ControllerInfo::parse(&identity(bytes)) else { return false };
    assert!(info.max_transfer_bytes.is_none_or(|most| most >= 4096));
    assert!(info.event_requests <= 256 && info.error_entries <= 256);
    true
}

pub fn namespaces() -> Vec<Vec<u8>> {
    [9, 12]
        .map(|shift| {
            let mut told = vec![0; 384];
            told[..8].copy_from_slice(&(1u64 << 20).to_le_bytes());
            told[130] = shift; // LBA format 0
            told
        })
        .to_vec()
}

pub fn namespace(bytes: &[u8]) -> bool {
    let list = bytes.get(384..).unwrap_or_default();
    let _ = descriptors(list).count();
    let Ok(info) = NamespaceInfo::parse(1, &identity(bytes), Some(list)) else { return false };
    assert!(info.size_bytes().is_multiple_of(4096) && matches!(info.lba_bytes(), 512 | 4096));
    assert!(info.formats.len() <= 64);
    true
}

pub fn reservations() -> Vec<Vec<u8>> {
    let mut report = vec![0; 64 + 2 * 64];
    (report[4], report[5]) = (1, 2);
    vec![report.clone(), report[..64].to_vec()]
}

pub fn reservation(bytes: &[u8]) -> bool {
    let Ok(report) = ReservationReport::parse(bytes) else { return false };
    assert!(report.registrants.len() * 64 <= bytes.len(), "nobody is made up");
    true
}

pub fn logs() -> Vec<Vec<u8>> {
    vec![vec![0; 512], vec![0xff; 512]]
}

pub fn log(bytes: &[u8]) -> bool {
    let smart = SmartLog::read_from_prefix(bytes).map(|(smart, _)| smart.warnings().len() <= 6);
    let error = ErrorEntry::read_from_prefix(bytes);
    smart.is_ok() && error.is_ok()
}

pub fn completions() -> Vec<Vec<u8>> {
    [Status::SUCCESS, Status::UNRECOVERED_READ.with_do_not_retry()]
        .map(|status| Completion::new(7, 1, 3, status, 9).as_bytes().to_vec())
        .to_vec()
}

/// Accepted: a success.
pub fn completion(bytes: &[u8]) -> bool {
    let Ok(done) = Completion::read_from_bytes(bytes) else { return false };
    assert_eq!(Completion::from_words(done.to_words()).as_bytes(), bytes);
    for phase in [false, true] {
        let other = done.with_phase(phase);
        assert_eq!((other.phase(), other.status(), other.cid), (phase, done.status(), done.cid));
    }
    assert!(!done.status().name().is_empty() && !AsyncEvent(done.result.get()).describe().is_empty());
    done.status().is_success() || done.status().name() == Status::UNRECOVERED_READ.name()
}

pub fn specs() -> Vec<Vec<u8>> {
    [
        "/dev/nvme0n1",
        "file:/a b",
        "memory:64M",
        "nvme:0000:00:10.0/7",
        "vfio-user:/run/a/3",
        "emu:1GiB",
        "emu:null:4T",
        "emu:file:/x",
        "spdk:trtype:PCIe traddr:0000:00:10.0 ns:1",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// DEVICE on the command line.
pub fn spec(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match DeviceSpec::parse(text) {
        Ok(DeviceSpec::Memory { size_bytes }) => assert!((4096..=1 << 40).contains(&size_bytes)),
        Ok(_) => {}
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    }
    true
}
