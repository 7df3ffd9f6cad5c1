//! The words of NVM Express as the driver and the controller model both speak them: registers, commands, completions,
//! data structures. Nothing here does IO.
//!
//! Sections are those of the NVM Express Base Specification 2.0c and (where it says NVM) the NVM Command Set
//! Specification 1.0c. Structures are little-endian, unaligned, and exactly as long as the specification says, which is
//! asserted at compile time; any bytes are a valid value of each, so what a controller answers can be viewed, never trusted.

mod command;
mod completion;
mod feature;
mod identify;
mod log;
mod register;
mod reservation;
mod status;

pub use command::{
    AdminOpcode, DATA_BLOCK_DESCRIPTOR, DsmRange, IoOpcode, MAX_DSM_RANGES, PSDT_SGL, Pointer, SglDescriptor,
    Submission,
};
pub use completion::{Completion, PHASE};
pub use feature::{AsyncEvent, Feature};
pub use identify::{
    Cns, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, LbaFormat, NamespaceList, descriptors, text,
};
pub use log::{ErrorEntry, FirmwareLog, LogPage, SmartLog};
pub use register::{
    AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, GONE_32, PAGE_BYTES, Register, Version,
    doorbell_offset,
};
pub use reservation::{
    AcquireAction, RegisterAction, RegistrantStatus, ReleaseAction, ReservationKeys, ReservationStatus, ReservationType,
};
pub use status::{Status, StatusCodeType};

/// The namespace id that means all of them, for commands that allow it (3.2.1.2).
pub const ALL_NAMESPACES: u32 = 0xffff_ffff;
/// Bytes of a submission queue entry (4.1) as a power of two, for CC.IOSQES.
pub const SUBMISSION_SHIFT: u32 = 6;
/// Bytes of a completion queue entry (4.2) as a power of two, for CC.IOCQES.
pub const COMPLETION_SHIFT: u32 = 4;
