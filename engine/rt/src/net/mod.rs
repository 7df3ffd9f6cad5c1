//! Streams, listeners and datagram sockets, of the kernel or of the simulated network.

mod datagram;
mod endpoint;
mod listener;
mod stream;

pub use datagram::Datagram;
pub use endpoint::{Endpoint, EndpointError};
pub use listener::Listener;
pub use stream::{PeerCred, Stream};
