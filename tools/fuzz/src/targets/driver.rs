//! Our driver over a controller whose answers come from the input: registers, identities, logs, completions.
//!
//! An input is four bytes that choose the controller, and lies of eight bytes each. A lie waits for some answers of its
//! kind and changes four bytes of the next one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vellum_base::DmaBuf;
use vellum_nvme::driver::{self, NvmeDevice, Transport, TransportError};
use vellum_nvme::emu::{
    Bus, BusFault, Controller, ControllerConfig, EmuTransport, Medium, NamespaceConfig, ProcessBus, Subsystem,
};
use vellum_nvme::testing::{block_on, options};
use vellum_nvme::{Device, Image};

const SIZE_BYTES: u64 = 1 << 20;
const CHOICES: usize = 4;
const LIE_BYTES: usize = 8;
/// Lies of one input at most.
const MAX_LIES: usize = 16;
/// True answers before a lie, at most: fewer than there are of any kind.
const MAX_TRUE: u8 = 16;
/// An answer that says more than a completion: an identity, a log page.
const STRUCTURE_BYTES: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// What an admin command puts into memory.
    Structure,
    /// The first words of a completion.
    Completion,
    /// Its last: the command's number, status and phase.
    CompletionEnd,
    Register,
}

#[derive(Clone, Copy)]
struct Lie {
    of: Answer,
    /// Answers of the kind that are true first.
    after: u8,
    at: u16,
    value: u32,
    /// Laid over what was said; else in its place.
    flips: bool,
}

impl Lie {
    fn read(bytes: &[u8]) -> Option<Lie> {
        let &[kind, after, low, high, a, b, c, d] = bytes else { return None };
        let of = [Answer::Structure, Answer::Completion, Answer::CompletionEnd, Answer::Register][kind as usize % 4];
        let (at, value) = (u16::from_le_bytes([low, high]), u32::from_le_bytes([a, b, c, d]));
        Some(Lie { of, after: after % MAX_TRUE, at, value, flips: kind & 0x80 != 0 })
    }

    fn tell(&self, said: &mut [u8]) {
        let at = usize::from(self.at) % said.len().max(1);
        for (to, from) in said[at..].iter_mut().zip(self.value.to_le_bytes()) {
            *to = if self.flips { *to ^ from } else { from };
        }
    }
}

struct Lies(Mutex<Vec<Lie>>);

impl Lies {
    /// Changes what is said when the time of a lie has come.
    fn about(&self, of: Answer, said: &mut [u8]) {
        let mut lies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = lies.iter().position(|lie| lie.of == of) {
            match lies[index].after {
                0 => lies.remove(index).tell(said),
                after => lies[index].after = after - 1,
            }
        }
    }

    fn word(&self, of: Answer, said: u32) -> u32 {
        let mut bytes = said.to_le_bytes();
        self.about(of, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// Memory between the model and the driver.
struct LyingBus {
    bus: ProcessBus,
    lies: Arc<Lies>,
    /// The admin queue is at work: what is written is an answer and nobody's data.
    admin: Arc<AtomicBool>,
}

impl Bus for LyingBus {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), BusFault> {
        self.bus.read(at, out)
    }

    fn write(&self, at: u64, data: &[u8]) -> Result<(), BusFault> {
        let mut said = data.to_vec();
        if data.len() < STRUCTURE_BYTES {
            self.lies.about(Answer::Completion, &mut said);
        } else if self.admin.load(Ordering::Relaxed) {
            self.lies.about(Answer::Structure, &mut said);
        }
        self.bus.write(at, &said)
    }

    fn load32(&self, at: u64) -> Result<u32, BusFault> {
        self.bus.load32(at)
    }

    fn store32(&self, at: u64, value: u32) -> Result<(), BusFault> {
        self.bus.store32(at, self.lies.word(Answer::CompletionEnd, value))
    }

    fn doorbell(&self, index: usize) -> u32 {
        self.bus.doorbell(index)
    }

    fn set_doorbell(&self, index: usize, value: u32) {
        self.bus.set_doorbell(index, value);
    }
}

struct LyingTransport {
    model: Arc<Controller<LyingBus>>,
    lies: Arc<Lies>,
    admin: Arc<AtomicBool>,
}

impl Transport for LyingTransport {
    fn name(&self) -> String {
        "fuzz".into()
    }

    fn reached_by(&self) -> String {
        "calls".into()
    }

    fn read32(&self, at: u32) -> u32 {
        self.lies.word(Answer::Register, self.model.read_register(at))
    }

    fn write32(&self, at: u32, value: u32) {
        match at.checked_sub(EmuTransport::DOORBELLS) {
            Some(bell) => self.model.bus().set_doorbell(bell as usize / 4, value),
            None => self.model.write_register(at, value),
        }
    }

    fn address_of(&self, arena_offset: usize, _len: usize) -> Option<u64> {
        Some(ProcessBus::DEVICE_BASE + arena_offset as u64)
    }

    fn turn(&self, qid: u16) {
        self.admin.store(qid == 0, Ordering::Relaxed);
        self.model.run_queue(qid);
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.model.function_reset();
        Ok(())
    }
}

pub fn controllers() -> Vec<Vec<u8>> {
    let honest = vec![0; CHOICES];
    // An identity with another transfer size, a number of a command that nobody gave, a status, a register.
    let lie = |kind: u8, after: u8, at: u16, value: u32| {
        [&[kind, after][..], &at.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let harmless = [vec![1, 1, 3, 1], lie(0, 0, 4095, 0), lie(0x81, 3, 0, 0), lie(0x83, 2, 0, 0)].concat();
    vec![honest, vec![1, 1, 1, 1], harmless]
}

/// Accepted: it opens and everything succeeds.
pub fn controller(bytes: &[u8]) -> bool {
    let Some((choices, lies)) = bytes.split_at_checked(CHOICES) else { return false };
    let lies = lies.chunks_exact(LIE_BYTES).take(MAX_LIES).filter_map(Lie::read).collect();
    let (lies, admin) = (Arc::new(Lies(Mutex::new(lies))), Arc::new(AtomicBool::new(false)));
    let (lba_bytes, cached) = (if choices[0] & 1 == 0 { 512 } else { 4096 }, choices[1] & 1 != 0);
    let config = ControllerConfig {
        io_queues: 2,
        mdts: choices[2] % 4,
        sgl: choices[3] & 1 != 0,
        doorbell_buffers: choices[3] & 2 != 0,
        ready_after_reads: u32::from(choices[1] >> 6),
        ..ControllerConfig::default()
    };
    let medium = Medium::memory(Image::zeroed(SIZE_BYTES), cached);
    let subsystem = Subsystem::new("FUZZ", cached, vec![NamespaceConfig { size_bytes: SIZE_BYTES, lba_bytes, medium }]);
    let bus = ProcessBus::new(config.io_queues).expect("memory");
    let bus = LyingBus { bus, lies: lies.clone(), admin: admin.clone() };
    let model = Controller::new(bus, subsystem, config);
    // Around all that the driver lends.
    let canaries: Vec<DmaBuf> = (0..8).map(|_| DmaBuf::copy_from(&[0xc5; 4096], true)).collect();
    let works = use_it(LyingTransport { model, lies, admin }, lba_bytes).is_some();
    assert!(canaries.iter().all(|buf| buf.iter().all(|byte| *byte == 0xc5)), "memory that was not lent was written");
    works
}

/// None: something failed, and said so. Some: what succeeded is true.
fn use_it(transport: LyingTransport, lba_bytes: u32) -> Option<()> {
    let driver = driver::Controller::open(transport, options()).ok()?;
    let told = driver.smart().is_ok() & driver.error_log().is_ok();
    let device = NvmeDevice::open(driver, None, false).ok()?;
    let geometry = device.geometry().clone();
    assert!(geometry.size_bytes.is_multiple_of(4096) && geometry.max_transfer_bytes >= 4096, "{geometry:?}");
    assert!(matches!(geometry.lba_bytes, 512 | 4096), "{geometry:?}");
    // Of a namespace of another shape nothing is known.
    let true_shape = geometry.size_bytes <= SIZE_BYTES && geometry.lba_bytes == lba_bytes;
    let queue = device.open_queue(4).ok()?;
    let data = |byte: u8| {
        let bytes: Vec<u8> = (0..3 * 4096).map(|at| byte ^ (at / 512) as u8).collect();
        DmaBuf::copy_from(&bytes, true)
    };
    let mut all = told;
    for round in 0..4u8 {
        let at = u64::from(round) * 4096;
        let written = block_on(&queue, queue.write(at, data(round).freeze(), round % 2 == 0));
        let read = block_on(&queue, queue.read(at, DmaBuf::new(3 * 4096)));
        if let (Ok(()), Ok(read), true) = (&written, &read, true_shape) {
            assert!(read[..] == data(round)[..], "what was written and read with success is something else");
        }
        all &= written.is_ok() & read.is_ok();
    }
    all &= block_on(&queue, queue.flush()).is_ok();
    let beyond = block_on(&queue, queue.read(geometry.size_bytes, DmaBuf::new(4096)));
    assert!(beyond.is_err(), "a read behind the end of the device");
    all.then_some(())
}
