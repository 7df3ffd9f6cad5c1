//! An attacker with a plain socket or with keys, and a client that works meanwhile.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use vellum_base::{Epoch, Fsid, Ino, ItemOp, Rid, Term};
use vellum_format::Inode;
use vellum_keys::{Authority, Keys, Wish};
use vellum_link::{Address, ConnectOptions, Connection, Identity, LinkError};
use vellum_proto::Timers;
use vellum_rt::native::block_on;
use vellum_rt::net::Endpoint;
use vellum_rt::sleep;
use vellum_server::{Limits, Node, NodeOptions};
use vellum_store::OpenOptions;
use vellum_wire::{Body, Frame, FrameHeader, Greeting, HEADER_LEN, LockMode, PROTOCOL, Request, Response};

use crate::fake::TestClient;
use crate::fake::nodes::formatted;

/// Short where an attacker is waited for, of ordinary length where a loaded machine could be taken for one.
pub const TIMERS: Timers = Timers {
    greeting: Duration::from_millis(1500),
    send_stall: Duration::from_millis(1000),
    dead_peer: Duration::from_millis(15_000),
    ..Timers::DEFAULT
};

pub const VICTIM: Rid = Rid(0x0071_c717);

/// A node with two reactors on a unix socket and on loopback TCP, and a client that commits all the time.
pub struct Lab {
    pub node: Option<Node>,
    dir: tempfile::TempDir,
    pub tcp: SocketAddr,
    victim: Option<JoinHandle<()>>,
    commits: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    asked: AtomicU64,
}

impl Lab {
    pub fn new(limits: Limits) -> Lab {
        Lab::with(NodeOptions { limits, ..NodeOptions::default() })
    }

    pub fn with(options: NodeOptions) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let unix: Endpoint = format!("unix:{}/s", dir.path().display()).parse().unwrap();
        let node = Node::start(
            formatted(),
            NodeOptions {
                listen: vec![unix.clone(), "tcp:127.0.0.1:0".parse().unwrap()],
                cores: vec![None; 2],
                timers: TIMERS,
                store: OpenOptions { cache_bytes: 8 << 20, memtable_bytes: 8 << 20, ..OpenOptions::default() },
                ..options
            },
        )
        .unwrap();
        let tcp = node.up().endpoints.iter().find_map(|at| match at {
            Endpoint::Tcp(addr) => Some(*addr),
            Endpoint::Unix(_) => None,
        });
        let (commits, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let victim = std::thread::spawn({
            let (commits, stop) = (commits.clone(), stop.clone());
            move || block_on(work(unix, commits, stop))
        });
        Lab { node: Some(node), dir, tcp: tcp.unwrap(), victim: Some(victim), commits, stop, asked: AtomicU64::new(0) }
    }

    pub fn unix(&self) -> Endpoint {
        format!("unix:{}/s", self.dir.path().display()).parse().unwrap()
    }

    /// The other client makes batches durable, now.
    pub fn assert_victim_works(&self) {
        let before = self.commits.load(Ordering::Acquire);
        let start = Instant::now();
        while self.commits.load(Ordering::Acquire) < before + 3 {
            assert!(!self.victim.as_ref().unwrap().is_finished(), "the other client has failed");
            assert!(start.elapsed() < Duration::from_secs(20), "the other client stands still");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn status(&self) -> serde_json::Value {
        // One that has just left is still known for a moment.
        let rid = Rid(0x0b5e_77e4_0000 + self.asked.fetch_add(1, Ordering::AcqRel));
        let text = block_on(async {
            let options = ConnectOptions { timers: TIMERS, ..ConnectOptions::default() };
            let identity = Identity { rid, fsid: None };
            let conn = Connection::open(Address::Net(self.unix()), identity, options).await.unwrap();
            let reply = conn.call(Request::Status, None).await.unwrap();
            let Response::Status { json } = reply.body else { panic!() };
            conn.farewell().await.unwrap();
            json
        });
        serde_json::from_str(&text).unwrap()
    }

    /// Clients on all reactors that are served, without the one that asks.
    pub fn clients(&self) -> usize {
        let status = self.status();
        let reactors = status["reactors"].as_array().unwrap().iter();
        let listed = reactors.flat_map(|reactor| reactor["client_list"].as_array().unwrap());
        listed.filter(|client| client["phase"] == "serving").count() - 1
    }

    /// The attack did the other client no harm, from its beginning to its end.
    pub fn finish(mut self) {
        self.assert_victim_works();
        self.stop.store(true, Ordering::Release);
        self.victim.take().unwrap().join().expect("the other client met no error");
        self.node.take().unwrap().shutdown().unwrap();
    }
}

/// The work of the other client: any error and any lost connection is a panic.
async fn work(at: Endpoint, commits: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let client = TestClient::connect(Address::Net(at), VICTIM.0, TIMERS).await;
    let ino = Ino((9 << 56) | (1 << 10) | 5);
    client.lock(&[(ino.group(), LockMode::Write)]).await.unwrap();
    let mut size = 0;
    while !stop.load(Ordering::Acquire) {
        size += 1;
        let value = Inode { mode: 0o100644, nlink: 1, size, ..Inode::default() }.encode();
        client.commit(vec![ItemOp::Put { key: Inode::key(ino), value }]).await.unwrap();
        client.sync().await.unwrap();
        commits.fetch_add(1, Ordering::AcqRel);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.conn.attempts(), 1, "its socket was never broken");
    assert_eq!(client.invalidated.get(), 0, "its lock was never taken");
    client.conn.farewell().await.unwrap();
}

/// A socket without a session behind it: it sends what it likes.
pub struct Raw {
    pub socket: TcpStream,
    seq: u64,
}

pub fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode_head(&mut out);
    if let Some(payload) = &frame.payload {
        out.extend_from_slice(payload);
    }
    out
}

pub fn greeting(rid: Rid, term: Term) -> Frame {
    let greeting = Greeting { fsid: Fsid::default(), protocol: PROTOCOL, term, rid, flags: 0 };
    Frame::unsequenced(Body::Greeting(greeting), 0, Epoch(0))
}

impl Raw {
    pub fn connect(to: SocketAddr) -> Raw {
        let socket = TcpStream::connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Raw { socket, seq: 0 }
    }

    /// Greets as a new client; the answer.
    pub fn greet(to: SocketAddr, rid: Rid) -> (Raw, Body) {
        let mut raw = Raw::connect(to);
        raw.socket.write_all(&encoded(&greeting(rid, Term(0)))).unwrap();
        let answer = raw.receive().expect("an answer to the greeting").body;
        (raw, answer)
    }

    /// One that is up.
    pub fn up(to: SocketAddr, rid: Rid) -> Raw {
        let (raw, answer) = Raw::greet(to, rid);
        assert!(matches!(answer, Body::Greeted(_)), "{answer:?}");
        raw
    }

    /// The bytes of the next request.
    pub fn frame(&mut self, request: Request) -> Vec<u8> {
        self.seq += 1;
        let body = Body::Request(Arc::new(request));
        encoded(&Frame { id: self.seq, seq: self.seq, ack: 0, durable: Epoch(0), body, payload: None })
    }

    pub fn send(&mut self, request: Request) {
        let bytes = self.frame(request);
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next frame without its payload; none when the engine has closed the socket.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; HEADER_LEN];
        self.socket.read_exact(&mut head).ok()?;
        let header = FrameHeader::decode(&head).expect("the engine's header");
        let mut rest = vec![0; header.control_len as usize + header.payload_len as usize];
        self.socket.read_exact(&mut rest).ok()?;
        let control = Bytes::copy_from_slice(&rest[..header.control_len as usize]);
        Some(Frame::decode(&header, control, None).expect("the engine's frame"))
    }

    /// The response to the last request, past notes.
    pub fn response(&mut self) -> Response {
        loop {
            match self.receive().expect("the engine answers").body {
                Body::Response(response) => return Arc::unwrap_or_clone(response),
                Body::Note => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The engine closes this socket within the time; what it says before does not matter.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        while start.elapsed() < limit {
            match self.socket.read(&mut [0; 4096]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return true,
            }
        }
        false
    }
}

/// An authority, and keys of it.
pub struct Installation {
    _dir: tempfile::TempDir,
    authority: Authority,
}

impl Installation {
    pub fn new() -> Installation {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("authority")).unwrap();
        Installation { _dir: dir, authority }
    }

    pub fn keys(&self, subject: &str) -> Arc<Keys> {
        let valid = Duration::from_secs(86_400);
        let wish = Wish { subject: subject.parse().unwrap(), addresses: vec!["127.0.0.1".into()], valid, renew: true };
        Arc::new(Keys::load(&self.authority.issue(&wish).unwrap()).unwrap())
    }

    pub fn lab(&self) -> Lab {
        Lab::with(NodeOptions { keys: Some(self.keys("vellum:node/a")), ..NodeOptions::default() })
    }
}

pub fn with_keys(keys: Arc<Keys>) -> ConnectOptions {
    ConnectOptions { timers: TIMERS, keys: Some(keys), ..ConnectOptions::default() }
}

pub async fn open(lab: &Lab, keys: Arc<Keys>, rid: u64) -> Result<std::rc::Rc<Connection>, LinkError> {
    let address = Address::Net(Endpoint::Tcp(lab.tcp));
    Connection::open(address, Identity { rid: Rid(rid), fsid: None }, with_keys(keys)).await
}
