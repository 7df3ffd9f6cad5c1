//! Features (5.27.1) and asynchronous events (5.2.1).

/// Feature identifiers (figure 316 and NVM 4.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Feature {
    /// Temperature Threshold (5.27.1.3).
    TemperatureThreshold = 0x04,
    /// Volatile Write Cache (NVM 4.1.3.4 and 5.27.1.4): bit 0 enables it.
    VolatileWriteCache = 0x06,
    /// Number of Queues (5.27.1.5): zero-based counts, submission in 15:0, completion in 31:16.
    NumberOfQueues = 0x07,
    /// Asynchronous Event Configuration (5.27.1.8).
    AsyncEventConfiguration = 0x0b,
    /// Host Identifier (5.27.1.25): bit 0 says that it has 128 bits; it is the command's data. Gone after a reset.
    HostIdentifier = 0x81,
}

impl Feature {
    pub fn from_id(id: u32) -> Option<Feature> {
        [
            Feature::TemperatureThreshold,
            Feature::VolatileWriteCache,
            Feature::NumberOfQueues,
            Feature::AsyncEventConfiguration,
            Feature::HostIdentifier,
        ]
        .into_iter()
        .find(|feature| *feature as u32 == id)
    }
}

/// What an Asynchronous Event Request completed with (5.2.1, figure 146).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsyncEvent(pub u32);

impl AsyncEvent {
    /// SMART / health: the critical warnings (5.27.1.8, bits 7:0) and namespace attribute notices (bit 8).
    pub const WANTED: u32 = 0x1f | 1 << 8;

    pub fn new(kind: u8, info: u8, log_page: u8) -> AsyncEvent {
        AsyncEvent(u32::from(kind & 7) | u32::from(info) << 8 | u32::from(log_page) << 16)
    }

    /// Type: 0 error, 1 health, 2 notice.
    pub fn kind(self) -> u8 {
        (self.0 & 7) as u8
    }

    pub fn info(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The log page that tells more; reading it allows the next event of this kind.
    pub fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Notice 00h: the attached namespaces or their attributes have changed.
    pub fn is_namespace_change(self) -> bool {
        self.kind() == 2 && self.info() == 0
    }

    pub fn describe(self) -> &'static str {
        match (self.kind(), self.info()) {
            (0, 0) => "write to an invalid doorbell register",
            (0, 1) => "invalid doorbell write value",
            (0, 2) => "diagnostic failure",
            (0, 3) => "persistent internal error",
            (0, 4) => "transient internal error",
            (1, 0) => "the NVM subsystem's reliability is degraded",
            (1, 1) => "temperature threshold",
            (1, 2) => "spare blocks below the threshold",
            (2, 0) => "namespaces have changed",
            (2, 1) => "firmware activation starting",
            _ => "an event this driver has no name for",
        }
    }
}
