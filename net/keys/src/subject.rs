//! Whom a certificate is for.
//!
//! It stands in the certificate as its one URI with our scheme:
//! ```text
//!  vellum:node/NAME
//!  vellum:client/NAME
//!  vellum:client/NAME?read-only
//!  vellum:client/NAME?path=/DIRECTORY
//!  vellum:client/NAME?path=/DIRECTORY&read-only
//! ```
//! What is not understood grants nothing: a certificate with an unknown restriction is refused, never taken for one
//! without.

use std::fmt;
use std::str::FromStr;

use crate::error::KeysError;
use crate::subtree::Subtree;

pub(crate) const SCHEME: &str = "vellum:";
const READ_ONLY: &str = "read-only";
const PATH: &str = "path=";

/// A name within one authority; what a client's rids are bound to, so that a renewed certificate is the same client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(String);

impl Name {
    /// Fits a path component and a log line.
    pub const MAX_LEN: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Name, KeysError> {
        let is_legal = text.len() <= Name::MAX_LEN
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if is_legal { Ok(Name(text.to_owned())) } else { Err(KeysError::Name { text: text.to_owned() }) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// A member or worker: it has the device, and may serve.
    Node,
    /// A gateway or tool.
    Client,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Client => "client",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Subject {
    pub role: Role,
    pub name: Name,
    /// Of a client: it may look and change nothing.
    pub read_only: bool,
    /// Of a client: this directory is all it knows of the filesystem.
    pub path: Option<Subtree>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.role.as_str(), self.name)?;
        match (&self.path, self.read_only) {
            (None, false) => Ok(()),
            (None, true) => write!(f, "?{READ_ONLY}"),
            (Some(path), false) => write!(f, "?{PATH}{path}"),
            (Some(path), true) => write!(f, "?{PATH}{path}&{READ_ONLY}"),
        }
    }
}

impl FromStr for Subject {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Subject, KeysError> {
        let refused = |what: &str| KeysError::Subject { what: format!("{text:?}: {what}") };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("another scheme"))?;
        let (who, restrictions) = match rest.split_once('?') {
            Some((who, restrictions)) => (who, Some(restrictions)),
            None => (rest, None),
        };
        let (role, name) = match who.split_once('/') {
            Some(("node", name)) => (Role::Node, name),
            Some(("client", name)) => (Role::Client, name),
            _ => return Err(refused("no role")),
        };
        let unknown = || refused("a restriction that this version does not know");
        let (path, read_only) = match (role, restrictions) {
            (_, None) => (None, false),
            (Role::Client, Some(READ_ONLY)) => (None, true),
            (Role::Client, Some(restrictions)) => {
                let path = restrictions.strip_prefix(PATH).ok_or_else(unknown)?;
                let (path, read_only) = match path.split_once('&') {
                    None => (path, false),
                    Some((path, READ_ONLY)) => (path, true),
                    Some(_) => return Err(unknown()),
                };
                (Some(path.parse().map_err(|_| refused("no path of a directory"))?), read_only)
            }
            (Role::Node, Some(_)) => return Err(unknown()),
        };
        let name = name.parse().map_err(|_| refused("no name"))?;
        Ok(Subject { role, name, read_only, path })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_are_written_as_they_are_read() {
        for text in [
            "vellum:node/a",
            "vellum:client/gw-1.example_x",
            "vellum:client/1?read-only",
            "vellum:client/a?path=/x",
            "vellum:client/a?path=/x%20y/z&read-only",
        ] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let long = format!("vellum:client/{}", "x".repeat(64));
        for text in [
            "",
            "vellum:",
            "vellum:node",
            "vellum:node/",
            "vellum:admin/a",
            "http://node/a",
            "vellum:client/a/b",
            "vellum:client/../a",
            "vellum:client/.a",
            "vellum:client/a?",
            "vellum:client/a?path=",
            "vellum:client/a?path=/",
            "vellum:client/a?path=x",
            "vellum:client/a?path=/x/",
            "vellum:client/a?path=/x/../y",
            "vellum:client/a?path=/x&",
            "vellum:client/a?path=/x&path=/y",
            "vellum:client/a?path=/x&more",
            "vellum:client/a?read-only&path=/x",
            "vellum:client/a?read-only?read-only",
            "vellum:node/a?path=/x",
            "vellum:node/a?read-only",
            "vellum:client/a b",
            "vellum:client/\u{e4}",
            "Vellum:client/a",
            &long,
        ] {
            assert!(matches!(text.parse::<Subject>(), Err(KeysError::Subject { .. })), "{text}");
        }
    }

    proptest! {
        /// One text per subject: nothing that is accepted is written in another way than it was read.
        #[test]
        fn there_is_one_spelling(text in "vellum:(node|client)/[a-z.?/-]{0,20}(\\?path=/[a-z./%0-9A-F]{0,9})?([?&]read-only)?") {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }
}
