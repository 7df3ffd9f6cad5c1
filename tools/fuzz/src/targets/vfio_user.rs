//! Whole sessions of the vfio-user protocol, each side under what the other may say and with what descriptors it likes.
//!
//! An input is eight bytes that say which descriptors go with which message, and the messages. Memory that either side is
//! given is a file of pages; a page that no message of the input has shared must be as it was in the end.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vellum_nvme::Image;
use vellum_nvme::driver::Transport;
use vellum_nvme::emu::{ControllerConfig, Medium, NamespaceConfig, Subsystem};
use vellum_nvme::vfio_user::{Server, ServerConfig, VfioUserTransport};

const HEADER_BYTES: usize = 16;
/// Bytes that choose descriptors, for as many messages, then again from the first.
const CHOICES: usize = 8;
const PAGE: u64 = 4096;
/// Of the file that is shared.
const PAGES: u64 = 8;
const UNTOUCHED: u8 = 0xc5;

const NOTHING: u8 = 0;
const MEMORY: u8 = 1;

/// What a peer may have at hand to send.
struct Descriptors {
    memory: File,
    short: OwnedFd,
    null: File,
    read_only: File,
    /// Closed by all in the end, or somebody keeps what he was sent.
    pipe: OwnedFd,
}

fn sealed(len: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, len)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

impl Descriptors {
    /// And the end of the pipe that is kept.
    fn new() -> io::Result<(Descriptors, File)> {
        let memory = File::from(sealed(PAGES * PAGE)?);
        memory.write_all_at(&[UNTOUCHED; (PAGES * PAGE) as usize], 0)?;
        let (kept, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let read_only = File::open(std::env::current_exe()?)?;
        let descriptors =
            Descriptors { memory, short: sealed(PAGE / 2)?, null: File::open("/dev/null")?, read_only, pipe };
        Ok((descriptors, File::from(kept)))
    }

    fn chosen(&self, choice: u8) -> Vec<BorrowedFd<'_>> {
        match choice {
            MEMORY => vec![self.memory.as_fd()],
            2 => vec![self.pipe.as_fd()],
            3 => vec![self.short.as_fd()],
            4 => vec![self.null.as_fd()],
            5 => vec![self.read_only.as_fd()],
            6 => vec![self.memory.as_fd(), self.pipe.as_fd()],
            7 => vec![self.pipe.as_fd(); 12],
            _ => Vec::new(),
        }
    }
}

/// The messages of a stream by the lengths that they say; the last may be cut, or nonsense.
fn messages(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !stream.is_empty() {
        let said = stream.get(4..8).and_then(|len| len.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
        let len = if (HEADER_BYTES..=stream.len()).contains(&said) { said } else { stream.len() };
        let (one, rest) = stream.split_at(len);
        out.push(one);
        stream = rest;
    }
    out
}

/// The other side may have gone: then it hears no more.
fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// The peer's end with everything of the input in it, and closed for more.
fn speak(input: &[u8], descriptors: &Descriptors) -> Option<(UnixStream, UnixStream)> {
    let (choices, stream) = input.split_at_checked(CHOICES)?;
    let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
    for (message, choice) in messages(stream).into_iter().zip(choices.iter().cycle()) {
        send(&theirs, message, &descriptors.chosen(*choice));
    }
    theirs.shutdown(std::net::Shutdown::Write).expect("a socket of ours");
    Some((theirs, ours))
}

fn let_go(descriptors: Descriptors, mut kept: File) {
    drop(descriptors);
    rustix::fs::fcntl_setfl(&kept, rustix::fs::OFlags::NONBLOCK).expect("a pipe");
    let end = kept.read(&mut [0]);
    assert!(matches!(end, Ok(0)), "a descriptor that came with a message is still open: {end:?}");
}

fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(((HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn input(choices: [u8; CHOICES], messages: &[Vec<u8>]) -> Vec<u8> {
    [&choices[..], &messages.concat()].concat()
}

const VERSION_AND_TEXT: [u8; 7] = [0, 0, 1, 0, b'{', b'}', 0];

/// A word of BAR 0 is written; `region` 7 is configuration space.
fn write(id: u16, region: u32, at: u64, data: &[u8]) -> Vec<u8> {
    message(id, 10, 0, &[u64s(&[at]), u32s(&[region, data.len() as u32]), data.to_vec()].concat())
}

fn read(id: u16, region: u32, at: u64, count: u32) -> Vec<u8> {
    message(id, 9, 0, &[u64s(&[at]), u32s(&[region, count])].concat())
}

/// Page `page` of the file, at this device address.
fn map(id: u16, flags: u32, page: u64, pages: u64, address: u64) -> Vec<u8> {
    message(id, 2, 0, &[u32s(&[32, flags]), u64s(&[page * PAGE, address, pages * PAGE])].concat())
}

/// What clients say: a short one, one that asks for everything, one that brings the controller up and gives it a command.
pub fn clients() -> Vec<Vec<u8>> {
    let version = || message(1, 1, 0, &VERSION_AND_TEXT);
    let asks = vec![
        version(),
        message(2, 4, 0, &u32s(&[16, 0, 0, 0])),
        message(3, 5, 0, &[u32s(&[32, 0, 0, 0]), u64s(&[0, 0])].concat()),
        message(4, 5, 0, &[u32s(&[32, 0, 7, 0]), u64s(&[0, 0])].concat()),
        message(5, 7, 0, &u32s(&[16, 0, 0, 0])),
        read(6, 0, 0, 8),
        read(7, 7, 0, 64),
        write(8, 7, 4, &[6, 0]),
        message(9, 13, 0, &[]),
    ];
    // Queues of two entries in page 2; 0 and 1 are never shared.
    let brings_up = vec![
        version(),
        map(2, 3, 2, 4, 0x10_0000),
        write(3, 0, 0x24, &u32s(&[0x0001_0001])),
        write(4, 0, 0x28, &u64s(&[0x10_0000])),
        write(5, 0, 0x30, &u64s(&[0x10_1000])),
        write(6, 0, 0x14, &u32s(&[0x0046_0001])),
        write(7, 0, 0x1000, &u32s(&[1])),
        read(8, 0, 0x1c, 4),
        message(9, 3, 0, &[u32s(&[24, 0]), u64s(&[0x10_0000, 4 * PAGE])].concat()),
    ];
    let nobody = [NOTHING; CHOICES];
    let memory = [NOTHING, MEMORY, 0, 0, 0, 0, 0, 0];
    vec![input(nobody, &[version()]), input(nobody, &asks), input(memory, &brings_up)]
}

/// The pages that a message of the stream may have shared for writing.
fn shared(stream: &[u8]) -> Vec<std::ops::Range<u64>> {
    let word = |body: &[u8], at: usize| body.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let maps = messages(stream).into_iter().filter(|message| message.get(2..4) == Some(&[2, 0]));
    maps.filter_map(|message| {
        let body = message.get(HEADER_BYTES..)?;
        let (at, len) = (word(body, 8)?, word(body, 24)?);
        (body.get(4)? & 2 != 0).then(|| at..at.saturating_add(len))
    })
    .collect()
}

/// The server under one client. Accepted: every command had an answer without an error.
pub fn client(bytes: &[u8]) -> bool {
    let (descriptors, kept) = Descriptors::new().expect("files");
    let Some((mut theirs, ours)) = speak(bytes, &descriptors) else { return false };
    let asked = messages(&bytes[CHOICES..]);
    let dir = tempfile::tempdir().expect("a directory");
    let medium = Medium::memory(Image::zeroed(1 << 20), false);
    let subsystem =
        Subsystem::new("FUZZ", false, vec![NamespaceConfig { size_bytes: 1 << 20, lba_bytes: 512, medium }]);
    let config = ServerConfig { controller: ControllerConfig { io_queues: 2, ..Default::default() }, spin: false };
    let server = Server::bind(&dir.path().join("socket"), Arc::clone(&subsystem), config).expect("a socket");
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut answers = Vec::new();
            let _ = theirs.read_to_end(&mut answers); // a reset, when not all was read, ends it as well
            answers
        });
        assert!(server.serve(ours).is_err(), "a session ends with its socket");
        answers = reader.join().expect("the reader");
    });
    let mut in_order = asked.iter();
    let answers = messages(&answers);
    let mut good = 0;
    for answer in &answers {
        assert!(answer.len() >= HEADER_BYTES, "half a header: {answer:?}");
        assert!(in_order.any(|asked| asked.get(..4) == answer.get(..4)), "an answer to nothing: {answer:?}");
        good += usize::from(answer[8..12] == [1, 0, 0, 0]);
    }
    let shared = shared(&bytes[CHOICES..]);
    let mut pages = vec![0; (PAGES * PAGE) as usize];
    descriptors.memory.read_exact_at(&mut pages, 0).expect("a file of ours");
    for (at, byte) in (0..).zip(&pages) {
        assert!(*byte == UNTOUCHED || shared.iter().any(|range| range.contains(&at)), "byte {at} was not shared");
    }
    let_go(descriptors, kept);
    good == asked.len()
}

/// Where the doorbells begin in BAR 0.
const DOORBELLS: u64 = 0x1000;

/// What servers say to our client, which asks for version, device, BAR 0, writes the command register, then reads and
/// writes some registers. Its messages are numbered from 1.
pub fn servers() -> Vec<Vec<u8>> {
    let start = |region: Vec<u8>| {
        vec![
            message(1, 1, 1, &VERSION_AND_TEXT),
            message(2, 4, 1, &u32s(&[16, 3, 9, 5])),
            message(3, 5, 1, &region),
            message(4, 10, 1, &[u64s(&[4]), u32s(&[7, 2])].concat()),
            message(5, 9, 1, &[u64s(&[0x1c]), u32s(&[0, 4, 0x1234_5678])].concat()),
            message(6, 9, 1, &[u64s(&[0]), u32s(&[0, 8, 1, 2])].concat()),
            message(7, 10, 1, &[u64s(&[0x14]), u32s(&[0, 4])].concat()),
        ]
    };
    let plain = start([u32s(&[32, 3, 0, 0]), u64s(&[2 * PAGE, 0])].concat());
    // The whole BAR is shared, from page 1 of the file.
    let whole = start([u32s(&[32, 7, 0, 0]), u64s(&[2 * PAGE, PAGE])].concat());
    let sparse = [u32s(&[64, 15, 0, 32]), u64s(&[2 * PAGE, PAGE]), u32s(&[1 | 1 << 16, 0, 1, 0]), u64s(&[PAGE, PAGE])];
    let sparse = start(sparse.concat());
    let file = [NOTHING, NOTHING, MEMORY, 0, 0, 0, 0, 0];
    let nobody = [NOTHING; CHOICES];
    // Doorbells that are not shared are one more message.
    let bell = message(8, 10, 1, &[u64s(&[DOORBELLS + 8]), u32s(&[0, 4])].concat());
    vec![input(nobody, &[plain, vec![bell]].concat()), input(file, &whole), input(file, &sparse)]
}

/// Our client under one server. Accepted: it connects, and every register was read and written.
pub fn server(bytes: &[u8]) -> bool {
    let (descriptors, kept) = Descriptors::new().expect("files");
    let Some((theirs, ours)) = speak(bytes, &descriptors) else { return false };
    let whole = match VfioUserTransport::over(ours, "fuzz".into()) {
        Ok(transport) => {
            let said = &bytes[CHOICES + HEADER_BYTES..][..4];
            assert!(matches!(said, [0, 0, 0..=1, 0]), "another version of the protocol: {said:?}");
            let before = changed(&descriptors.memory);
            assert_eq!(before, [0; 0], "what was shared is not written before a doorbell rings");
            let read = (transport.read32(0x1c), transport.read64(0));
            transport.write32(0x14, 1);
            transport.write32(DOORBELLS as u32 + 8, 0x0102_0304);
            let by_memory = changed(&descriptors.memory);
            assert!(by_memory.is_empty() || is_word(&by_memory), "a doorbell is one word: {by_memory:?}");
            // Once the session is over, everything reads as a controller that has left.
            let alive = transport.read32(0x1c);
            assert!(alive != u32::MAX || transport.read32(0x1c) == u32::MAX);
            read == (0x1234_5678, 2 << 32 | 1)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    };
    drop(theirs);
    let_go(descriptors, kept);
    whole
}

/// Four aligned bytes.
fn is_word(at: &[u64]) -> bool {
    at.len() == 4 && at[0].is_multiple_of(4) && at.windows(2).all(|two| two[0] + 1 == two[1])
}

/// The bytes of the file that are not as they were.
fn changed(memory: &File) -> Vec<u64> {
    let mut pages = vec![0; (PAGES * PAGE) as usize];
    memory.read_exact_at(&mut pages, 0).expect("a file of ours");
    (0..).zip(&pages).filter(|(_, byte)| **byte != UNTOUCHED).map(|(at, _)| at).collect()
}
