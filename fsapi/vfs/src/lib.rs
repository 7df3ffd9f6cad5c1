//! POSIX over items.
