//! Polled sockets and the in-process transport under a session.
