//! Key files: written whole or not at all, secrets for their owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::KeysError;

/// Certificates are a few kilobytes; a longer file is none.
const MAX_FILE: u64 = 256 << 10;

fn create(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(KeysError::io(path))
}

pub(crate) fn create_public(path: &Path, text: &str) -> Result<(), KeysError> {
    create(path, text, 0o644)
}

pub(crate) fn create_secret(path: &Path, text: &str) -> Result<(), KeysError> {
    create(path, text, 0o600)
}

pub(crate) fn read(path: &Path) -> Result<String, KeysError> {
    // By what is read and not by what its length is said to be: a pipe or a device has none.
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    read.map_err(KeysError::io(path))?;
    if text.len() as u64 > MAX_FILE { Err(KeysError::malformed(path, "too long for a key file")) } else { Ok(text) }
}

pub(crate) fn read_secret(path: &Path) -> Result<String, KeysError> {
    let mode = fs::metadata(path).map_err(KeysError::io(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeysError::Exposed { path: path.to_owned(), mode });
    }
    read(path)
}

/// A directory that appears whole: filled under another name first.
pub(crate) struct NewDir {
    draft: PathBuf,
    to: PathBuf,
}

impl NewDir {
    pub(crate) fn begin(to: &Path) -> Result<NewDir, KeysError> {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let draft = to.with_file_name(format!(".{name}.new{}", std::process::id())); // no `Name` begins like that
        make_private(&draft)?;
        Ok(NewDir { draft, to: to.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.draft
    }

    /// Puts it in its place. What is there is replaced only when that is wanted.
    pub(crate) fn finish(self, replace: bool) -> Result<(), KeysError> {
        let flags = if replace && self.to.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        sync_dir(&self.draft)?;
        renameat_with(CWD, &self.draft, CWD, &self.to, flags).map_err(|errno| match errno {
            Errno::EXIST => KeysError::Exists { path: self.to.clone() },
            errno => KeysError::Io { path: self.to.clone(), error: errno.into() },
        })?;
        let parent = self.to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent)
    }
}

fn sync_dir(path: &Path) -> Result<(), KeysError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(KeysError::io(path))
}

impl Drop for NewDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.draft); // the one that was replaced, or a draft that failed
    }
}

pub(crate) fn make_private(path: &Path) -> Result<(), KeysError> {
    DirBuilder::new().mode(0o700).create(path).map_err(KeysError::io(path))
}
