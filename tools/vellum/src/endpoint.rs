//! Where a command finds its filesystem: a served endpoint, a device with the engine inside this process, or any path
//! on a mount, which names its endpoint in an xattr.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vellum_rt::net::{Endpoint, EndpointError};

use crate::device;
use crate::exit::{Exit, WithExit};

/// The xattr by which a mount tells the endpoint of its engine. Answered by the gateway, stored nowhere.
pub const ENDPOINT_XATTR: &str = "vellum.endpoint";

/// A filesystem as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `unix:PATH` or `tcp:ADDR:PORT`, or several of them after commas: the members of a cluster.
    Served(Vec<Endpoint>),
    /// `file:DEVICE`: the engine runs in this process for as long as the command does.
    Embedded(String),
}

fn show(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Served(endpoints) => f.write_str(&show(endpoints)),
            Target::Embedded(device) => write!(f, "file:{device}"),
        }
    }
}

impl Target {
    /// Reads an ENDPOINT argument. The device of a cluster stands for its members, whose addresses are on it.
    pub fn parse(text: &str) -> Result<Target> {
        if let Some(device) = text.strip_prefix("file:") {
            let members = members_of(device);
            return Ok(if members.is_empty() { Target::Embedded(device.to_owned()) } else { Target::Served(members) });
        }
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Target::Served)
            .map_err(|e: EndpointError| {
                anyhow::anyhow!(
                    "{text:?} is no endpoint ({e}); use unix:PATH, tcp:ADDR:PORT, several of these after commas, or file:DEVICE"
                )
            })
            .exit(Exit::Usage)
    }

    /// Reads an ENDPOINT|DIR argument.
    pub fn parse_or_mounted(text: &str) -> Result<Target> {
        if ["unix:", "tcp:", "file:"].iter().any(|scheme| text.starts_with(scheme)) {
            return Target::parse(text);
        }
        Target::of_path(Path::new(text))
    }

    /// The endpoint behind a path on a mount.
    pub fn of_path(path: &Path) -> Result<Target> {
        let mut value = vec![0u8; 4096];
        let n = rustix::fs::getxattr(path, ENDPOINT_XATTR, &mut value[..])
            .with_context(|| format!("{} is not on a Vellum mount", path.display()))
            .exit(Exit::Endpoint)?;
        match std::str::from_utf8(&value[..n]) {
            Ok(text) => Target::parse(text),
            Err(_) => bail!("the mount of {} names an endpoint that cannot be read", path.display()),
        }
    }
}

/// Where the members of the device's cluster listen; none when it has no slots (or cannot be read: whoever opens it
/// says why).
fn members_of(device: &str) -> Vec<Endpoint> {
    let found = device::observe(device)
        .and_then(|target| device::with_queue(&target, async |queue| Ok(vellum_store::read_superblock(&queue).await?)));
    let slots = found.map(|sb| sb.slots).unwrap_or_default();
    let text = |slot: &Vec<u8>| std::str::from_utf8(slot).ok()?.parse().ok().map(Endpoint::Tcp);
    slots.iter().filter_map(text).collect()
}

/// Where a process puts the sockets that nobody named: /run/vellum for root, else the user's runtime directory.
pub fn runtime_dir() -> Result<PathBuf> {
    let dir = if rustix::process::geteuid().is_root() {
        PathBuf::from("/run/vellum")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from).join("vellum")
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {} for sockets", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_nonsense_is_refused() {
        assert_eq!(Target::parse("file:/x.img").unwrap(), Target::Embedded("/x.img".into()));
        assert!(
            matches!(&Target::parse("unix:/run/x").unwrap(), Target::Served(e) if matches!(e[..], [Endpoint::Unix(_)]))
        );
        let cluster = "tcp:127.0.0.1:7,tcp:127.0.0.2:7,unix:/run/x";
        let target = Target::parse(cluster).unwrap();
        assert!(
            matches!(&target, Target::Served(e) if matches!(e[..], [Endpoint::Tcp(_), Endpoint::Tcp(_), Endpoint::Unix(_)]))
        );
        assert_eq!(target.to_string(), cluster);
        for bad in ["", "http://x", "tcp:nowhere", "/some/dir", "tcp:127.0.0.1:7,", "tcp:127.0.0.1:7 tcp:127.0.0.1:8"] {
            let error = Target::parse(bad).unwrap_err();
            assert_eq!(crate::exit::code_of(&error), Exit::Usage, "{bad}");
        }
        let error = Target::parse_or_mounted("/").unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Exit::Endpoint);
    }
}
