//! One file name out of a request, checked and kept inline so that no request allocates for it.

use std::fmt;
use std::ops::Deref;

use crate::types::Errno;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// 1 to 255 bytes without NUL and slash. "." and ".." are names here (LOOKUP asks for them under export support); the
/// decoder refuses them elsewhere.
#[derive(Clone, Copy)]
pub struct Name {
    len: u8,
    bytes: [u8; NAME_MAX],
}

impl Name {
    pub fn new(name: &[u8]) -> Result<Name, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if name.is_empty() || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; NAME_MAX];
        bytes[..name.len()].copy_from_slice(name);
        Ok(Name { len: name.len() as u8, bytes })
    }

    pub fn is_dot_or_dotdot(&self) -> bool {
        matches!(&self[..], b"." | b"..")
    }
}

impl Deref for Name {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_names() {
        assert_eq!(&Name::new(b"a").unwrap()[..], b"a");
        assert_eq!(&Name::new(&[b'x'; 255]).unwrap()[..], &[b'x'; 255]);
        assert_eq!(Name::new(&[b'x'; 256]).unwrap_err(), Errno::ENAMETOOLONG);
        for bad in [&b""[..], b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad).unwrap_err(), Errno::EINVAL);
        }
    }
}
