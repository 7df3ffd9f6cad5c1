//! Takes requests apart, with every bound checked: the kernel is trusted, a bug in it is no reason to fall over.

use zerocopy::FromBytes;

use crate::abi::InHeader;
use crate::name::Name;
use crate::types::Errno;

/// What is left of a request's bytes. Anything missing is EINVAL for that request alone.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    rest: &'a [u8],
}

impl<'a> Args<'a> {
    pub fn new(rest: &'a [u8]) -> Args<'a> {
        Args { rest }
    }

    pub fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Errno::EINVAL)?;
        self.rest = rest;
        Ok(value)
    }

    /// The next NUL-ended string, without its NUL.
    pub fn cstr(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.rest.iter().position(|&b| b == 0).ok_or(Errno::EINVAL)?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(text)
    }

    /// The next string as a name, "." and ".." among them.
    pub fn name_or_dots(&mut self) -> Result<Name, Errno> {
        Name::new(self.cstr()?)
    }

    pub fn name(&mut self) -> Result<Name, Errno> {
        let name = self.name_or_dots()?;
        if name.is_dot_or_dotdot() { Err(Errno::EINVAL) } else { Ok(name) }
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Errno::EINVAL)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// Splits a message into header and arguments; extensions at the end are cut off. `None`: no header, or a length that
/// is not the message's: there is nothing to answer to.
pub fn split(message: &[u8]) -> Option<(InHeader, &[u8])> {
    let (header, body) = InHeader::read_from_prefix(message).ok()?;
    if header.len as usize != message.len() {
        return None;
    }
    let extensions = header.total_extlen as usize * 8;
    Some((header, body.get(..body.len().checked_sub(extensions)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_arguments_are_errors() {
        let mut args = Args::new(b"ab\0..\0tail");
        assert_eq!(&args.name().unwrap()[..], b"ab");
        assert_eq!(args.name().unwrap_err(), Errno::EINVAL, "dots are no name");
        assert_eq!(args.cstr().unwrap_err(), Errno::EINVAL, "no end");
        assert_eq!(args.take::<u64>().unwrap_err(), Errno::EINVAL);
        assert_eq!(args.bytes(5).unwrap_err(), Errno::EINVAL);
        assert_eq!(args.bytes(4).unwrap(), b"tail");
        assert!(args.bytes(1).is_err());
    }

    #[test]
    fn a_message_says_its_own_length() {
        let mut message = [0u8; 56];
        message[..4].copy_from_slice(&56u32.to_ne_bytes());
        assert_eq!(split(&message).unwrap().1.len(), 16);
        assert!(split(&message[..55]).is_none());
        assert!(split(&message[..10]).is_none());
        message[36..38].copy_from_slice(&1u16.to_ne_bytes());
        assert_eq!(split(&message).unwrap().1.len(), 8, "one extension of 8 bytes");
        message[36..38].copy_from_slice(&9u16.to_ne_bytes());
        assert!(split(&message).is_none());
    }
}
