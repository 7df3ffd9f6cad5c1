//! Controller properties in BAR0 (3.1.3) and the doorbells behind them (NVMe over PCIe Transport 1.0c, 3.1.2).

/// The memory page size that this project uses (CC.MPS = 0).
pub const PAGE_BYTES: usize = 4096;
/// What a read gives when the function has left the bus.
pub const GONE_32: u32 = u32::MAX;
/// Where the doorbells begin.
const DOORBELLS: u32 = 0x1000;

/// Offsets in BAR0 (3.1.3, figure 35).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Register {
    /// CAP, 64 bits (3.1.3.1).
    Cap = 0x00,
    /// VS (3.1.3.2).
    Vs = 0x08,
    /// INTMS (3.1.3.3).
    InterruptMaskSet = 0x0c,
    /// INTMC (3.1.3.4).
    InterruptMaskClear = 0x10,
    /// CC (3.1.3.5).
    Cc = 0x14,
    /// CSTS (3.1.3.6).
    Csts = 0x1c,
    /// NSSR (3.1.3.7).
    SubsystemReset = 0x20,
    /// AQA (3.1.3.8).
    Aqa = 0x24,
    /// ASQ, 64 bits (3.1.3.9).
    Asq = 0x28,
    /// ACQ, 64 bits (3.1.3.10).
    Acq = 0x30,
}

/// Offset of a queue's doorbell: the tail of submission queue `qid`, or the head of its completion queue.
pub fn doorbell_offset(qid: u16, completion: bool, stride_shift: u32) -> u32 {
    DOORBELLS + ((2 * u32::from(qid) + u32::from(completion)) << (2 + stride_shift))
}

/// CAP (3.1.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// MQES: entries that one queue may have (the field is zero-based).
    pub fn max_queue_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// CQR: queues must be physically contiguous.
    pub fn contiguous_queues(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// TO: the longest that CSTS.RDY may take to follow CC.EN; at least half a second.
    pub fn ready_timeout_ms(self) -> u64 {
        ((self.0 >> 24 & 0xff) * 500).max(500)
    }

    /// DSTRD: doorbells are 4 << this bytes apart.
    pub fn doorbell_stride_shift(self) -> u32 {
        (self.0 >> 32 & 0xf) as u32
    }

    /// CSS bit 0: the NVM command set.
    pub fn has_nvm_commands(self) -> bool {
        self.0 & 1 << 37 != 0
    }

    /// MPSMIN: the smallest memory page, in bytes.
    pub fn min_page_bytes(self) -> u64 {
        4096 << (self.0 >> 48 & 0xf)
    }

    pub fn new(max_queue_entries: u32, ready_timeout_ms: u64, stride_shift: u32) -> Capabilities {
        let entries = u64::from(max_queue_entries.clamp(2, 1 << 16) - 1);
        let timeout = (ready_timeout_ms / 500).clamp(1, 255);
        Capabilities(entries | 1 << 16 | timeout << 24 | u64::from(stride_shift & 0xf) << 32 | 1 << 37)
    }
}

/// VS (3.1.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(pub u32);

impl Version {
    pub const V1_4: Version = Version(0x0001_0400);
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 >> 8 & 0xff)
    }
}

/// CC (3.1.3.5).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Configuration(pub u32);

impl Configuration {
    const ENABLE: u32 = 1;
    /// SHN 01b: normal shutdown notification.
    const SHUTDOWN_NORMAL: u32 = 1 << 14;

    /// Enabled, NVM command set, 4 KiB pages, round robin, entries of the sizes that every controller has.
    pub fn enabled() -> Configuration {
        Configuration(Self::ENABLE | super::SUBMISSION_SHIFT << 16 | super::COMPLETION_SHIFT << 20)
    }

    pub fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    pub fn disabled(self) -> Configuration {
        Configuration(self.0 & !Self::ENABLE)
    }

    pub fn with_shutdown(self) -> Configuration {
        Configuration(self.0 | Self::SHUTDOWN_NORMAL)
    }

    /// SHN.
    pub fn shutdown_asked(self) -> bool {
        self.0 >> 14 & 3 != 0
    }

    /// MPS, as a shift over 4 KiB.
    pub fn page_shift(self) -> u32 {
        self.0 >> 7 & 0xf
    }

    /// IOSQES and IOCQES.
    pub fn entry_shifts(self) -> (u32, u32) {
        (self.0 >> 16 & 0xf, self.0 >> 20 & 0xf)
    }
}

/// CSTS (3.1.3.6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// RDY.
    pub const READY: ControllerStatus = ControllerStatus(1);
    /// CFS.
    pub const FATAL: ControllerStatus = ControllerStatus(2);
    /// SHST 10b.
    pub const SHUTDOWN_DONE: ControllerStatus = ControllerStatus(2 << 2);

    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// The controller has met an error that only a reset ends.
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }

    /// Nobody answers at this address any more.
    pub fn is_gone(self) -> bool {
        self.0 == GONE_32
    }
}

/// AQA (3.1.3.8): sizes of the admin queues; the fields are zero-based.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AdminQueueAttributes(pub u32);

impl AdminQueueAttributes {
    pub fn new(submission_entries: u16, completion_entries: u16) -> AdminQueueAttributes {
        let zero_based = |entries: u16| u32::from(entries.saturating_sub(1)) & 0xfff;
        AdminQueueAttributes(zero_based(submission_entries) | zero_based(completion_entries) << 16)
    }

    pub fn submission_entries(self) -> u32 {
        (self.0 & 0xfff) + 1
    }

    pub fn completion_entries(self) -> u32 {
        (self.0 >> 16 & 0xfff) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_known_controller_are_read() {
        // QEMU's model, as a guest sees it.
        let cap = Capabilities(0x0040_1820_0f01_07ff);
        assert_eq!(cap.max_queue_entries(), 2048);
        assert!(cap.contiguous_queues() && cap.has_nvm_commands());
        assert_eq!((cap.ready_timeout_ms(), cap.doorbell_stride_shift(), cap.min_page_bytes()), (7500, 0, 4096));
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(doorbell_offset(0, false, 0), 0x1000);
        assert_eq!(doorbell_offset(0, true, 0), 0x1004);
        assert_eq!(doorbell_offset(3, true, 2), 0x1000 + 7 * 16);
    }
}
