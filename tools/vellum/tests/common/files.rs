//! Files on a mount: what tests of one mount share.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use vellum_base::prng::Prng;

use super::{Lab, can_mount};

pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Prng::new(seed).fill(&mut bytes);
    bytes
}

pub fn fails<T>(result: io::Result<T>, errno: Errno) {
    match result {
        Ok(_) => panic!("it succeeded, {errno:?} was expected"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(errno.raw_os_error()), "{e}, {errno:?} was expected"),
    }
}

pub fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Runs `work` on a fresh mount, then `again` on the next one; the device must be clean.
pub fn on_mount(test: &str, size: &str, work: impl FnOnce(&Path), again: impl FnOnce(&Path)) {
    if !can_mount(test) {
        return;
    }
    let mut lab = Lab::new(size);
    let endpoint = format!("file:{}", lab.image_str());
    let mount = lab.mount("m", Some(&endpoint));
    work(&mount);
    lab.unmount(&mount);
    lab.check();
    let mount = lab.mount("again", Some(&endpoint));
    again(&mount);
    lab.unmount(&mount);
    lab.check();
}
