//! The status field of a completion (4.2.3) and the names of its codes.

use std::fmt;

/// Status code types (4.2.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusCodeType {
    Generic,
    CommandSpecific,
    MediaAndData,
    Path,
    VendorSpecific,
    Reserved,
}

/// The 15 bits of the field: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

macro_rules! statuses {
    ($($konst:ident = $code:literal, $name:literal;)*) => {
        impl Status {
            $(pub const $konst: Status = Status($code);)*

            /// In the specification's words.
            pub fn name(self) -> &'static str {
                match self.code() {
                    $($code => $name,)*
                    _ => match self.code_type() {
                        StatusCodeType::Generic => "unknown generic status",
                        StatusCodeType::CommandSpecific => "unknown command specific status",
                        StatusCodeType::MediaAndData => "unknown media and data integrity error",
                        StatusCodeType::Path => "unknown path related status",
                        StatusCodeType::VendorSpecific => "vendor specific status",
                        StatusCodeType::Reserved => "reserved status",
                    },
                }
            }
        }
    };
}

// Figures 94 (generic), 96 (command specific), 99 (NVM command set), 100 (media and data), 102 (path); type in bits 10:8.
statuses! {
    SUCCESS = 0x000, "successful completion";
    INVALID_OPCODE = 0x001, "invalid command opcode";
    INVALID_FIELD = 0x002, "invalid field in command";
    CID_CONFLICT = 0x003, "command id conflict";
    DATA_TRANSFER_ERROR = 0x004, "data transfer error";
    POWER_LOSS = 0x005, "commands aborted due to power loss notification";
    INTERNAL_ERROR = 0x006, "internal error";
    ABORT_REQUESTED = 0x007, "command abort requested";
    ABORTED_SQ_DELETED = 0x008, "command aborted due to SQ deletion";
    INVALID_NAMESPACE = 0x00b, "invalid namespace or format";
    COMMAND_SEQUENCE_ERROR = 0x00c, "command sequence error";
    INVALID_SGL_SEGMENT = 0x00d, "invalid SGL segment descriptor";
    INVALID_SGL_COUNT = 0x00e, "invalid number of SGL descriptors";
    INVALID_SGL_LENGTH = 0x00f, "data SGL length invalid";
    INVALID_SGL_TYPE = 0x011, "SGL descriptor type invalid";
    INVALID_PRP_OFFSET = 0x013, "PRP offset invalid";
    HOST_ID_INCONSISTENT = 0x018, "host identifier inconsistent format";
    SANITIZE_IN_PROGRESS = 0x01d, "sanitize in progress";
    NAMESPACE_WRITE_PROTECTED = 0x020, "namespace is write protected";
    COMMAND_INTERRUPTED = 0x021, "command interrupted";
    TRANSIENT_TRANSPORT = 0x022, "transient transport error";
    LBA_OUT_OF_RANGE = 0x080, "LBA out of range";
    CAPACITY_EXCEEDED = 0x081, "capacity exceeded";
    NAMESPACE_NOT_READY = 0x082, "namespace not ready";
    RESERVATION_CONFLICT = 0x083, "reservation conflict";
    FORMAT_IN_PROGRESS = 0x084, "format in progress";
    INVALID_COMPLETION_QUEUE = 0x100, "completion queue invalid";
    INVALID_QUEUE_ID = 0x101, "invalid queue identifier";
    INVALID_QUEUE_SIZE = 0x102, "invalid queue size";
    ABORT_LIMIT = 0x103, "abort command limit exceeded";
    EVENT_LIMIT = 0x105, "asynchronous event request limit exceeded";
    INVALID_LOG_PAGE = 0x109, "invalid log page";
    INVALID_FORMAT = 0x10a, "invalid format";
    INVALID_QUEUE_DELETION = 0x10c, "invalid queue deletion";
    FEATURE_NOT_CHANGEABLE = 0x10e, "feature not changeable";
    CONFLICTING_ATTRIBUTES = 0x180, "conflicting attributes";
    WRITE_TO_READ_ONLY = 0x182, "attempted write to read only range";
    WRITE_FAULT = 0x280, "write fault";
    UNRECOVERED_READ = 0x281, "unrecovered read error";
    GUARD_CHECK = 0x282, "end-to-end guard check error";
    APPLICATION_TAG_CHECK = 0x283, "end-to-end application tag check error";
    REFERENCE_TAG_CHECK = 0x284, "end-to-end reference tag check error";
    COMPARE_FAILURE = 0x285, "compare failure";
    ACCESS_DENIED = 0x286, "access denied";
    UNWRITTEN_BLOCK = 0x287, "deallocated or unwritten logical block";
    PATH_INTERNAL = 0x300, "internal path error";
    ASYMMETRIC_INACCESSIBLE = 0x302, "asymmetric access inaccessible";
    HOST_PATHING_ERROR = 0x370, "host pathing error";
    HOST_ABORTED = 0x371, "command aborted by host";
}

impl Status {
    /// DNR: the same command will fail again (4.2.3, bit 31 of DW3).
    pub const DO_NOT_RETRY: u16 = 1 << 14;
    /// M: the error log has more to say.
    pub const MORE: u16 = 1 << 13;

    pub fn is_success(self) -> bool {
        self.code() == 0
    }

    /// Code and code type, without the advice bits.
    pub fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    pub fn code_type(self) -> StatusCodeType {
        match self.0 >> 8 & 7 {
            0 => StatusCodeType::Generic,
            1 => StatusCodeType::CommandSpecific,
            2 => StatusCodeType::MediaAndData,
            3 => StatusCodeType::Path,
            7 => StatusCodeType::VendorSpecific,
            _ => StatusCodeType::Reserved,
        }
    }

    pub fn do_not_retry(self) -> bool {
        self.0 & Status::DO_NOT_RETRY != 0
    }

    pub const fn with_do_not_retry(self) -> Status {
        Status(self.0 | Status::DO_NOT_RETRY)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {:#05x})", self.name(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dnr = if self.do_not_retry() { ", do not retry" } else { "" };
        write!(f, "Status({:#05x} {}{dnr})", self.code(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_bits_do_not_change_the_code() {
        let status = Status::UNRECOVERED_READ.with_do_not_retry();
        assert_eq!(status.to_string(), "unrecovered read error (status 0x281)");
        assert!(status.do_not_retry() && !status.is_success());
        assert!(Status(Status::MORE).is_success());
        assert_eq!(Status(0x7c0).name(), "vendor specific status");
    }
}
