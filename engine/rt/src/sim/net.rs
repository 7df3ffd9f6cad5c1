//! Stub.
use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use vellum_base::{DmaBuf, DmaSlice};

use super::Driver;
use crate::net::{Endpoint, PeerCred};

pub(crate) enum Stream {}
impl Stream {
    pub async fn connect(driver: &Driver, _to: &Endpoint) -> io::Result<Stream> {
        match *driver {}
    }
    pub async fn recv(&self, _buf: DmaBuf, _range: Range<usize>) -> (io::Result<usize>, DmaBuf) {
        match *self {}
    }
    pub async fn send_all(&self, _head: Vec<u8>, _payload: Option<DmaSlice>) -> (io::Result<()>, Vec<u8>) {
        match *self {}
    }
    pub fn shutdown(&self) {
        match *self {}
    }
    pub fn peer_cred(&self) -> Option<PeerCred> {
        match *self {}
    }
}
pub(crate) enum Listener {}
impl Listener {
    pub fn bind(driver: &Driver, _at: &Endpoint) -> io::Result<Listener> {
        match *driver {}
    }
    pub fn local_endpoint(&self) -> Endpoint {
        match *self {}
    }
    pub async fn accept(&self) -> io::Result<Stream> {
        match *self {}
    }
}
pub(crate) enum Datagram {}
impl Datagram {
    pub fn bind(driver: &Driver, _at: SocketAddr) -> io::Result<Datagram> {
        match *driver {}
    }
    pub fn local_addr(&self) -> SocketAddr {
        match *self {}
    }
    pub fn send_to(&self, _data: &[u8], _to: SocketAddr) -> io::Result<()> {
        match *self {}
    }
    pub async fn recv_from(&self, _buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match *self {}
    }
}
