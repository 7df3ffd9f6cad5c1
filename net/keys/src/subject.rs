//! Whom a certificate is for.
//!
//! It stands in the certificate as its one URI with our scheme:
//! ```text
//!  vellum:node/NAME
//!  vellum:client/NAME
//!  vellum:client/NAME?read-only
//! ```
//! What is not understood grants nothing: a certificate with an unknown restriction is refused, never taken for one
//! without.

use std::fmt;
use std::str::FromStr;

use crate::error::KeysError;

pub(crate) const SCHEME: &str = "vellum:";
const READ_ONLY: &str = "read-only";

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
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.role.as_str(), self.name)?;
        if self.read_only {
            write!(f, "?{READ_ONLY}")?;
        }
        Ok(())
    }
}

impl FromStr for Subject {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Subject, KeysError> {
        let refused = |what: &str| KeysError::Subject { what: format!("{text:?}: {what}") };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("another scheme"))?;
        let (path, restriction) = match rest.split_once('?') {
            Some((path, restriction)) => (path, Some(restriction)),
            None => (rest, None),
        };
        let (role, name) = match path.split_once('/') {
            Some(("node", name)) => (Role::Node, name),
            Some(("client", name)) => (Role::Client, name),
            _ => return Err(refused("no role")),
        };
        let read_only = match (role, restriction) {
            (_, None) => false,
            (Role::Client, Some(READ_ONLY)) => true,
            (_, Some(_)) => return Err(refused("a restriction that this version does not know")),
        };
        let name = name.parse().map_err(|_| refused("no name"))?;
        Ok(Subject { role, name, read_only })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_are_written_as_they_are_read() {
        for text in ["vellum:node/a", "vellum:client/gw-1.example_x", "vellum:client/1?read-only"] {
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
            "vellum:client/a?path=/x",
            "vellum:client/a?read-only&path=/x",
            "vellum:client/a?read-only?read-only",
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
        fn there_is_one_spelling(text in "vellum:(node|client)/[a-z.?/-]{0,20}(\\?read-only)?") {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }
}
