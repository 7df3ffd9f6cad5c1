//! Shared mappings. FUSE tells a gateway of no store into a mapped page, so they are coherent as over a network: what was
//! stored is seen by others after msync(2), and what others wrote appears in the mapping when the kernel has dropped the
//! page, soon after the lock went.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use super::{Mounts, bytes, eventually, pairs};

const LEN: usize = 64 << 10;

pub fn mapped_files_follow(m: &Mounts) {
    let dirs = m.fresh("map");
    for (round, (one, other)) in pairs(&dirs).enumerate() {
        let name = format!("f{round}");
        fs::write(one.join(&name), bytes(round as u64, LEN)).unwrap();
        let open = |dir: &std::path::Path| OpenOptions::new().read(true).write(true).open(dir.join(&name)).unwrap();
        let (mapped, written) = (open(one), open(other));
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping of LEN bytes, unmapped below, and not used after that.
        let map = unsafe { mmap(std::ptr::null_mut(), LEN, prot, MapFlags::SHARED, &mapped, 0).unwrap() };
        let at = |n: usize| map.cast::<u8>().wrapping_add(n);
        // SAFETY: inside the mapping; the file is as long as it.
        let load = |n: usize| unsafe { at(n).read_volatile() };
        for n in [0, 5_000, LEN - 1] {
            assert_eq!(load(n), bytes(round as u64, LEN)[n]);
            // SAFETY: as above.
            unsafe { at(n).write_volatile(77) };
        }
        // SAFETY: the whole mapping.
        unsafe { msync(map, LEN, MsyncFlags::SYNC).unwrap() };
        let mut byte = [0];
        for n in [0, 5_000, LEN - 1] {
            written.read_exact_at(&mut byte, n as u64).unwrap();
            assert_eq!(byte, [77], "what was stored and synced is not seen");
        }
        for n in [0, 5_000, LEN - 1] {
            written.write_all_at(&[88], n as u64).unwrap();
            eventually("a mapping shows what was written elsewhere", || load(n) == 88);
        }
        // SAFETY: mapped above with this length.
        unsafe { munmap(map, LEN).unwrap() };
    }
}
