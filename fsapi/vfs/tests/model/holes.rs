//! Steps of the model: holes, copies, and files without a name.

use vellum_vfs::{Allocate, Seek, Vfs, VfsError};

use super::common::*;
use super::{Kind, Run};

impl Run {
    pub(super) async fn make_hole(&mut self, vfs: &Vfs) {
        let Some(ino) = self.some_file() else { return };
        let size = self.model.file(ino).len();
        let (start, len) = (self.rng.below(size as u64 + 5000) as usize, 1 + self.len());
        let keep_size = self.rng.one_in(2);
        let whats = [Allocate::PunchHole, Allocate::Zero { keep_size }, Allocate::Room { keep_size }];
        let what = whats[self.rng.below(3) as usize];
        let (handle, _) = vfs.open(ino, rw()).await.unwrap();
        vfs.fallocate(handle, what, start as u64, len as u64, false).await.unwrap();
        let file = self.model.file(ino);
        if !matches!(what, Allocate::Room { .. }) && start < size {
            file[start..size.min(start + len)].fill(0);
        }
        if what != Allocate::PunchHole && !keep_size {
            file.resize(size.max(start + len), 0);
        }
        let expected = self.model.file(ino).clone();
        assert_eq!(vfs.getattr(ino).await.unwrap().size, expected.len() as u64);
        assert!(read_handle(vfs, handle, 0, expected.len()).await == expected, "{what:?} {start} {len}, of {size}");
        vfs.release(handle).await.unwrap();
    }

    pub(super) async fn copy(&mut self, vfs: &Vfs) {
        let (Some(from), Some(to)) = (self.some_file(), self.some_file()) else { return };
        let (source, old) = (self.model.file(from).clone(), self.model.file(to).len());
        let mut from_at = self.rng.below(source.len() as u64 + 100);
        let (mut to_at, len) = (self.rng.below(old as u64 + 5000), 1 + self.len() as u64);
        match self.rng.below(4) {
            0 => to_at = to_at / 4096 * 4096 + from_at % 4096,
            1 | 2 => (from_at, to_at) = (from_at / 4096 * 4096, to_at / 4096 * 4096),
            _ => {}
        }
        let (a, b) = (vfs.open(from, rw()).await.unwrap().0, vfs.open(to, rw()).await.unwrap().0);
        let copied = vfs.copy_range((a, from_at), (b, to_at), len, false).await;
        vfs.release(a).await.unwrap();
        vfs.release(b).await.unwrap();
        let part = source.get(from_at as usize..).unwrap_or_default();
        let part = &part[..part.len().min(len as usize)];
        let len = part.len() as u64;
        if from == to && from_at < to_at + len && to_at < from_at + len {
            assert_eq!(copied, Err(VfsError::INVAL));
            return;
        }
        assert_eq!(copied, Ok(part.len() as u64));
        self.write_model(to, to_at as usize, part);
        assert!(content(vfs, to).await == *self.model.file(to), "{len} bytes from {from_at} to {to_at}");
    }

    /// Holes are zeros, and holes and content take turns up to the end.
    pub(super) async fn look_for_holes(&mut self, vfs: &Vfs) {
        let Some(ino) = self.some_file() else { return };
        let file = self.model.file(ino).clone();
        let (handle, _) = vfs.open(ino, rw()).await.unwrap();
        let mut at = self.rng.below(file.len() as u64 + 1);
        while at < file.len() as u64 {
            let data = vfs.seek(handle, at, Seek::Data).await.or_else(|error| {
                assert_eq!(error, VfsError::NXIO);
                Ok::<u64, VfsError>(file.len() as u64)
            });
            let data = data.unwrap();
            assert!(data >= at && file[at as usize..data as usize].iter().all(|b| *b == 0), "a hole at {at}");
            if data == file.len() as u64 {
                break;
            }
            at = vfs.seek(handle, data, Seek::Hole).await.unwrap();
            assert!(at > data && at <= file.len() as u64);
        }
        assert_eq!(vfs.seek(handle, file.len() as u64, Seek::Hole).await, Err(VfsError::NXIO));
        vfs.release(handle).await.unwrap();
    }

    pub(super) async fn link_nameless(&mut self, vfs: &Vfs) {
        let (dir, name, data) = (self.some_dir(), self.name(), self.data());
        let (attr, handle) = vfs.tmpfile(ME, dir, 0o640, rw()).await.unwrap();
        assert_eq!(attr.nlink, 0);
        vfs.write(handle, 0, &data, false).await.unwrap();
        let taken = self.model.dir(dir).unwrap().contains_key(&name);
        match vfs.link(attr.ino, dir, name.as_bytes()).await {
            Ok(linked) => {
                assert_eq!((linked.nlink, taken), (1, false));
                self.model.add(dir, &name, attr.ino, Kind::File(data), 0o640);
            }
            Err(error) => assert_eq!((error, taken), (VfsError::EXIST, true)),
        }
        vfs.release(handle).await.unwrap();
    }
}
