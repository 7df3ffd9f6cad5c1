//! Where a stream leads to, as operators write it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// `unix:PATH` or `tcp:ADDR:PORT`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no endpoint: say unix:PATH or tcp:ADDR:PORT")]
pub struct EndpointError {
    text: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let parsed = match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Some(Endpoint::Unix(path.into())),
            Some(("tcp", addr)) => addr.parse().ok().map(Endpoint::Tcp),
            _ => None,
        };
        parsed.ok_or_else(|| EndpointError { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_they_are_read() {
        for text in ["unix:/run/vellum.sock", "tcp:127.0.0.1:7000", "tcp:[::1]:7000"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:localhost", "tcp:1.2.3.4", "udp:1.2.3.4:5", "/run/x"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
