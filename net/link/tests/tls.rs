//! TLS under a session: who is believed, who is not, and what strangers cost.

mod server;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use server::{Answer, Server};
use vellum_base::{BatchNo, BlockRange, DmaBuf, Epoch, Rid};
use vellum_keys::{Authority, Keys, Wish};
use vellum_link::{Acceptor, Address, ConnectOptions, Connection, Identity, LinkError, Peer};
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::net::Endpoint;
use vellum_rt::{sleep, timeout};
use vellum_wire::{Request, Response};

const DAY: Duration = Duration::from_secs(86_400);

/// An authority with a node at 127.0.0.1 and a client.
struct Installation {
    _dir: tempfile::TempDir,
    authority: Authority,
}

impl Installation {
    fn new() -> Installation {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("authority")).unwrap();
        Installation { _dir: dir, authority }
    }

    fn keys_at(&self, subject: &str, addresses: &[&str], valid: Duration) -> Arc<Keys> {
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        let wish = Wish { subject: subject.parse().unwrap(), addresses, valid, renew: true };
        Arc::new(Keys::load(&self.authority.issue(&wish).unwrap()).unwrap())
    }

    fn node(&self) -> Arc<Keys> {
        self.keys_at("vellum:node/a", &["127.0.0.1"], DAY)
    }

    fn client(&self) -> Arc<Keys> {
        self.keys_at("vellum:client/gw", &[], DAY)
    }
}

/// Syncs echo their number, data are summed, reads give nines.
fn echo() -> Answer {
    Rc::new(|request, payload| {
        Box::pin(async move {
            match request {
                Request::Sync { through } => (Response::Synced { durable: Epoch(through.0) }, None),
                Request::WriteData => {
                    let sum = payload.map_or(0, |p| p.iter().map(|b| u32::from(*b)).sum());
                    (Response::Written { ranges: vec![BlockRange::new(1, sum)] }, None)
                }
                Request::ReadData { ranges } => {
                    let mut buf = DmaBuf::new(ranges.iter().map(|r| r.len_bytes()).sum());
                    buf.fill(9);
                    (Response::Data, Some(buf.freeze()))
                }
                _ => (Response::error(vellum_wire::ErrorCode::Unsupported, "no"), None),
            }
        })
    })
}

fn serve(keys: Option<Arc<Keys>>, timers: Timers) -> (Rc<Server>, Acceptor, SocketAddr) {
    let server = Server::new(timers, echo());
    *server.keys.borrow_mut() = keys;
    let acceptor = server.listen("tcp:127.0.0.1:0");
    let Endpoint::Tcp(addr) = acceptor.local_endpoint().clone() else { unreachable!() };
    (server, acceptor, addr)
}

async fn connect(addr: SocketAddr, keys: Option<Arc<Keys>>) -> Result<Rc<Connection>, LinkError> {
    let options = ConnectOptions { keys, ..ConnectOptions::default() };
    Connection::open(Address::Net(Endpoint::Tcp(addr)), Identity { rid: Rid(7), fsid: None }, options).await
}

async fn works(conn: &Connection) {
    let reply = conn.call(Request::Sync { through: BatchNo(5) }, None).await.unwrap();
    assert_eq!(reply.body, Response::Synced { durable: Epoch(5) });
}

#[test]
fn tls_carries_calls_and_data() {
    block_on(async {
        let ours = Installation::new();
        let (server, _acceptor, addr) = serve(Some(ours.node()), Timers::DEFAULT);
        let conn = connect(addr, Some(ours.client())).await.unwrap();
        let calls: Vec<_> = (1..200).map(|n| (n, conn.call(Request::Sync { through: BatchNo(n) }, None))).collect();
        for (n, call) in calls {
            assert_eq!(call.await.unwrap().body, Response::Synced { durable: Epoch(n) });
        }
        // Around the sizes of a record, of a piece, and of a frame.
        for len in [1usize, 4096, 16_383, 16_384, 16_385, 131_072, 131_073, 1 << 20] {
            let mut buf = DmaBuf::zeroed(len);
            buf[len - 1] = 5;
            buf[0] += 1;
            let sum = buf.iter().map(|b| u32::from(*b)).sum();
            let reply = conn.call(Request::WriteData, Some(buf.freeze())).await.unwrap();
            assert_eq!(reply.body, Response::Written { ranges: vec![BlockRange::new(1, sum)] }, "{len}");
        }
        let reads: Vec<_> =
            (0..8).map(|_| conn.call(Request::ReadData { ranges: vec![BlockRange::new(3, 256)] }, None)).collect();
        for read in reads {
            let data = read.await.unwrap().payload.unwrap();
            assert!(data.len() == 1 << 20 && data.iter().all(|b| *b == 9) && data.is_block_aligned());
        }
        assert_eq!(*server.peers.borrow(), [Peer::Known("vellum:client/gw".parse().unwrap())]);
        conn.break_socket();
        works(&conn).await; // over another socket, with another handshake
        assert_eq!(server.peers.borrow().len(), 2);
    });
}

#[test]
fn who_is_not_of_the_installation_is_told_at_once_and_is_nobody_to_the_engine() {
    block_on(async {
        let (ours, theirs) = (Installation::new(), Installation::new());
        let (server, _acceptor, addr) = serve(Some(ours.node()), Timers::DEFAULT);
        let expired = ours.keys_at("vellum:client/old", &[], Duration::ZERO);
        sleep(Duration::from_millis(2100)).await;
        for (keys, what) in [
            (Some(theirs.client()), "another authority's client"),
            (Some(theirs.node()), "another authority's node"),
            (Some(expired), "an expired certificate"),
            (None, "plain TCP"),
        ] {
            let error = timeout(Duration::from_secs(8), connect(addr, keys)).await.expect("at once").err().unwrap();
            assert!(matches!(error, LinkError::NotTrusted(_)), "{what}: {error}");
        }
        assert!(server.peers.borrow().is_empty(), "nobody came as far as a greeting");
        works(&connect(addr, Some(ours.client())).await.unwrap()).await;
    });
}

#[test]
fn a_client_believes_nodes_alone_and_each_at_its_address() {
    block_on(async {
        let (ours, theirs) = (Installation::new(), Installation::new());
        for (node, what) in [
            (theirs.node(), "another authority's node"),
            (ours.keys_at("vellum:node/b", &["127.0.0.2", "localhost"], DAY), "a node of another address"),
            (ours.keys_at("vellum:node/c", &[], DAY), "a node without an address"),
        ] {
            let (_server, _acceptor, addr) = serve(Some(node), Timers::DEFAULT);
            let error = connect(addr, Some(ours.client())).await.err().unwrap();
            assert!(matches!(error, LinkError::NotTrusted(_)), "{what}: {error}");
        }
        // A client's keys serve nobody: each socket is closed, and the one who connects tries on until its time is over.
        let (server, _acceptor, addr) = serve(Some(ours.client()), Timers::DEFAULT);
        let options = ConnectOptions {
            keys: Some(ours.client()),
            open_within: Some(Duration::from_millis(300)),
            ..ConnectOptions::default()
        };
        let identity = Identity { rid: Rid(7), fsid: None };
        let error = Connection::open(Address::Net(Endpoint::Tcp(addr)), identity, options).await.err().unwrap();
        assert_eq!(error, LinkError::TimedOut);
        assert!(server.peers.borrow().is_empty());
        // An engine without keys speaks no TLS.
        let (_server, _acceptor, addr) = serve(None, Timers::DEFAULT);
        let options = ConnectOptions {
            keys: Some(ours.client()),
            open_within: Some(Duration::from_millis(300)),
            ..ConnectOptions::default()
        };
        let error = Connection::open(Address::Net(Endpoint::Tcp(addr)), identity, options).await.err().unwrap();
        assert_eq!(error, LinkError::TimedOut);
    });
}

#[test]
fn without_keys_tcp_ends_at_loopback() {
    block_on(async {
        let addr = "192.0.2.1:7000".parse().unwrap();
        let refused = timeout(Duration::from_secs(2), connect(addr, None)).await.expect("nothing was tried");
        let LinkError::NotTrusted(why) = refused.err().unwrap() else { panic!() };
        assert!(why.contains("--keys"), "{why}");
    });
}

/// TLS garbage, a handshake that never ends, one that is too long, one that comes a byte at a time, and a peer that
/// proves nothing: each loses its socket, and a client that works goes on working.
#[test]
fn strangers_of_tls_cost_only_themselves() {
    block_on(async {
        let ours = Installation::new();
        let timers = Timers { greeting: Duration::from_millis(700), ..Timers::DEFAULT };
        let (server, _acceptor, addr) = serve(Some(ours.node()), timers);
        let conn = connect(addr, Some(ours.client())).await.unwrap();
        let stranger = |bytes: &[u8]| {
            let mut socket = TcpStream::connect(addr).unwrap();
            socket.write_all(bytes).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        // A record of 16 KiB of a ClientHello that says that it has 16 MB.
        let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        endless.resize(5 + 0x4000, 0);
        let mut sockets = vec![
            stranger(&[]),
            stranger(&[22, 3, 1]),
            stranger(&[0xff; 600]),
            stranger(&[23, 3, 3, 0, 5, 1, 2, 3, 4, 5]),
            stranger(&endless),
            stranger(&endless.repeat(3)),
            stranger(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ];
        let mut slow = stranger(&[]);
        let all_closed = async {
            let mut sent = 0;
            while !sockets.is_empty() || sent >= 0 {
                sleep(Duration::from_millis(10)).await;
                works(&conn).await;
                sockets.retain_mut(is_open);
                if sent >= 0 {
                    let alive = is_open(&mut slow) && slow.write_all(&endless[sent as usize..][..1]).is_ok();
                    sent = if alive { sent + 1 } else { -1 };
                }
            }
        };
        timeout(Duration::from_secs(20), all_closed).await.expect("each of them is closed");
        assert_eq!(server.sessions.borrow().len(), 1);
        assert!(server.expired.borrow().is_empty(), "nobody was fenced");
    });
}

fn is_open(socket: &mut TcpStream) -> bool {
    match socket.read(&mut [0; 256]) {
        Ok(n) => n > 0,
        Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// A certificate is asked for, not hoped for.
#[test]
fn a_peer_without_a_certificate_is_nobody() {
    let ours = Installation::new();
    let ca = Path::new(ours._dir.path()).join("authority/ca.crt");
    block_on(async {
        let (server, _acceptor, addr) = serve(Some(ours.node()), Timers::DEFAULT);
        let done = Rc::new(RefCell::new(None));
        let task = std::thread::spawn(move || anonymous(addr, &ca));
        while !task.is_finished() {
            sleep(Duration::from_millis(5)).await;
        }
        *done.borrow_mut() = Some(task.join().unwrap());
        let answer = done.borrow_mut().take().unwrap();
        assert!(answer.contains("CertificateRequired") || answer.contains("reset"), "{answer}");
        assert!(server.peers.borrow().is_empty());
    });
}

/// What a TLS client without a certificate hears.
fn anonymous(addr: SocketAddr, ca: &Path) -> String {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![vellum_keys::ALPN.to_vec()];
    let name = rustls::pki_types::ServerName::IpAddress(addr.ip().into());
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    match stream.write_all(b"vlm").and_then(|()| stream.read(&mut [0; 64])) {
        Ok(n) => format!("{n} bytes"),
        Err(e) => format!("{e:?}"),
    }
}

/// A peer that does not read is closed in the time of one send; what waits for it was bounded by its credits anyway.
#[test]
fn a_peer_that_does_not_read_is_closed() {
    for tls in [false, true] {
        block_on(async {
            let ours = Installation::new();
            let timers = Timers { send_stall: Duration::from_millis(400), ..Timers::DEFAULT };
            let (server, _acceptor, addr) = serve(tls.then(|| ours.node()), timers);
            let conn = connect(addr, tls.then(|| ours.client())).await.unwrap();
            works(&conn).await;
            let session = server.sessions.borrow()[&Rid(7)].clone();
            // A raw peer can't be had within TLS here, so the reader is another thread's reactor that blocks.
            drop(conn);
            let over = Arc::new(AtomicBool::new(false));
            let until = over.clone();
            let stuck = std::thread::spawn(move || {
                block_on(async {
                    let conn = connect_as(addr, tls.then(|| ours.client()), 8).await;
                    let reads: Vec<_> = (0..8)
                        .map(|_| conn.call(Request::ReadData { ranges: vec![BlockRange::new(3, 256)] }, None))
                        .collect();
                    sleep(Duration::from_millis(1)).await; // they are sent
                    while !until.load(Ordering::Acquire) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    drop(reads);
                });
            });
            let closed = async {
                loop {
                    let stuck = server.sessions.borrow().get(&Rid(8)).cloned();
                    if stuck.is_some_and(|stuck| !stuck.is_up()) {
                        return;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(Duration::from_secs(20), closed).await.expect("closed while it still slept");
            over.store(true, Ordering::Release);
            assert!(!session.has_ended());
            stuck.join().unwrap();
        });
    }
}

async fn connect_as(addr: SocketAddr, keys: Option<Arc<Keys>>, rid: u64) -> Rc<Connection> {
    let options = ConnectOptions { keys, ..ConnectOptions::default() };
    let address = Address::Net(Endpoint::Tcp(addr));
    Connection::open(address, Identity { rid: Rid(rid), fsid: None }, options).await.unwrap()
}
