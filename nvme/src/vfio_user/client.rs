//! The driver's side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vellum_base::dma::arena::GRANULE_BYTES;
use vellum_base::dma::{Arena, arena};
use zerocopy::{FromBytes, IntoBytes};

use super::mapping::Mapping;
use super::socket::{Message, invalid, receive, send};
use super::wire::{
    Area, BAR0, CAP_SPARSE_MMAP, CONFIG, Command, DeviceInfo, DmaMap, FLAG_ERROR, FLAG_REPLY, Header, INFO_PCI, MAJOR,
    MINOR, REGION_CAPS, REGION_MMAP, RegionAccess, RegionInfo, SparseMmap, Version, capabilities,
};
use crate::driver::{Transport, TransportError};
use crate::spec::GONE_32;

/// Device address of the arena's first byte.
const IOVA_BASE: u64 = 1 << 32;
/// How long the server may take to answer a message before it counts as gone.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the doorbells begin in BAR0; below are registers, which are messages.
const DOORBELLS: u64 = 0x1000;
/// Largest BAR that makes sense: 64 Ki queues with the widest stride are far below.
const MAX_BAR_BYTES: u64 = 64 << 20;

struct Session {
    socket: UnixStream,
    next_id: u16,
}

pub struct VfioUserTransport {
    name: String,
    session: Mutex<Session>,
    gone: AtomicBool,
    /// Doorbells shared by the server, and the offset in BAR0 where they begin.
    doorbells: Option<(Mapping, u32)>,
    arena: &'static Arena,
    mapped_bytes: AtomicUsize,
}

impl VfioUserTransport {
    /// The server must run as this user or as root.
    pub fn connect(path: &Path) -> Result<VfioUserTransport, TransportError> {
        let name = format!("vfio-user:{}", path.display());
        let socket = UnixStream::connect(path).map_err(|err| TransportError::io("connect to", &name, &err))?;
        VfioUserTransport::over(socket, name)
    }

    /// Over a socket that is connected already; the same is asked of who is at its other end.
    pub fn over(socket: UnixStream, name: String) -> Result<VfioUserTransport, TransportError> {
        let failed = |what| {
            let name = name.clone();
            move |err: io::Error| TransportError::io(what, &name, &err)
        };
        let arena = arena::activate().map_err(failed("reserve memory for"))?;
        check_peer(&socket).map_err(failed("trust"))?;
        socket.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(failed("set up"))?;
        socket.set_write_timeout(Some(REPLY_TIMEOUT)).map_err(failed("set up"))?;
        let mut session = Session { socket, next_id: 0 };
        session.handshake().map_err(failed("shake hands with"))?;
        let doorbells = session.map_doorbells().map_err(failed("map the doorbells of"))?;
        session.enable_bus_master().map_err(failed("enable DMA of"))?;
        Ok(VfioUserTransport {
            name,
            session: Mutex::new(session),
            gone: AtomicBool::new(false),
            doorbells,
            arena,
            mapped_bytes: AtomicUsize::new(0),
        })
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exchange. Any failure of the socket or the protocol ends the session for good: nothing after it can be trusted.
    fn exchange<R>(&self, f: impl FnOnce(&mut Session) -> io::Result<R>) -> Option<R> {
        if self.gone.load(Ordering::Acquire) {
            return None;
        }
        match f(&mut self.session()) {
            Ok(result) => Some(result),
            Err(err) => {
                tracing::error!(device = self.name, %err, "the controller's process is lost");
                self.gone.store(true, Ordering::Release);
                None
            }
        }
    }

    #[cold]
    fn map_more(&self) {
        let mapped = self.mapped_bytes.load(Ordering::Acquire);
        for granule in self.arena.granules().iter().filter(|granule| granule.offset_bytes >= mapped) {
            let map = DmaMap {
                argsz: (size_of::<DmaMap>() as u32).into(),
                flags: 3.into(),
                offset: 0.into(),
                address: (IOVA_BASE + granule.offset_bytes as u64).into(),
                size: (GRANULE_BYTES as u64).into(),
            };
            let done = self.exchange(|session| {
                // Another thread may have done it meanwhile: the lock of the session is the one that counts.
                if self.mapped_bytes.load(Ordering::Acquire) > granule.offset_bytes {
                    return Ok(());
                }
                session.call(Command::DmaMap, &[map.as_bytes()], &[granule.file()])?;
                self.mapped_bytes.store(granule.offset_bytes + GRANULE_BYTES, Ordering::Release);
                Ok(())
            });
            if done.is_none() {
                return;
            }
        }
    }
}

fn check_peer(socket: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?.uid;
    if peer.is_root() || peer == rustix::process::getuid() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the server runs as another user".to_owned()))
}

impl Session {
    /// Sends a command and waits for its reply.
    fn call(&mut self, command: Command, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header { id: self.next_id.into(), command: (command as u16).into(), ..Header::default() };
        send(&self.socket, header, parts, fds)?;
        let reply = receive(&self.socket)?;
        if reply.header.id != header.id || reply.header.command != header.command {
            return Err(invalid("a reply to something else"));
        }
        if reply.header.flags.get() & 0xf != FLAG_REPLY {
            return Err(invalid("a command where a reply was due"));
        }
        if reply.header.flags.get() & FLAG_ERROR != 0 {
            let errno = i32::try_from(reply.header.errno.get()).unwrap_or(libc::EIO);
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(reply)
    }

    fn handshake(&mut self) -> io::Result<()> {
        let version = Version { major: MAJOR.into(), minor: MINOR.into() };
        let reply = self.call(Command::Version, &[version.as_bytes(), &capabilities()], &[])?;
        let (version, _) = reply.parse::<Version>()?;
        if version.major.get() != MAJOR || version.minor.get() > MINOR {
            return Err(invalid("the server speaks another version of the protocol"));
        }
        let asked = DeviceInfo { argsz: (size_of::<DeviceInfo>() as u32).into(), ..DeviceInfo::default() };
        let (info, _) = self.call(Command::GetInfo, &[asked.as_bytes()], &[])?.parse::<DeviceInfo>()?;
        if info.flags.get() & INFO_PCI == 0 || info.regions.get() <= CONFIG {
            return Err(invalid("what it serves is no PCI function"));
        }
        Ok(())
    }

    /// None: doorbells are messages.
    fn map_doorbells(&mut self) -> io::Result<Option<(Mapping, u32)>> {
        let asked = RegionInfo { argsz: 4096.into(), index: BAR0.into(), ..RegionInfo::default() };
        let reply = self.call(Command::GetRegionInfo, &[asked.as_bytes()], &[])?;
        let (info, _) = reply.parse::<RegionInfo>()?;
        let size = info.size.get();
        if info.index.get() != BAR0 || size <= DOORBELLS || size > MAX_BAR_BYTES {
            return Err(invalid("its BAR 0 is not that of an NVMe controller"));
        }
        let Some(file) = reply.fds.first().filter(|_| info.flags.get() & REGION_MMAP != 0) else { return Ok(None) };
        let area = if info.flags.get() & REGION_CAPS != 0 {
            let offset = info.cap_offset.get() as usize;
            match doorbell_area(reply.body.get(offset..).unwrap_or_default()) {
                Some(area) => area,
                None => return Ok(None),
            }
        } else {
            Area { offset: 0.into(), size: size.into() }
        };
        let (start, len) = (area.offset.get(), area.size.get());
        if start.checked_add(len).is_none_or(|end| end > size) || start > DOORBELLS {
            return Err(invalid("it shares an area outside of its BAR 0"));
        }
        let at = info.offset.get().checked_add(start).ok_or_else(|| invalid("an area at no place"))?;
        let mapping = Mapping::new(file.as_fd(), at, len as usize, true)?;
        Ok(Some((mapping, start as u32)))
    }

    fn enable_bus_master(&mut self) -> io::Result<()> {
        // Command register: memory space, bus master.
        self.write(CONFIG, 4, &6u16.to_le_bytes())
    }

    fn read(&mut self, region: u32, at: u64, out: &mut [u8]) -> io::Result<()> {
        let access = RegionAccess { offset: at.into(), region: region.into(), count: (out.len() as u32).into() };
        let reply = self.call(Command::RegionRead, &[access.as_bytes()], &[])?;
        let (said, data) = reply.parse::<RegionAccess>()?;
        if said.count.get() as usize != out.len() || data.len() != out.len() {
            return Err(invalid("a read of another length"));
        }
        out.copy_from_slice(data);
        Ok(())
    }

    fn write(&mut self, region: u32, at: u64, data: &[u8]) -> io::Result<()> {
        let access = RegionAccess { offset: at.into(), region: region.into(), count: (data.len() as u32).into() };
        let reply = self.call(Command::RegionWrite, &[access.as_bytes(), data], &[])?;
        let (said, _) = reply.parse::<RegionAccess>()?;
        if said.count.get() as usize != data.len() { Err(invalid("a write of another length")) } else { Ok(()) }
    }
}

/// The area of a sparse mapping that holds the doorbells, among the capabilities' bytes.
fn doorbell_area(caps: &[u8]) -> Option<Area> {
    let (cap, rest) = SparseMmap::read_from_prefix(caps).ok()?;
    if cap.id.get() != CAP_SPARSE_MMAP {
        return None;
    }
    let areas = rest.chunks_exact(size_of::<Area>()).take(cap.areas.get() as usize);
    areas
        .filter_map(|bytes| Area::read_from_bytes(bytes).ok())
        .find(|area| area.offset.get() <= DOORBELLS && area.offset.get().saturating_add(area.size.get()) > DOORBELLS)
}

impl Transport for VfioUserTransport {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reached_by(&self) -> String {
        let doorbells = if self.doorbells.is_some() { "mapped doorbells" } else { "a message for each doorbell" };
        format!("vfio-user, with {doorbells}")
    }

    fn read32(&self, at: u32) -> u32 {
        let mut bytes = [0; 4];
        let read = self.exchange(|session| session.read(BAR0, u64::from(at), &mut bytes));
        if read.is_some() { u32::from_le_bytes(bytes) } else { GONE_32 }
    }

    #[inline]
    fn write32(&self, at: u32, value: u32) {
        if let Some((mapping, start)) = &self.doorbells
            && u64::from(at) >= DOORBELLS
            && mapping.store32((at - start) as usize, value.to_le())
        {
            return;
        }
        self.exchange(|session| session.write(BAR0, u64::from(at), &value.to_le_bytes()));
    }

    /// Registers of 64 bits are accessed whole: a server may refuse halves.
    fn read64(&self, at: u32) -> u64 {
        let mut bytes = [0; 8];
        let read = self.exchange(|session| session.read(BAR0, u64::from(at), &mut bytes));
        if read.is_some() { u64::from_le_bytes(bytes) } else { u64::MAX }
    }

    fn write64(&self, at: u32, value: u64) {
        self.exchange(|session| session.write(BAR0, u64::from(at), &value.to_le_bytes()));
    }

    #[inline]
    fn address_of(&self, arena_offset: usize, len: usize) -> Option<u64> {
        let end = arena_offset.checked_add(len)?;
        if end > self.mapped_bytes.load(Ordering::Acquire) {
            self.map_more();
            if end > self.mapped_bytes.load(Ordering::Acquire) {
                return None;
            }
        }
        Some(IOVA_BASE + arena_offset as u64)
    }

    fn reset(&self) -> Result<(), TransportError> {
        let done = self.exchange(|session| session.call(Command::Reset, &[], &[]).map(|_| ()));
        done.ok_or_else(|| TransportError::refused(&self.name, "its process does not answer"))
    }
}
