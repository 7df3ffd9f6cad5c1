//! keys: an installation's authority, and the bundles that it makes.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::json;
use vellum_keys::{Authority, Issued, KeysError, Role, Subject, Subtree, Wish};

use crate::cli::{KeyValidity, Keys};
use crate::exit::{Coded, Exit};

const DAY: u64 = 86_400;
/// `list` points at what ends within so many days.
const SOON_DAYS: i64 = 30;

pub fn keys(args: &Keys) -> Result<()> {
    match args {
        Keys::Init { dir } => {
            Authority::init(dir).map_err(coded)?;
            println!("made the authority {}: keep its ca.key where no node or client can read it", dir.display());
            Ok(())
        }
        Keys::Node { dir, name, address, validity } => {
            let addresses = address.iter().map(|address| without_port(address)).collect();
            let name = name.parse().map_err(coded)?;
            let subject = Subject { role: Role::Node, name, read_only: false, path: None };
            issue(dir, subject, addresses, validity)
        }
        Keys::Client { dir, name, read_only, path, validity } => {
            let name = name.parse().map_err(coded)?;
            let path = path.as_ref().map(|path| Subtree::new(path.as_os_str().as_bytes()));
            let path = path.transpose().map_err(coded)?;
            issue(dir, Subject { role: Role::Client, name, read_only: *read_only, path }, Vec::new(), validity)
        }
        Keys::List { dir, json } => list(dir, *json),
    }
}

fn issue(dir: &Path, subject: Subject, addresses: Vec<String>, validity: &KeyValidity) -> Result<()> {
    let valid = Duration::from_secs(u64::from(validity.days) * DAY);
    let wish = Wish { subject, addresses, valid, renew: validity.renew };
    let to = Authority::open(dir).and_then(|authority| authority.issue(&wish)).map_err(coded)?;
    println!("{} in {}: copy it there, readable by its user alone, and say --keys", wish.subject, to.display());
    Ok(())
}

/// Addresses are often at hand with the port of an endpoint, which a certificate does not name.
fn without_port(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(addr) => addr.ip().to_string(),
        Err(_) => address.parse::<IpAddr>().map_or_else(|_| address.to_owned(), |ip| ip.to_string()),
    }
}

fn list(dir: &Path, as_json: bool) -> Result<()> {
    let all = Authority::open(dir).and_then(|authority| authority.list()).map_err(coded)?;
    if !as_json {
        println!("{:<8} {:<24} {:<10} {:<12} {:<24} keys", "role", "name", "access", "valid", "sees");
    }
    for issued in &all {
        let access = if issued.subject.read_only { "read-only" } else { "full" };
        let sees = issued.subject.path.as_ref().map(Subtree::to_text);
        let (role, name, days) = (issued.subject.role.as_str(), issued.subject.name.as_str(), days_left(issued)?);
        if as_json {
            let value = json!({
                "role": role, "name": name, "read_only": issued.subject.read_only, "confined_to": sees,
                "days_left": days,
                "not_before": issued.validity.not_before, "not_after": issued.validity.not_after,
                "path": issued.path.display().to_string(),
            });
            println!("{value}");
        } else {
            let valid = match days {
                ..0 => "EXPIRED".to_owned(),
                0..SOON_DAYS => format!("{days} d: RENEW"),
                _ => format!("{days} d"),
            };
            let sees = sees.as_deref().unwrap_or("/");
            println!("{role:<8} {name:<24} {access:<10} {valid:<12} {sees:<24} {}", issued.path.display());
        }
    }
    Ok(())
}

fn days_left(issued: &Issued) -> Result<i64> {
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { bail!("the clock is before 1970") };
    Ok((issued.validity.not_after - now.as_secs() as i64).div_euclid(DAY as i64))
}

/// Names and addresses are usage; the rest is a failure of its own.
pub fn coded(error: KeysError) -> anyhow::Error {
    let code = match &error {
        KeysError::Name { .. } | KeysError::Address { .. } | KeysError::Subtree { .. } | KeysError::NotANode { .. } => {
            Exit::Usage
        }
        _ => Exit::Failure,
    };
    Coded { code, error: error.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_not_of_the_certificate() {
        for (given, meant) in
            [("10.0.0.1:7000", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("[::1]:7", "::1"), ("a.example", "a.example")]
        {
            assert_eq!(without_port(given), meant);
        }
    }
}
