//! The status that a process gives beside its metrics: `metrics:ADDR:PORT` or `metrics:unix:PATH`, as `serve --metrics` was told.
//! A member of a cluster answers there whether it leads or not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vellum_rt::net::Endpoint;

use crate::exit::{Exit, WithExit};

const PREFIX: &str = "metrics:";
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any status has.
const MOST_BYTES: u64 = 64 << 20;

/// The address, if `on` names one of this kind.
pub fn address(on: &str) -> Option<&str> {
    on.strip_prefix(PREFIX)
}

/// Asks there for the status.
pub fn status(address: &str) -> Result<Value> {
    let text = if address.starts_with("unix:") { address.to_owned() } else { format!("tcp:{address}") };
    let endpoint: Endpoint = text
        .parse()
        .with_context(|| format!("{PREFIX}{address}: use {PREFIX}ADDR:PORT or {PREFIX}unix:PATH"))
        .exit(Exit::Usage)?;
    let answer = match &endpoint {
        Endpoint::Tcp(addr) => TcpStream::connect_timeout(addr, PATIENCE).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(stream)
        }),
        Endpoint::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(stream)
        }),
    };
    let answer = answer.with_context(|| format!("cannot reach {PREFIX}{address}")).exit(Exit::Endpoint)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.lines().next().is_some_and(|line| line.contains(" 200 ")) {
        return Err(anyhow::anyhow!("{PREFIX}{address} answers {:?}", head.lines().next().unwrap_or_default()))
            .exit(Exit::Endpoint);
    }
    serde_json::from_str(body).context("the status cannot be read").exit(Exit::Endpoint)
}

fn ask(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}
