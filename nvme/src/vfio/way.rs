//! The ways by which the kernel hands a function to a process.

use std::fmt;
use std::path::{Path, PathBuf};

use super::pci::{Info, VFIO_DRIVER};

const DEV: &str = "/dev";
pub(super) const IOMMUFD_NODE: &str = "/dev/iommu";
pub(super) const CONTAINER_NODE: &str = "/dev/vfio/vfio";

/// How a function that is bound to vfio-pci is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// By a character device of its own, and an iommufd for its memory.
    Iommufd { device: PathBuf },
    /// By its IOMMU group, and a type 1 container for its memory.
    Group { group: u32 },
}

impl Way {
    /// The one that [`super::VfioTransport::open`] takes: iommufd where this kernel has it, else the group. An error is for
    /// people, and says what is missing.
    pub fn of(info: &Info) -> Result<Way, String> {
        if info.driver.as_deref() != Some(VFIO_DRIVER) {
            let driver = info.driver.as_deref().unwrap_or("no driver");
            let address = info.address;
            return Err(format!("it is bound to {driver}: `vellum nvme setup {address}` hands it to vfio-pci"));
        }
        choose(Path::new(DEV), info.vfio_device.as_deref(), info.iommu_group)
    }

    pub fn name(&self) -> &'static str {
        match self {
            Way::Iommufd { .. } => "iommufd",
            Way::Group { .. } => "group",
        }
    }

    /// The function's own device node. Who may read and write it may use the function.
    pub fn node(&self) -> PathBuf {
        match self {
            Way::Iommufd { device } => device.clone(),
            Way::Group { group } => PathBuf::from(format!("/dev/vfio/{group}")),
        }
    }

    /// The node for the memory of any function: whoever uses one reads and writes it too. Alone it gives nothing.
    pub fn memory_node(&self) -> &'static Path {
        Path::new(match self {
            Way::Iommufd { .. } => IOMMUFD_NODE,
            Way::Group { .. } => CONTAINER_NODE,
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name(), self.node().display(), self.memory_node().display())
    }
}

fn choose(dev: &Path, vfio_device: Option<&str>, group: Option<u32>) -> Result<Way, String> {
    let Some(group) = group else {
        return Err("the machine has no IOMMU, or it is off (intel_iommu=on or the like)".to_owned());
    };
    let cdev = vfio_device.map(|name| dev.join("vfio/devices").join(name));
    if let Some(device) = cdev.filter(|path| path.exists() && dev.join("iommu").exists()) {
        return Ok(Way::Iommufd { device });
    }
    if dev.join("vfio").join(group.to_string()).exists() {
        return Ok(Way::Group { group });
    }
    let wanted = match vfio_device {
        Some(name) => format!("neither /dev/vfio/{group} nor /dev/vfio/devices/{name} with {IOMMUFD_NODE}"),
        None => format!("no /dev/vfio/{group}"),
    };
    Err(format!("there is {wanted}: a container must be given them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iommufd_is_taken_where_all_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path();
        let make = |path: &str| {
            std::fs::create_dir_all(dev.join(path).parent().unwrap()).unwrap();
            std::fs::write(dev.join(path), "").unwrap();
        };
        let group = Ok(Way::Group { group: 3 });
        assert!(choose(dev, None, None).unwrap_err().contains("no IOMMU"));
        let neither = choose(dev, Some("vfio0"), Some(3)).unwrap_err();
        assert!(neither.contains("neither /dev/vfio/3 nor /dev/vfio/devices/vfio0 with /dev/iommu"), "{neither}");
        make("vfio/3");
        assert_eq!(choose(dev, None, Some(3)), group, "a kernel without iommufd");
        make("iommu");
        assert_eq!(choose(dev, None, Some(3)), group, "iommufd, but not for VFIO");
        assert_eq!(choose(dev, Some("vfio0"), Some(3)), group, "a container that was given the group alone");
        make("vfio/devices/vfio0");
        let way = choose(dev, Some("vfio0"), Some(3)).unwrap();
        assert_eq!(way, Way::Iommufd { device: dev.join("vfio/devices/vfio0") });
        std::fs::remove_file(dev.join("vfio/3")).unwrap();
        assert_eq!(choose(dev, Some("vfio0"), Some(3)), Ok(way), "a kernel without groups");
        std::fs::remove_file(dev.join("iommu")).unwrap();
        assert!(choose(dev, Some("vfio0"), Some(3)).is_err());
    }
}
