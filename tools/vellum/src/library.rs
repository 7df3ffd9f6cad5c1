//! A tree through the library: the client and the vfs in this process, for users who may not mount.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use vellum_base::Ino;
use vellum_bench::Recorder;
use vellum_bench::tree::Census;
use vellum_client::{Address, Client, ClientOptions};
use vellum_rt::net::Endpoint;
use vellum_vfs::{Caller, OpenFlags, Vfs, VfsOptions};
use walkdir::WalkDir;

use crate::exit::{Exit, WithExit};
use crate::session::connect_options;

const FRAME: usize = 1 << 20;

/// A client with its vfs.
pub struct Library {
    client: Rc<Client>,
    vfs: Rc<Vfs>,
    caller: Caller,
}

impl Library {
    pub async fn connect(endpoint: Endpoint) -> Result<Library> {
        let client =
            Client::connect(Address::Net(endpoint), None, connect_options(None, true), ClientOptions::default())
                .await
                .context("cannot reach the engine")
                .exit(Exit::Endpoint)?;
        let vfs = Vfs::new(client.clone(), VfsOptions::default());
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let caller = Caller { uid, gid, pid: std::process::id(), umask: 0 };
        vfs.make_root(caller).await?;
        Ok(Library { client, vfs, caller })
    }

    pub async fn sync(&self) -> Result<()> {
        Ok(self.vfs.syncfs().await?)
    }

    pub async fn leave(self) -> Result<()> {
        self.vfs.shutdown().await?;
        Ok(self.client.farewell().await?)
    }

    async fn find(&self, path: &Path) -> Result<Ino> {
        let mut at = self.vfs.root();
        for name in path.iter() {
            let found = self.vfs.lookup(at, name.as_bytes()).await;
            at = found.with_context(|| format!("{} is lost", path.display()))?.ino;
        }
        Ok(at)
    }

    /// Copies directories, symlinks and at most `files` regular files of `from` to the root.
    pub async fn copy(
        &self,
        from: &Path,
        files: u64,
        recorder: &mut Recorder,
        mut progress: impl FnMut(&Census),
    ) -> Result<Census> {
        let mut census = Census::default();
        for entry in WalkDir::new(from).sort_by_file_name().min_depth(1) {
            let Ok(entry) = entry else { continue };
            let relative = entry.path().strip_prefix(from).context("walkdir stays below its root")?;
            let kind = entry.file_type();
            if kind.is_file() && census.files >= files {
                break;
            }
            let parent = self.find(relative.parent().unwrap_or(Path::new(""))).await?;
            let name = entry.file_name().as_bytes();
            if kind.is_dir() {
                self.vfs.mkdir(self.caller, parent, name, 0o755).await?;
                census.directories += 1;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.vfs.symlink(self.caller, parent, name, target.as_os_str().as_bytes()).await?;
                census.symlinks += 1;
            } else if kind.is_file() {
                let Ok(mut source) = fs::File::open(entry.path()) else { continue };
                let mode = source.metadata()?.mode() & 0o7777;
                let start = std::time::Instant::now();
                census.bytes += self.create(parent, name, mode, &mut source).await?;
                recorder.record(start.elapsed(), 0);
                census.files += 1;
            }
            progress(&census);
        }
        Ok(census)
    }

    /// A new file with all that `source` has to give.
    async fn create(&self, parent: Ino, name: &[u8], mode: u32, source: &mut impl Read) -> Result<u64> {
        let (_, handle) = self.vfs.create(self.caller, parent, name, mode, new_file()).await?;
        let (mut at, mut buf) = (0u64, vec![0u8; FRAME]);
        loop {
            let n = source.read(&mut buf)?;
            if n == 0 {
                break;
            }
            self.vfs.write(handle, at, &buf[..n], false).await?;
            at += n as u64;
        }
        self.vfs.release(handle).await?;
        Ok(at)
    }

    /// A new directory of the root with new files.
    pub async fn make_files(&self, dir: &str, names: &[String], content: &[u8]) -> Result<()> {
        let dir = self.vfs.mkdir(self.caller, Ino::ROOT, dir.as_bytes(), 0o755).await?.ino;
        for name in names {
            self.create(dir, name.as_bytes(), 0o644, &mut &content[..]).await?;
        }
        Ok(())
    }

    /// Compares every file with its source, byte for byte.
    pub async fn verify(&self, from: &Path, files: u64, mut progress: impl FnMut(&Census)) -> Result<Census> {
        let mut census = Census::default();
        for entry in WalkDir::new(from).sort_by_file_name().min_depth(1) {
            let Ok(entry) = entry else { continue };
            let kind = entry.file_type();
            if kind.is_file() && census.files >= files {
                break;
            }
            let relative = entry.path().strip_prefix(from).context("walkdir stays below its root")?;
            if kind.is_dir() {
                self.find(relative).await?;
                census.directories += 1;
            } else if kind.is_symlink() {
                let target = self.vfs.readlink(self.find(relative).await?).await?;
                if target[..] != *fs::read_link(entry.path())?.as_os_str().as_bytes() {
                    bail!("{} points elsewhere", relative.display());
                }
                census.symlinks += 1;
            } else if kind.is_file() {
                let Ok(source) = fs::read(entry.path()) else { continue };
                let ino = self.find(relative).await?;
                let (handle, attr) = self.vfs.open(ino, OpenFlags::from_bits(0)).await?;
                let mut found = Vec::with_capacity(source.len());
                while (found.len() as u64) < attr.size {
                    let before = found.len();
                    for part in self.vfs.read(handle, before as u64, FRAME).await? {
                        found.extend_from_slice(&part);
                    }
                    if found.len() == before {
                        break;
                    }
                }
                self.vfs.release(handle).await?;
                if found != source {
                    bail!("{} differs from its source", relative.display());
                }
                census.files += 1;
                census.bytes += source.len() as u64;
            }
            progress(&census);
        }
        Ok(census)
    }
}

fn new_file() -> OpenFlags {
    OpenFlags::from_bits((rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::EXCL).bits() as i32)
}
