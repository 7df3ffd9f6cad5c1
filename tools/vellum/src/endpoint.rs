//! Where a command finds its filesystem: a served endpoint, a device with the engine inside this process, or any path
//! on a mount, which names its endpoint in an xattr.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vellum_rt::net::Endpoint;

use crate::exit::{Exit, WithExit};

/// The xattr by which a mount tells the endpoint of its engine. Answered by the gateway, stored nowhere.
pub const ENDPOINT_XATTR: &str = "vellum.endpoint";

/// A filesystem as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `unix:PATH` or `tcp:ADDR:PORT`.
    Served(Endpoint),
    /// `file:DEVICE`: the engine runs in this process for as long as the command does.
    Embedded(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Served(endpoint) => endpoint.fmt(f),
            Target::Embedded(device) => write!(f, "file:{device}"),
        }
    }
}

impl Target {
    /// Reads an ENDPOINT argument.
    pub fn parse(text: &str) -> Result<Target> {
        if let Some(device) = text.strip_prefix("file:") {
            return Ok(Target::Embedded(device.to_owned()));
        }
        text.parse::<Endpoint>()
            .map(Target::Served)
            .map_err(|e| anyhow::anyhow!("{text:?} is no endpoint ({e}); use unix:PATH, tcp:ADDR:PORT or file:DEVICE"))
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
        assert!(matches!(Target::parse("unix:/run/x").unwrap(), Target::Served(Endpoint::Unix(_))));
        assert!(matches!(Target::parse("tcp:127.0.0.1:7").unwrap(), Target::Served(Endpoint::Tcp(_))));
        for bad in ["", "http://x", "tcp:nowhere", "/some/dir"] {
            let error = Target::parse(bad).unwrap_err();
            assert_eq!(crate::exit::code_of(&error), Exit::Usage, "{bad}");
        }
        let error = Target::parse_or_mounted("/").unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Exit::Endpoint);
    }
}
