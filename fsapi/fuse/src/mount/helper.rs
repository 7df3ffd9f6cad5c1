//! Mounting without being root, by the set-uid program fusermount3: it mounts and sends the descriptor back.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::{MountError, MountOptions, Unmount};

const PROGRAM: &str = "fusermount3";

pub fn mount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(io::Error::from)?;
    // The socket is the helper's standard input: so no other program started meanwhile can inherit it.
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options.helper_data())
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| if e.kind() == io::ErrorKind::NotFound { MountError::NoHelper } else { MountError::Io(e) })?;
    let device = receive(&ours);
    let mut complaint = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut complaint); // only words for the error below
    }
    let status = child.wait()?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(e) if status.success() => Err(MountError::Io(e)),
        _ if complaint.trim().is_empty() => Err(MountError::Helper(format!("it ended with {status}"))),
        _ => Err(MountError::Helper(complaint.trim().to_owned())),
    }
}

/// The descriptor that comes with one byte; `None` when the helper closed the socket without it.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

pub fn unmount(path: &Path, how: Unmount) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").stdin(Stdio::null());
    if how != Unmount::WhenIdle {
        command.arg("-z"); // the helper cannot force; the connection ends with our descriptor
    }
    let output = command.arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if words.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The helper does for root what it does for others, so its protocol can be tried as root.
    #[test]
    fn the_helper_sends_the_connection_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::process::geteuid().is_root();
        let found = Command::new(PROGRAM).arg("--version").output().is_ok();
        if !root || !found {
            eprintln!("SKIPPED the_helper_sends_the_connection_back: needs root and {PROGRAM}");
            return;
        }
        let device = mount(dir.path(), &MountOptions { fsname: "a,b".into(), ..MountOptions::default() }).unwrap();
        let mounts = crate::mount::point::mounts_at(dir.path()).unwrap();
        assert_eq!(mounts.last().map(|mount| &*mount.fstype), Some("fuse.vellum"));
        drop(device);
        unmount(dir.path(), Unmount::Lazy).unwrap();
        assert!(crate::mount::point::mounts_at(dir.path()).unwrap().is_empty());
        let refused = mount(&dir.path().join("none"), &MountOptions::default()).unwrap_err();
        assert!(matches!(&refused, MountError::Helper(words) if words.contains("none")), "{refused}");
    }
}
