//! A process of this host, so named that it is never taken for another.

use std::fs;
use std::sync::OnceLock;

use bytes::{BufMut, BytesMut};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

const ENCODED: usize = 16 + 8 + 4 + 8;

/// Within which a pid and a start time mean one process: a boot of a host, and a pid namespace of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct View {
    boot: [u8; 16],
    namespace: u64,
}

impl View {
    fn ours() -> Option<View> {
        static OURS: OnceLock<Option<View>> = OnceLock::new();
        *OURS.get_or_init(|| {
            let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
            let boot = u128::from_str_radix(&hex, 16).ok()?.to_be_bytes();
            let link = fs::read_link("/proc/self/ns/pid").ok()?; // pid:[4026531836]
            let namespace = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()?;
            Some(View { boot, namespace })
        })
    }
}

/// A pid with the time (ticks after boot) at which its process began: the number alone is used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Process {
    view: View,
    pid: u32,
    start: u64,
}

struct Stat {
    start: u64,
    /// Only its parent has not asked for it yet. (A leading thread that ended before the others looks alike, but for
    /// their number.)
    is_over: bool,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; field 3 follows it.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let threads: u64 = fields.get(20 - 3)?.parse().ok()?;
    let start = fields.get(22 - 3)?.parse().ok()?;
    Some(Stat { start, is_over: matches!(fields.first()?, &"Z" | &"X") && threads <= 1 })
}

impl Process {
    /// The process of this number; none where it can't be seen (or there are no processes, as in a simulation).
    pub(crate) fn running(pid: u32) -> Option<Process> {
        if pid == 0 {
            return None;
        }
        Some(Process { view: View::ours()?, pid, start: stat(pid)?.start })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Of this host, until it boots again.
    pub(crate) fn boot_id() -> Option<[u8; 16]> {
        View::ours().map(|view| view.boot)
    }

    pub(crate) fn is_this_boot(boot_id: &[u8; 16]) -> bool {
        View::ours().is_some_and(|view| view.boot == *boot_id)
    }

    /// When the process of this number began, in ticks after boot; none when there is none to be seen.
    pub(crate) fn start_of(pid: u32) -> Option<u64> {
        stat(pid).map(|stat| stat.start)
    }

    pub(crate) fn is_same_view(&self, other: &Process) -> bool {
        self.view == other.view
    }

    /// True only when it is certain: a process of another boot, host or namespace may live.
    pub(crate) fn is_gone(&self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        if View::ours() != Some(self.view) {
            return false;
        }
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        stat(self.pid).is_some_and(|stat| stat.start != self.start || stat.is_over)
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.view.boot);
        out.put_u64_le(self.view.namespace);
        out.put_u32_le(self.pid);
        out.put_u64_le(self.start);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Process> {
        let bytes: &[u8; ENCODED] = bytes.try_into().ok()?;
        let (boot, rest) = bytes.split_first_chunk::<16>()?;
        let (namespace, rest) = rest.split_first_chunk::<8>()?;
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let start = u64::from_le_bytes(rest.try_into().ok()?);
        let view = View { boot: *boot, namespace: u64::from_le_bytes(*namespace) };
        Some(Process { view, pid: u32::from_le_bytes(*pid), start })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_is_gone() {
        let me = Process::running(std::process::id()).unwrap();
        assert!(!me.is_gone());
        assert!(Process { start: me.start - 1, ..me }.is_gone(), "the number was used again");
        let elsewhere = View { boot: [7; 16], ..me.view };
        assert!(!Process { view: elsewhere, start: 1, ..me }.is_gone(), "another host's");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::running(child.id()).unwrap();
        assert!(!process.is_gone());
        child.kill().unwrap();
        for _ in 0..500 {
            if process.is_gone() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(process.is_gone(), "dead, though nobody has waited for it");
        child.wait().unwrap();
        assert!(process.is_gone());
        assert_eq!(Process::running(child.id()), None);
    }
}
