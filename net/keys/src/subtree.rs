//! The directory that a client is confined to, as a path in its certificate.
//!
//! In the URI bytes other than letters, digits, `-`, `.`, `_`, `~` and `/` are written as `%XX` (RFC 3986, 2.1), in
//! capitals. One path has one spelling: no part is empty, `.` or `..`, and there is no slash at the end.

use std::fmt;
use std::str::FromStr;

use crate::error::KeysError;

/// A path from the root of the filesystem to a directory below it. Symbolic links in it are not followed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subtree(Vec<u8>);

impl Subtree {
    /// Longest path in bytes: with every byte escaped its URI is still a small part of a certificate.
    pub const MAX_LEN: usize = 1024;
    /// Longest name of one directory in bytes, as in the filesystem.
    const MAX_NAME: usize = 255;

    /// From the bytes of a path. A slash at its end is taken off, as shells put one there.
    pub fn new(path: &[u8]) -> Result<Subtree, KeysError> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let refused = |what| KeysError::Subtree { path: String::from_utf8_lossy(path).into_owned(), what };
        let names = match path {
            [] => return Err(refused("that is the whole filesystem: leave the path off")),
            [b'/', names @ ..] => names,
            _ => return Err(refused("it does not begin at the root of the filesystem (with /)")),
        };
        if path.len() > Subtree::MAX_LEN {
            return Err(refused("it is longer than 1024 bytes"));
        }
        for name in names.split(|byte| *byte == b'/') {
            if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
                return Err(refused("its parts must be names: none empty, \".\" or \"..\""));
            }
            if name.len() > Subtree::MAX_NAME {
                return Err(refused("one of its names is longer than 255 bytes"));
            }
        }
        Ok(Subtree(path.to_owned()))
    }

    /// The names of the directories, from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0[1..].split(|byte| *byte == b'/')
    }

    /// For people; names need not be text.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    fn is_plain(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/')
    }
}

impl fmt::Debug for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As it stands in a URI.
impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            if Subtree::is_plain(*byte) {
                write!(f, "{}", char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// From a URI. Only the one spelling is taken.
impl FromStr for Subtree {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Subtree, KeysError> {
        let mut path = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            rest = match (first, after) {
                (b'%', [high, low, after @ ..]) => {
                    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap_or(0) as u8;
                    path.push(digit(high) << 4 | digit(low));
                    after
                }
                _ => {
                    path.push(*first);
                    after
                }
            };
        }
        let subtree = Subtree::new(&path)?;
        // Whatever was no spelling of ours is found out by writing it.
        if subtree.to_string() == text {
            Ok(subtree)
        } else {
            Err(KeysError::Subtree { path: text.to_owned(), what: "it is not written as vellum writes it" })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for path in ["/a", "/a/b", "/a/b/", "/ ", "/...", "/a?b&c%/\u{e4}"] {
            assert!(Subtree::new(path.as_bytes()).is_ok(), "{path}");
        }
        let long = format!("/{}", "x".repeat(256));
        let deep = "/x".repeat(600);
        for path in ["", "/", "//", "a", "a/b", "/a//b", "/a/./b", "/a/..", "/..", "/a\0b", &long, &deep] {
            assert!(Subtree::new(path.as_bytes()).is_err(), "{path:?}");
        }
        let names: Vec<Vec<u8>> = Subtree::new(b"/a/b c/").unwrap().names().map(<[u8]>::to_vec).collect();
        assert_eq!(names, [b"a".to_vec(), b"b c".to_vec()]);
    }

    #[test]
    fn there_is_one_spelling_in_a_uri() {
        let odd = Subtree::new(b"/a b/%?&\xff").unwrap();
        assert_eq!(odd.to_string(), "/a%20b/%25%3F%26%FF");
        assert_eq!(odd.to_string().parse::<Subtree>().unwrap(), odd);
        for text in ["/a%2fb", "/%61", "/a%2Fb", "/a%", "/a%2", "/a%zz", "/a b", "/a/", "/a&b", "/a?b", "/\u{e4}"] {
            assert!(text.parse::<Subtree>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_as_it_was_read(text in "/[a/%0-9A-F.]{0,20}") {
            if let Ok(subtree) = text.parse::<Subtree>() {
                prop_assert_eq!(subtree.to_string(), text);
            }
        }

        #[test]
        fn any_name_survives(name in proptest::collection::vec(1u8..=255, 1..50)) {
            let path = [b"/".as_slice(), &name].concat();
            if let Ok(subtree) = Subtree::new(&path) {
                prop_assert_eq!(subtree.to_string().parse::<Subtree>().unwrap(), subtree);
            }
        }
    }
}
