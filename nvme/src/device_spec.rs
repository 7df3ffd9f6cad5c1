//! A device as the command line names it, taken apart. Nothing is looked at or opened here.

use crate::DeviceError;
use crate::vfio::pci::PciAddress;

/// Longest content that is kept in memory, in bytes: its table alone takes a few millionths of that.
const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// See [`crate::open`] for how each is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSpec<'a> {
    /// A regular file or a block device.
    Path(&'a str),
    Memory {
        size_bytes: u64,
    },
    Nvme {
        address: PciAddress,
        nsid: Option<u32>,
    },
    VfioUser {
        /// As it stands: a socket may have a name that ends like a namespace.
        whole: &'a str,
        /// The same as PATH/NSID, unless what follows the / is no number.
        split: Option<(&'a str, u32)>,
    },
    Spdk {
        transport: &'a str,
    },
    Emu(EmuSpec<'a>),
}

/// What a modelled controller keeps its namespace on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EmuSpec<'a> {
    Memory {
        size_bytes: u64,
    },
    /// Nothing: what is read is unspecified.
    Null {
        size_bytes: u64,
    },
    File {
        path: &'a str,
    },
}

impl<'a> DeviceSpec<'a> {
    /// [`DeviceError::BadSpec`] says what is wrong, and how it would be right.
    pub fn parse(spec: &'a str) -> Result<DeviceSpec<'a>, DeviceError> {
        let bad = |detail| DeviceError::BadSpec { spec: spec.to_owned(), detail };
        match spec.split_once(':') {
            Some(("uring" | "file", path)) => Ok(DeviceSpec::Path(path)),
            Some(("memory", size)) => {
                let size_bytes = parse_size(size).ok_or_else(|| bad("want memory:SIZE such as memory:256M"))?;
                Ok(DeviceSpec::Memory { size_bytes: in_memory(size_bytes).map_err(bad)? })
            }
            Some(("nvme", what)) => {
                let (controller, nsid) = split_nsid(what).map_err(bad)?;
                Ok(DeviceSpec::Nvme { address: controller.parse().map_err(bad)?, nsid })
            }
            Some(("vfio-user", whole)) => {
                let split = split_nsid(whole).ok().and_then(|(path, nsid)| Some((path, nsid?)));
                Ok(DeviceSpec::VfioUser { whole, split })
            }
            Some(("spdk", transport)) => Ok(DeviceSpec::Spdk { transport }),
            Some(("emu", what)) => EmuSpec::parse(what).map(DeviceSpec::Emu).map_err(bad),
            _ if spec.is_empty() => Err(bad("it is empty")),
            _ => Ok(DeviceSpec::Path(spec)),
        }
    }
}

impl<'a> EmuSpec<'a> {
    fn parse(what: &'a str) -> Result<EmuSpec<'a>, &'static str> {
        let wanted = "want emu:SIZE, emu:null:SIZE or emu:file:PATH";
        let size = |text: &str| {
            let whole_blocks = parse_size(text).map(|bytes| bytes / 4096 * 4096);
            whole_blocks.filter(|bytes| *bytes > 0).ok_or(wanted)
        };
        match what.split_once(':') {
            Some(("null", text)) => Ok(EmuSpec::Null { size_bytes: size(text)? }),
            Some(("file", path)) => Ok(EmuSpec::File { path }),
            Some(_) => Err(wanted),
            None => Ok(EmuSpec::Memory { size_bytes: in_memory(size(what)?)? }),
        }
    }
}

fn in_memory(size_bytes: u64) -> Result<u64, &'static str> {
    match size_bytes {
        ..4096 => Err("a device has 4096 bytes at least"),
        4096..=MAX_MEMORY_BYTES => Ok(size_bytes),
        _ => Err("in memory a device has 1 TiB at most"),
    }
}

/// `CONTROLLER[/NSID]`.
fn split_nsid(what: &str) -> Result<(&str, Option<u32>), &'static str> {
    let Some((controller, nsid)) = what.rsplit_once('/') else { return Ok((what, None)) };
    let nsid = nsid.parse().map_err(|_| "what follows the / is no namespace id")?;
    Ok((controller, Some(nsid)))
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
    fn sizes_are_understood_or_refused() {
        assert_eq!(parse_size("64M"), Some(64 << 20));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        assert_eq!(parse_size("12x"), None);
        assert_eq!(parse_size("99999999999T"), None);
    }

    #[test]
    fn every_backend_has_its_words() {
        let parse = |spec| DeviceSpec::parse(spec).unwrap();
        assert_eq!(parse("/dev/sda"), DeviceSpec::Path("/dev/sda"));
        assert_eq!(parse("file:a:b"), DeviceSpec::Path("a:b"));
        assert_eq!(parse("memory:1M"), DeviceSpec::Memory { size_bytes: 1 << 20 });
        let DeviceSpec::Nvme { nsid: Some(7), .. } = parse("nvme:0000:00:10.0/7") else { panic!("a namespace") };
        assert_eq!(parse("vfio-user:/a/3"), DeviceSpec::VfioUser { whole: "/a/3", split: Some(("/a", 3)) });
        assert_eq!(parse("vfio-user:/a/b"), DeviceSpec::VfioUser { whole: "/a/b", split: None });
        assert_eq!(parse("emu:null:9999T"), DeviceSpec::Emu(EmuSpec::Null { size_bytes: 9999 << 40 }));
        let refused = |spec| DeviceSpec::parse(spec).unwrap_err().to_string();
        for spec in ["memory:9999T", "emu:2T"] {
            assert!(refused(spec).contains("1 TiB at most"), "{spec}"); // its table would take all memory
        }
        assert!(refused("emu:0").contains("want emu:SIZE"));
        assert!(refused("memory:4095").contains("4096 bytes"));
    }
}
