//! Accepting streams.

use std::fmt;
use std::io;
use std::rc::Rc;

use super::stream::Inner as StreamInner;
use super::{Endpoint, Stream};
use crate::backend::Backend;
use crate::{kernel, reactor, sim};

enum Inner {
    Kernel(kernel::Listener),
    Sim(sim::net::Listener),
}

/// A bound endpoint. A unix socket's path is taken over when nobody listens on it, and removed when this is dropped.
pub struct Listener {
    inner: Inner,
}

impl Listener {
    pub fn bind(at: &Endpoint) -> io::Result<Listener> {
        let reactor = reactor::with(Rc::clone);
        let inner = match &reactor.backend {
            Backend::Kernel(driver) => Inner::Kernel(kernel::Listener::bind(driver, at)?),
            Backend::Sim(driver) => Inner::Sim(sim::net::Listener::bind(driver, at)?),
        };
        Ok(Listener { inner })
    }

    /// The bound endpoint, with the port that was chosen when 0 was asked for.
    pub fn local_endpoint(&self) -> io::Result<Endpoint> {
        match &self.inner {
            Inner::Kernel(listener) => listener.local_endpoint(),
            Inner::Sim(listener) => Ok(listener.local_endpoint()),
        }
    }

    /// The next connection. Dropping the future loses none.
    pub async fn accept(&self) -> io::Result<Stream> {
        let inner = match &self.inner {
            Inner::Kernel(listener) => StreamInner::Kernel(Rc::new(listener.accept().await?)),
            Inner::Sim(listener) => StreamInner::Sim(Rc::new(listener.accept().await?)),
        };
        Ok(Stream { inner })
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener({:?})", self.local_endpoint())
    }
}
