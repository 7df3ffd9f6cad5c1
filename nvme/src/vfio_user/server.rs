//! The controller model for clients in other processes. One client at a time; one thread answers its messages, one polls
//! the queues while a client is there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use zerocopy::IntoBytes;

use super::mapping::Mapping;
use super::socket::{Message, invalid, receive, send};
use super::wire::{
    Area, BAR0, CAP_SPARSE_MMAP, CONFIG, Command, DeviceInfo, DmaMap, DmaUnmap, FLAG_ERROR, FLAG_NO_REPLY, FLAG_REPLY,
    Header, INFO_PCI, INFO_RESET, IRQS, IrqInfo, MAJOR, MAX_ACCESS_BYTES, MINOR, REGION_CAPS, REGION_MMAP, REGION_READ,
    REGION_WRITE, REGIONS, RegionAccess, RegionInfo, SparseMmap, Version, capabilities,
};
use crate::emu::{Bus, BusFault, Controller, ControllerConfig, Subsystem};

/// Memory regions of one client.
const MAX_MAPPINGS: usize = 2048;
const DOORBELLS: u64 = 0x1000;
/// One page: 512 queue pairs.
const DOORBELL_BYTES: usize = 4096;
const BAR_BYTES: u64 = DOORBELLS + DOORBELL_BYTES as u64;
const CONFIG_BYTES: u64 = 256;
/// How often a thread that waits looks whether it should end.
const WAKE: Duration = Duration::from_millis(100);
/// Turns without a command before the poller yields its core.
const SPINS: u32 = 2_000;

pub struct ServerConfig {
    pub controller: ControllerConfig,
    /// Never yield the core: for measurements with a core for the server.
    pub spin: bool,
}

struct ClientMemory {
    address: u64,
    mapping: Mapping,
    writable: bool,
}

/// What the model sees of its client.
struct SharedBus {
    memory: RwLock<Vec<ClientMemory>>,
    doorbells: Mapping,
}

impl SharedBus {
    /// Calls `f` with the mapping that holds `len` bytes at `at`, and the offset in it.
    #[inline]
    fn with<R>(&self, at: u64, len: usize, write: bool, f: impl FnOnce(&Mapping, usize) -> R) -> Result<R, BusFault> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        for one in memory.iter() {
            let Some(offset) = at.checked_sub(one.address) else { continue };
            if offset < one.mapping.len() as u64 && one.mapping.len() as u64 - offset >= len as u64 {
                return if write && !one.writable { Err(BusFault) } else { Ok(f(&one.mapping, offset as usize)) };
            }
        }
        Err(BusFault)
    }
}

impl Bus for SharedBus {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), BusFault> {
        let done = self.with(at, out.len(), false, |mapping, offset| mapping.read(offset, out))?;
        if done { Ok(()) } else { Err(BusFault) }
    }

    fn write(&self, at: u64, data: &[u8]) -> Result<(), BusFault> {
        let done = self.with(at, data.len(), true, |mapping, offset| mapping.write(offset, data))?;
        if done { Ok(()) } else { Err(BusFault) }
    }

    fn load32(&self, at: u64) -> Result<u32, BusFault> {
        self.with(at, 4, false, |mapping, offset| mapping.load32(offset))?.ok_or(BusFault)
    }

    fn store32(&self, at: u64, value: u32) -> Result<(), BusFault> {
        let done = self.with(at, 4, true, |mapping, offset| mapping.store32(offset, value))?;
        if done { Ok(()) } else { Err(BusFault) }
    }

    #[inline]
    fn doorbell(&self, index: usize) -> u32 {
        self.doorbells.load32(4 * index).unwrap_or(0)
    }

    #[inline]
    fn set_doorbell(&self, index: usize, value: u32) {
        self.doorbells.store32(4 * index, value);
    }
}

pub struct Server {
    listener: UnixListener,
    subsystem: Arc<Subsystem>,
    config: ServerConfig,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn bind(path: &Path, subsystem: Arc<Subsystem>, config: ServerConfig) -> io::Result<Server> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Server { listener, subsystem, config, stop: Arc::default() })
    }

    /// Ends [`Server::run`] soon after it is set.
    pub fn stopper(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Serves one client after the other. A client that breaks the protocol loses its session, and nothing else happens.
    pub fn run(&self) -> io::Result<()> {
        while !self.stop.load(Ordering::Acquire) {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if let Err(err) = self.serve(socket)
                        && err.kind() != io::ErrorKind::UnexpectedEof
                    {
                        tracing::warn!(%err, "a session ended");
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(WAKE / 10),
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Serves one client over a socket that is connected already, to the end of its session, which is an error.
    pub fn serve(&self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(WAKE))?;
        socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        let (file, doorbells) = doorbell_page()?;
        let bus = SharedBus { memory: RwLock::default(), doorbells };
        let controller = Controller::new(bus, self.subsystem.clone(), self.config.controller.clone());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.poll_queues(&controller, &over));
            let mut session = Session { socket, file, controller: &controller, config: config_space(), greeted: false };
            let result = session.run(&self.stop);
            over.store(true, Ordering::Release);
            result
        })
    }

    fn poll_queues(&self, controller: &Controller<SharedBus>, over: &AtomicBool) {
        let queues = controller.config().io_queues;
        let mut idle = 0;
        while !over.load(Ordering::Relaxed) {
            let taken: usize = (0..=queues).map(|qid| controller.run_queue(qid)).sum();
            idle = if taken > 0 { 0 } else { idle + 1 };
            if idle > SPINS && !self.config.spin {
                std::thread::yield_now();
            } else if taken == 0 {
                std::hint::spin_loop();
            }
        }
    }
}

fn doorbell_page() -> io::Result<(OwnedFd, Mapping)> {
    let file = rustix::fs::memfd_create("vellum-doorbells", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, BAR_BYTES)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let mapping = Mapping::new(&file, DOORBELLS, DOORBELL_BYTES, true)?;
    Ok((file, mapping))
}

/// A type 0 header: ids, class 01.08.02, a 64-bit memory BAR.
fn config_space() -> [u8; CONFIG_BYTES as usize] {
    let mut space = [0; CONFIG_BYTES as usize];
    space[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
    space[9..12].copy_from_slice(&[0x02, 0x08, 0x01]);
    space[0x10] = 0x04;
    space
}

struct Session<'a> {
    socket: UnixStream,
    file: OwnedFd,
    controller: &'a Controller<SharedBus>,
    config: [u8; CONFIG_BYTES as usize],
    greeted: bool,
}

/// An answer's parts, and whether the doorbells' file goes with it.
struct Answer(Vec<u8>, bool);

impl Session<'_> {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        loop {
            let message = match receive(&self.socket) {
                Ok(message) => message,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && !stop.load(Ordering::Acquire) => continue,
                Err(err) => return Err(err),
            };
            let asked = message.header;
            if asked.flags.get() & 0xf != 0 {
                return Err(invalid("a reply where a command was due"));
            }
            let answer = self.answer(message);
            if asked.flags.get() & FLAG_NO_REPLY != 0 {
                continue;
            }
            let mut header =
                Header { id: asked.id, command: asked.command, flags: FLAG_REPLY.into(), ..Header::default() };
            match answer {
                Ok(Answer(body, with_file)) => {
                    let fds: &[BorrowedFd<'_>] = if with_file { &[self.file.as_fd()] } else { &[] };
                    send(&self.socket, header, &[&body], fds)?;
                }
                Err(err) if err.kind() == io::ErrorKind::InvalidData => return Err(err),
                Err(err) => {
                    header.flags = (FLAG_REPLY | FLAG_ERROR).into();
                    header.errno = (err.raw_os_error().unwrap_or(libc::EINVAL) as u32).into();
                    send(&self.socket, header, &[], &[])?;
                }
            }
        }
    }

    /// InvalidData ends the session; other errors are answered.
    fn answer(&mut self, message: Message) -> io::Result<Answer> {
        let refused = |errno| Err(io::Error::from_raw_os_error(errno));
        let Some(command) = Command::from_id(message.header.command.get()) else { return refused(libc::ENOTSUP) };
        if !self.greeted && command != Command::Version {
            return Err(invalid("a command before the version"));
        }
        let plain = |bytes: &[u8]| Ok(Answer(bytes.to_vec(), false));
        match command {
            Command::Version => {
                let (version, json) = message.parse::<Version>()?;
                if self.greeted || version.major.get() != MAJOR || json.last().is_some_and(|byte| *byte != 0) {
                    return Err(invalid("another version of the protocol"));
                }
                self.greeted = true;
                let minor = version.minor.get().min(MINOR);
                let mut body = Version { major: MAJOR.into(), minor: minor.into() }.as_bytes().to_vec();
                body.extend(capabilities());
                Ok(Answer(body, false))
            }
            Command::DmaMap => self.map(message),
            Command::DmaUnmap => self.unmap(&message),
            Command::GetInfo => plain(
                DeviceInfo {
                    argsz: (size_of::<DeviceInfo>() as u32).into(),
                    flags: (INFO_RESET | INFO_PCI).into(),
                    regions: REGIONS.into(),
                    irqs: IRQS.into(),
                }
                .as_bytes(),
            ),
            Command::GetRegionInfo => region_info(message.parse::<RegionInfo>()?.0),
            Command::GetIrqInfo => {
                let (asked, _) = message.parse::<IrqInfo>()?;
                plain(IrqInfo { count: 0.into(), flags: 0.into(), ..asked }.as_bytes())
            }
            Command::SetIrqs => refused(libc::ENOTSUP), // polled: there are no interrupts
            Command::RegionRead => self.read(&message),
            Command::RegionWrite => self.write(&message),
            Command::Reset => {
                self.controller.function_reset();
                plain(&[])
            }
        }
    }

    fn map(&self, message: Message) -> io::Result<Answer> {
        let (map, _) = message.parse::<DmaMap>()?;
        let file = message.fds.into_iter().next().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let (address, size) = (map.address.get(), map.size.get());
        let len = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let end = address.checked_add(size).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let writable = map.flags.get() & 2 != 0;
        let mut memory = self.controller.bus().memory.write().unwrap_or_else(PoisonError::into_inner);
        let overlaps = memory.iter().any(|one| one.address < end && address < one.address + one.mapping.len() as u64);
        if overlaps || memory.len() >= MAX_MAPPINGS {
            return Err(io::Error::from_raw_os_error(if overlaps { libc::EEXIST } else { libc::ENOSPC }));
        }
        let mapping = Mapping::new(&file, map.offset.get(), len, writable)?;
        memory.push(ClientMemory { address, mapping, writable });
        Ok(Answer(Vec::new(), false))
    }

    fn unmap(&self, message: &Message) -> io::Result<Answer> {
        let (unmap, _) = message.parse::<DmaUnmap>()?;
        let mut memory = self.controller.bus().memory.write().unwrap_or_else(PoisonError::into_inner);
        let same =
            |one: &ClientMemory| one.address == unmap.address.get() && one.mapping.len() as u64 == unmap.size.get();
        let index = memory.iter().position(same).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        memory.swap_remove(index);
        Ok(Answer(unmap.as_bytes().to_vec(), false))
    }

    fn read(&self, message: &Message) -> io::Result<Answer> {
        let (access, _) = message.parse::<RegionAccess>()?;
        let (at, count) = checked(&access)?;
        let mut body = access.as_bytes().to_vec();
        match access.region.get() {
            BAR0 => {
                for word in (at / 4 * 4..at + count as u64).step_by(4) {
                    body.extend(self.register(word).to_le_bytes());
                }
                body.drain(size_of::<RegionAccess>()..size_of::<RegionAccess>() + (at % 4) as usize);
                body.truncate(size_of::<RegionAccess>() + count);
            }
            _ => body.extend(&self.config[at as usize..at as usize + count]),
        }
        Ok(Answer(body, false))
    }

    fn register(&self, at: u64) -> u32 {
        match at.checked_sub(DOORBELLS) {
            Some(_) => 0, // doorbells are for writing (3.1.2)
            None => self.controller.read_register(at as u32),
        }
    }

    fn write(&mut self, message: &Message) -> io::Result<Answer> {
        let (access, data) = message.parse::<RegionAccess>()?;
        let (at, count) = checked(&access)?;
        if data.len() != count {
            return Err(invalid("a write whose data has another length"));
        }
        match access.region.get() {
            BAR0 => {
                if at % 4 != 0 || count % 4 != 0 {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                for (index, word) in data.chunks_exact(4).enumerate() {
                    let value = word.try_into().map_or(0, u32::from_le_bytes);
                    let at = at + 4 * index as u64;
                    match at.checked_sub(DOORBELLS) {
                        Some(bell) => self.controller.bus().set_doorbell(bell as usize / 4, value),
                        None => self.controller.write_register(at as u32, value),
                    }
                }
            }
            // The command register is what a driver writes; ids and BARs stay.
            _ => {
                for (index, byte) in data.iter().enumerate() {
                    let at = at as usize + index;
                    if (4..6).contains(&at) {
                        self.config[at] = *byte;
                    }
                }
            }
        }
        Ok(Answer(access.as_bytes().to_vec(), false))
    }
}

/// Offset and length of an access that is inside its region.
fn checked(access: &RegionAccess) -> io::Result<(u64, usize)> {
    let size = match access.region.get() {
        BAR0 => BAR_BYTES,
        CONFIG => CONFIG_BYTES,
        _ => 0,
    };
    let (at, count) = (access.offset.get(), access.count.get() as usize);
    let inside = at.checked_add(count as u64).is_some_and(|end| end <= size);
    if !inside || count > MAX_ACCESS_BYTES {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok((at, count))
}

fn region_info(asked: RegionInfo) -> io::Result<Answer> {
    let mut info =
        RegionInfo { argsz: (size_of::<RegionInfo>() as u32).into(), index: asked.index, ..RegionInfo::default() };
    match asked.index.get() {
        BAR0 => {
            let caps = size_of::<RegionInfo>();
            info.argsz = ((caps + size_of::<SparseMmap>() + size_of::<Area>()) as u32).into();
            info.flags = (REGION_READ | REGION_WRITE | REGION_MMAP | REGION_CAPS).into();
            info.cap_offset = (caps as u32).into();
            info.size = BAR_BYTES.into();
            let cap =
                SparseMmap { id: CAP_SPARSE_MMAP.into(), version: 1.into(), areas: 1.into(), ..SparseMmap::default() };
            let area = Area { offset: DOORBELLS.into(), size: (DOORBELL_BYTES as u64).into() };
            let parts: [&[u8]; 3] = [info.as_bytes(), cap.as_bytes(), area.as_bytes()];
            return Ok(Answer(parts.concat(), true));
        }
        CONFIG => {
            info.flags = (REGION_READ | REGION_WRITE).into();
            info.size = CONFIG_BYTES.into();
        }
        index if index < REGIONS => {}
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
    Ok(Answer(info.as_bytes().to_vec(), false))
}
