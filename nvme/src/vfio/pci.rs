//! PCI functions as sysfs shows them, and who drives them.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DEVICES: &str = "/sys/bus/pci/devices";
/// Mass storage, non-volatile memory, NVMe IO controller.
const CLASS_NVME: u32 = 0x01_08_02;
pub const VFIO_DRIVER: &str = "vfio-pci";

/// Domain, bus, device, function: `0000:00:10.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = &'static str;

    /// The domain may be left out.
    fn from_str(text: &str) -> Result<PciAddress, &'static str> {
        const WANT: &str = "want a PCI address such as 0000:00:10.0";
        let (rest, function) = text.rsplit_once('.').ok_or(WANT)?;
        let mut parts = rest.rsplit(':');
        let mut hex = |default: Option<&'static str>| {
            let part = parts.next().or(default).ok_or(WANT)?;
            if part.is_empty() || part.len() > 4 {
                return Err(WANT);
            }
            u16::from_str_radix(part, 16).map_err(|_| WANT)
        };
        let (device, bus, domain) = (hex(None)?, hex(None)?, hex(Some("0"))?);
        let function = function.parse::<u8>().map_err(|_| WANT)?;
        if parts.next().is_some() || device > 31 || bus > 255 || function > 7 {
            return Err(WANT);
        }
        Ok(PciAddress { domain, bus: bus as u8, device: device as u8, function })
    }
}

/// What is known of a function.
#[derive(Clone, Debug)]
pub struct Info {
    pub address: PciAddress,
    pub class: u32,
    pub vendor: u16,
    pub device: u16,
    /// The kernel driver that has it.
    pub driver: Option<String>,
    pub iommu_group: Option<u32>,
    /// Its name under /dev/vfio/devices, on kernels that have those, while it is bound to vfio-pci.
    pub vfio_device: Option<String>,
    /// Block devices of the kernel's driver.
    pub block_devices: Vec<String>,
}

fn path(address: PciAddress) -> PathBuf {
    Path::new(DEVICES).join(address.to_string())
}

fn hex_file(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}

fn first_entry(path: &Path) -> Option<String> {
    Some(fs::read_dir(path).ok()?.flatten().next()?.file_name().to_string_lossy().into_owned())
}

impl Info {
    pub fn of(address: PciAddress) -> io::Result<Info> {
        let at = path(address);
        Ok(Info {
            address,
            class: hex_file(&at.join("class"))?,
            vendor: hex_file(&at.join("vendor"))? as u16,
            device: hex_file(&at.join("device"))? as u16,
            driver: link_name(&at.join("driver")),
            iommu_group: link_name(&at.join("iommu_group")).and_then(|group| group.parse().ok()),
            vfio_device: first_entry(&at.join("vfio-dev")),
            block_devices: block_devices(&at),
        })
    }

    pub fn is_nvme(&self) -> bool {
        self.class == CLASS_NVME
    }

    /// Why it must not be taken away from the kernel: a process has one of its block devices, or a partition, for itself.
    pub fn use_by_process(&self) -> Option<String> {
        let is_held = |name: &&String| {
            let path = Path::new("/dev").join(name);
            let opened = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(path);
            opened.is_err_and(|err| err.raw_os_error() == Some(libc::EBUSY))
        };
        self.block_devices.iter().find(is_held).map(|name| format!("a process has /dev/{name} open for itself"))
    }

    /// Why it must not be taken away from the kernel: a use of one of its block devices.
    pub fn use_by_kernel(&self) -> Option<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        self.block_devices.iter().find_map(|name| use_of(name, &mounts, &swaps))
    }
}

/// `/sys/.../nvme/nvme0/nvme0n1`; with native multipath the namespace is `nvme0c0n1` there and `nvme0n1` in /dev.
fn block_devices(at: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for controller in fs::read_dir(at.join("nvme")).into_iter().flatten().flatten() {
        for entry in fs::read_dir(controller.path()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_namespace =
                name.starts_with("nvme") && name[4..].contains('n') && entry.path().join("size").exists();
            if is_namespace {
                let controller = controller.file_name().to_string_lossy().into_owned();
                let number = name.rsplit('n').next().unwrap_or_default();
                names.push(format!("{controller}n{number}"));
            }
        }
    }
    names.sort();
    names
}

/// Whether block device `name` or a partition of it is mounted, swapped on, or held by another driver (LVM, RAID).
fn use_of(name: &str, mountinfo: &str, swaps: &str) -> Option<String> {
    let ours = |source: &str| source.strip_prefix("/dev/").is_some_and(|device| device.starts_with(name));
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (source, place) =
            (after.split(' ').nth(1).unwrap_or_default(), before.split(' ').nth(4).unwrap_or_default());
        if ours(source) {
            return Some(format!("{source} is mounted on {place}"));
        }
    }
    if let Some(line) = swaps.lines().find(|line| ours(line.split_whitespace().next().unwrap_or_default())) {
        return Some(format!("{} is used for swap", line.split_whitespace().next().unwrap_or_default()));
    }
    let holders = Path::new("/sys/class/block").join(name).join("holders");
    Some(format!("/dev/{name} is held by {}", first_entry(&holders)?))
}

/// Every NVMe controller on the bus.
pub fn list() -> io::Result<Vec<Info>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(DEVICES)?.flatten() {
        let Ok(address) = entry.file_name().to_string_lossy().parse() else { continue };
        match Info::of(address) {
            Ok(info) if info.is_nvme() => all.push(info),
            _ => {}
        }
    }
    all.sort_by_key(|info| info.address);
    Ok(all)
}

/// One step of binding, as it can be shown before it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub path: PathBuf,
    pub content: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "echo {} > {}", self.content.trim_end(), self.path.display())
    }
}

impl Step {
    fn new(path: PathBuf, content: impl Into<String>) -> Step {
        Step { path, content: content.into() }
    }

    pub fn run(&self) -> io::Result<()> {
        fs::write(&self.path, &self.content)
    }
}

/// Hands the function to vfio-pci, or (`to` None) back to the kernel's own driver.
pub fn bind_steps(info: &Info, to: Option<&str>) -> Vec<Step> {
    let at = path(info.address);
    let mut steps = vec![Step::new(at.join("driver_override"), to.map_or("\n".to_owned(), str::to_owned))];
    if info.driver.is_some() {
        steps.push(Step::new(at.join("driver/unbind"), info.address.to_string()));
    }
    steps.push(Step::new(PathBuf::from("/sys/bus/pci/drivers_probe"), info.address.to_string()));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_refused() {
        let address: PciAddress = "0000:00:10.0".parse().unwrap();
        assert_eq!(address.to_string(), "0000:00:10.0");
        assert_eq!("5e:1f.7".parse::<PciAddress>().unwrap().to_string(), "0000:5e:1f.7");
        for bad in ["", "0000:00:10", "0:0:0:1.0", "00:20.0", "00:10.8", "zz:10.0", "100:00:1.0.0", "../x:1.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mounted_or_swapped_device_is_in_use() {
        let mounts = "22 1 259:2 / /boot rw - ext4 /dev/nvme0n1p2 rw\n23 1 0:5 / /sys rw - sysfs sysfs rw\n";
        assert_eq!(use_of("nvme0n1", mounts, "").unwrap(), "/dev/nvme0n1p2 is mounted on /boot");
        assert!(use_of("nvme1n1", mounts, "").is_none());
        let swaps = "Filename Type Size\n/dev/nvme1n1p3 partition 100\n";
        assert_eq!(use_of("nvme1n1", "", swaps).unwrap(), "/dev/nvme1n1p3 is used for swap");
    }

    #[test]
    fn the_steps_say_what_will_be_done() {
        let info = Info {
            address: "00:10.0".parse().unwrap(),
            class: CLASS_NVME,
            vendor: 0x1b36,
            device: 0x10,
            driver: Some("nvme".into()),
            iommu_group: Some(3),
            vfio_device: None,
            block_devices: vec![],
        };
        let steps: Vec<_> = bind_steps(&info, Some(VFIO_DRIVER)).iter().map(Step::to_string).collect();
        assert_eq!(steps[0], "echo vfio-pci > /sys/bus/pci/devices/0000:00:10.0/driver_override");
        assert_eq!(steps[1], "echo 0000:00:10.0 > /sys/bus/pci/devices/0000:00:10.0/driver/unbind");
        assert_eq!(steps.len(), 3);
        assert_eq!(bind_steps(&Info { driver: None, ..info }, None).len(), 2);
    }
}
