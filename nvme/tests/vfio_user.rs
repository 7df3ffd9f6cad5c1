//! The vfio-user client and server against each other, and each against a peer that breaks the protocol.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::*;
use vellum_base::DmaBuf;
use vellum_base::prng::Prng;
use vellum_nvme::emu::{ControllerConfig, Subsystem};
use vellum_nvme::testing::block_on;
use vellum_nvme::vfio_user::{Server, ServerConfig, VfioUserTransport};
use vellum_nvme::{Device, OpenMode, open, open_controller};

struct Running {
    path: PathBuf,
    subsystem: Arc<Subsystem>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(config: ControllerConfig) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("controller.sock");
        let subsystem = subsystem(vec![namespace(4096, false)], false);
        let config = ServerConfig { controller: config, spin: false };
        let server = Server::bind(&path, subsystem.clone(), config).unwrap();
        let stop = server.stopper();
        let thread = std::thread::spawn(move || server.run().unwrap());
        Running { path, subsystem, stop, thread: Some(thread), _dir: dir }
    }

    fn open(&self) -> Arc<dyn Device> {
        open(&format!("vfio-user:{}/1", self.path.display()), OpenMode::default()).unwrap()
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn block(byte: u8) -> vellum_base::DmaSlice {
    DmaBuf::copy_from(&[byte; 4096], true).freeze()
}

#[test]
fn a_device_in_another_thread_reads_what_was_written() {
    for doorbell_buffers in [false, true] {
        let server = Running::start(ControllerConfig { doorbell_buffers, ..ControllerConfig::default() });
        let device = server.open();
        assert_eq!(device.geometry().lba_bytes, 4096);
        let queue = device.open_queue(16).unwrap();
        let writes: Vec<_> = (0..64u64).map(|i| queue.write(i * 4096, block(i as u8), false)).collect();
        writes.into_iter().for_each(|write| block_on(&queue, write).unwrap());
        let read = block_on(&queue, queue.read(0, DmaBuf::new(64 * 4096))).unwrap();
        assert!((0..64).all(|i| read[i * 4096..][..4096].iter().all(|b| *b == i as u8)));
        let image = server.subsystem.namespace(1).unwrap().medium.image().unwrap().to_vec();
        assert!(image[..64 * 4096] == read[..]);
        drop(queue);
        drop(device);
        // The next client finds what the first has left.
        let device = server.open();
        let queue = device.open_queue(1).unwrap();
        assert_eq!(block_on(&queue, queue.read(63 * 4096, DmaBuf::new(4096))).unwrap()[0], 63);
    }
}

#[test]
fn a_controller_is_described_over_the_socket() {
    let server = Running::start(ControllerConfig::default());
    let (controller, nsid) = open_controller(&format!("vfio-user:{}", server.path.display())).unwrap().unwrap();
    assert_eq!((controller.info().serial.as_str(), nsid), ("TEST0", None));
    assert_eq!(controller.namespace_ids().unwrap(), [1]);
}

#[test]
fn a_server_that_dies_fails_the_device() {
    let mut server = Running::start(ControllerConfig::default());
    let device = server.open();
    let queue = device.open_queue(4).unwrap();
    block_on(&queue, queue.write(0, block(1), false)).unwrap();
    let read = queue.read(0, DmaBuf::new(4096));
    queue.process_completions();
    server.stop();
    let _ = block_on(&queue, read); // answered, or lost
    let err = block_on(&queue, queue.read(0, DmaBuf::new(4096))).unwrap_err();
    assert!(err.is_failed() && err.to_string().contains("process has ended"), "{err}");
}

fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend((16 + body.len() as u32).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn connect(path: &Path) -> UnixStream {
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn reply(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut head = [0; 16];
    socket.read_exact(&mut head).ok()?;
    let size = u32::from_le_bytes(head[4..8].try_into().unwrap()) as usize;
    let mut body = vec![0; size - 16];
    socket.read_exact(&mut body).ok()?;
    Some([&head[..], &body].concat())
}

const VERSION: [u8; 4] = [0, 0, 1, 0];

#[test]
fn a_client_that_breaks_the_protocol_loses_its_session_only() {
    let server = Running::start(ControllerConfig::default());
    let hostile: [Vec<u8>; 6] = [
        message(1, 4, 0, &[0; 16]),                                              // no version first
        message(1, 1, 0, &[7, 0, 0, 0]),                                         // another major version
        message(1, 1, 1, &VERSION),                                              // a reply
        message(1, 1, 0, &[0]),                                                  // too short
        vec![0xff; 64],                                                          // a length of 4 GiB
        [&message(1, 1, 0, &VERSION)[..8], &[15, 0, 0, 0, 0, 0, 0, 0]].concat(), // shorter than its header
    ];
    for bytes in hostile {
        let mut socket = connect(&server.path);
        socket.write_all(&bytes).unwrap();
        drop(socket.shutdown(std::net::Shutdown::Write));
        assert!(reply(&mut socket).is_none(), "{bytes:?} is not answered");
    }
    let device = server.open();
    let queue = device.open_queue(1).unwrap();
    block_on(&queue, queue.write(0, block(1), false)).unwrap();
}

#[test]
fn what_a_client_may_not_have_is_refused() {
    let server = Running::start(ControllerConfig::default());
    let mut socket = connect(&server.path);
    socket.write_all(&message(1, 1, 0, &VERSION)).unwrap();
    assert!(reply(&mut socket).is_some());
    let access = |offset: u64, region: u32, count: u32| {
        [&offset.to_le_bytes()[..], &region.to_le_bytes(), &count.to_le_bytes()].concat()
    };
    let bad: [(u16, Vec<u8>); 7] = [
        (9, access(0x2000, 0, 4)), // behind the BAR
        (9, access(u64::MAX - 1, 0, 4)),
        (9, access(0, 0, 1 << 20)), // too long
        (9, access(0, 3, 4)),       // no such region
        (9, access(255, 7, 2)),     // behind the configuration space
        (2, vec![0; 32]),           // memory without a file
        (99, vec![]),
    ];
    for (command, body) in bad {
        socket.write_all(&message(2, command, 0, &body)).unwrap();
        let answer = reply(&mut socket).expect("an answer");
        let flags = u32::from_le_bytes(answer[8..12].try_into().unwrap());
        assert_eq!(flags, 1 | 1 << 5, "command {command} {body:?} is an error");
    }
    // A read that crosses registers at an odd offset is cut right.
    socket.write_all(&message(3, 9, 0, &access(9, 0, 2))).unwrap();
    assert_eq!(reply(&mut socket).unwrap()[32..], [4, 1], "bytes 1 and 2 of the version 1.4.0");
}

#[test]
fn random_messages_do_not_harm_the_server() {
    let server = Running::start(ControllerConfig::default());
    for seed in 0..40u64 {
        let mut prng = Prng::new(seed);
        let mut socket = connect(&server.path);
        let mut bytes = message(0, 1, 0, &VERSION);
        for _ in 0..20 {
            let mut body = vec![0; prng.below(64) as usize];
            prng.fill(&mut body);
            if prng.one_in(2) {
                body.iter_mut().skip(2).for_each(|byte| *byte &= 0x07);
            }
            bytes.extend(message(1, prng.below(16) as u16, 0, &body));
        }
        drop(socket.write_all(&bytes));
        drop(socket.shutdown(std::net::Shutdown::Write));
        while reply(&mut socket).is_some() {}
    }
    drop(server.open());
}

/// A server that answers the handshake by `answer`.
fn fake_server(answer: impl Fn(u16, &[u8]) -> Vec<u8> + Send + 'static) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let Ok((mut socket, _)) = listener.accept() else { return };
        while let Some(asked) = reply(&mut socket) {
            let command = u16::from_le_bytes([asked[2], asked[3]]);
            if socket.write_all(&answer(command, &asked)).is_err() {
                return;
            }
        }
    });
    (dir, path)
}

/// What a good server would say, up to the regions.
fn good(command: u16, asked: &[u8]) -> Vec<u8> {
    let id = u16::from_le_bytes([asked[0], asked[1]]);
    let body = match command {
        1 => [&VERSION[..], b"{}\0"].concat(),
        4 => [32u32, 3, 9, 5].iter().flat_map(|word| word.to_le_bytes()).collect(),
        5 => {
            let mut info = vec![0; 32];
            info[16..24].copy_from_slice(&0x2000u64.to_le_bytes());
            info
        }
        _ => asked[16..].to_vec(),
    };
    message(id, command, 1, &body)
}

#[test]
fn a_server_that_lies_in_the_handshake_is_refused() {
    type Lie = fn(u16, &[u8]) -> Vec<u8>;
    let lies: [(&str, Lie); 8] = [
        ("another version", |command, asked| {
            let mut bytes = good(command, asked);
            if command == 1 {
                bytes[16] = 9;
            }
            bytes
        }),
        ("something else", |command, asked| message(77, command, 1, &good(command, asked)[16..])),
        ("a command where", |command, asked| {
            let mut bytes = good(command, asked);
            bytes[8] = 0;
            bytes
        }),
        ("too short", |command, _| message(1, command, 1, &[])),
        ("impossible length", |_, _| vec![0xff; 32]),
        ("no PCI function", |command, asked| {
            let mut bytes = good(command, asked);
            if command == 4 {
                bytes[20] = 1;
            }
            bytes
        }),
        ("BAR 0", |command, asked| {
            let mut bytes = good(command, asked);
            if command == 5 {
                bytes[16 + 16..16 + 24].copy_from_slice(&u64::MAX.to_le_bytes());
            }
            bytes
        }),
        ("Permission denied", |command, asked| {
            let mut bytes = good(command, asked);
            bytes[8] |= 1 << 5;
            bytes[12] = 13;
            bytes
        }),
    ];
    for (word, lie) in lies {
        let (_dir, path) = fake_server(lie);
        let err = VfioUserTransport::connect(&path).err().expect("refused").to_string();
        assert!(err.contains(word), "{word}: {err}");
    }
}

#[test]
fn a_server_whose_registers_are_random_is_no_controller() {
    for seed in 0..20u64 {
        let (_dir, path) = fake_server(move |command, asked| {
            let mut bytes = good(command, asked);
            if command == 9 {
                let count = u32::from_le_bytes(asked[28..32].try_into().unwrap()) as usize;
                let mut data = vec![0; count];
                Prng::new(seed ^ u64::from(asked[0])).fill(&mut data);
                bytes = message(u16::from_le_bytes([asked[0], asked[1]]), 9, 1, &[&asked[16..], &data].concat());
            }
            bytes
        });
        let Ok(transport) = VfioUserTransport::connect(&path) else { continue };
        let options = vellum_nvme::driver::Options { admin_timeout_ms: 50, ..options() };
        assert!(vellum_nvme::driver::Controller::open(transport, options).is_err());
    }
}
