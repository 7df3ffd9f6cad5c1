//! The FUSE gateway on our own kernel transport.
