//! Processes of this host, and whether they are gone.

use std::fs;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use vellum_format::ProcessId;

/// Within which a pid and a start time mean one process: a boot of a host, and a pid namespace of it.
fn our_view() -> Option<([u8; 16], u64)> {
    static OURS: OnceLock<Option<([u8; 16], u64)>> = OnceLock::new();
    *OURS.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&hex, 16).ok()?.to_be_bytes();
        let link = fs::read_link("/proc/self/ns/pid").ok()?; // pid:[4026531836]
        let namespace = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()?;
        Some((boot, namespace))
    })
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

/// The process of this number; none where it can't be seen (or there are no processes, as in a simulation).
pub(crate) fn running(pid: u32) -> Option<ProcessId> {
    if pid == 0 {
        return None;
    }
    let (boot, namespace) = our_view()?;
    Some(ProcessId { boot, namespace, pid, start: stat(pid)?.start })
}

/// Of this host, until it boots again.
pub(crate) fn boot_id() -> Option<[u8; 16]> {
    our_view().map(|(boot, _)| boot)
}

pub(crate) fn is_this_boot(boot_id: &[u8; 16]) -> bool {
    our_view().is_some_and(|(boot, _)| boot == *boot_id)
}

/// When the process of this number began, in ticks after boot; none when there is none to be seen.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.start)
}

pub(crate) fn is_same_view(one: &ProcessId, other: &ProcessId) -> bool {
    (one.boot, one.namespace) == (other.boot, other.namespace)
}

/// True only when it is certain: a process of another boot, host or namespace may live.
pub(crate) fn is_gone(process: &ProcessId) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return false };
    if our_view() != Some((process.boot, process.namespace)) {
        return false;
    }
    if test_kill_process(pid) == Err(Errno::SRCH) {
        return true;
    }
    stat(process.pid).is_some_and(|stat| stat.start != process.start || stat.is_over)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_is_gone() {
        let me = running(std::process::id()).unwrap();
        assert!(!is_gone(&me));
        assert!(is_gone(&ProcessId { start: me.start - 1, ..me }), "the number was used again");
        assert!(!is_gone(&ProcessId { boot: [7; 16], start: 1, ..me }), "another host's");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = running(child.id()).unwrap();
        assert!(!is_gone(&process));
        child.kill().unwrap();
        for _ in 0..500 {
            if is_gone(&process) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(is_gone(&process), "dead, though nobody has waited for it");
        child.wait().unwrap();
        assert!(is_gone(&process));
        assert_eq!(running(child.id()), None);
    }
}
